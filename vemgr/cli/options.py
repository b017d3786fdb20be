# SPDX-License-Identifier: GPL-2.0-or-later
"""Arguments and options that several verbs have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from vemgr.cli import completion, keys
from vemgr.core.config import SETTINGS, Setting


def names_argument(*states: str) -> Callable[..., Any]:
    """Names of VEs; a shell completes those of VEs in one of `states`, or of all."""
    return click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=completion.ves(*states))


def name_argument(*states: str) -> Callable[..., Any]:
    return click.argument("name", shell_complete=completion.ves(*states))


template_option = click.option("--template", "template_name", default="", metavar="TEMPLATE",
                               help="What the VE is made from.", shell_complete=completion.templates)
detach_keys_option = click.option("--detach-keys", default=keys.DEFAULT, envvar="VEMGR_DETACH_KEYS", metavar="KEYS",
                                  show_default=True, help="What to type to leave a console.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def setting_options_of(settings: Sequence[Setting]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """One option for each of these rows of the settings table."""
    def with_options(function: Callable[..., Any]) -> Callable[..., Any]:
        for setting in reversed(settings):
            function = click.option(setting.option, setting.attribute, metavar=setting.metavar, help=setting.help,
                                    multiple=setting.repeatable,
                                    shell_complete=completion.SETTINGS.get(setting.key))(function)
        return function

    return with_options


setting_options = setting_options_of(SETTINGS)


def given(options: Mapping[str, str | tuple[str, ...] | None]) -> dict[str, str]:
    """The settings that were given, by key; what was given several times is one text."""
    texts: dict[str, str] = {}
    for setting in SETTINGS:
        value = options.get(setting.attribute)
        if value:
            texts[setting.key] = value if isinstance(value, str) else " ".join(value)
        elif value == "":
            texts[setting.key] = value
    return texts
