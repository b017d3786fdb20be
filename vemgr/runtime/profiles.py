# SPDX-License-Identifier: GPL-2.0-or-later
"""Profiles: settings of the administrator's under a name, `profiles-dir/NAME.toml`.

Their values are copied into a VE's definition when a verb names them. A profile that is changed later changes no VE:
what a VE may have is to be read in one file, and must not change with a typing error in another.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from typing import Any

from vemgr.core.config import parse_settings
from vemgr.core.errors import BadValue, VemgrError
from vemgr.core.parsing import parse_profiles

_LONGEST = 64 << 10
_SUFFIX = ".toml"
# What only one VE can have, and what says where the others come from.
_NOT_IN_ONE = ("profile", "address", "mac", "hostname")


class Profiles:
    def __init__(self, directory: str) -> None:
        self._directory = directory

    def expanded(self, texts: Mapping[str, str]) -> dict[str, str]:
        """Settings as they were given, on top of those of the profiles that they name, of which a later one wins.

        Blocks. Raises `BadValue`."""
        found: dict[str, str] = {}
        wanted = texts.get("profile", "default")
        for name in parse_profiles("profile", wanted) if wanted != "default" else ():
            found |= self.read(name)
        return found | dict(texts)

    def read(self, name: str) -> dict[str, str]:
        """The settings of one, each valid. Raises `BadValue`."""
        path = f"{self._directory}/{name}{_SUFFIX}"
        try:
            with open(path, "rb") as file:
                document = tomllib.loads(file.read(_LONGEST).decode())
        except FileNotFoundError:
            there = ", ".join(self.names()) or "none"
            raise BadValue("profile", name, f"there is no {path}", remedy=f"there are: {there}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise BadValue("profile", name, f"{path} cannot be read: {error}") from None
        texts = {key: _text(path, key, value) for key, value in document.items()}
        for key in _NOT_IN_ONE:
            if key in texts:
                raise BadValue("profile", name, f"{path} has '{key}', which is each VE's own")
        try:
            parse_settings(texts)
        except VemgrError as error:
            raise BadValue("profile", name, f"{path}: {error.message}", remedy=error.remedy) from None
        return texts

    def names(self) -> list[str]:
        try:
            return sorted(each.removesuffix(_SUFFIX) for each in os.listdir(self._directory) if each.endswith(_SUFFIX)
                          and not each.startswith("."))
        except OSError:
            return []

    def list(self) -> list[dict[str, Any]]:
        """All, also those that cannot be used, and why. Blocks."""
        found: list[dict[str, Any]] = []
        for name in self.names():
            try:
                found.append({"name": name, "settings": self.read(name), "error": ""})
            except VemgrError as error:
                found.append({"name": name, "settings": {}, "error": error.message})
        return found


def _text(path: str, key: str, value: object) -> str:
    """As on the command line; numbers, flags and lists as TOML has them are understood as well."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return " ".join(value)
    if isinstance(value, str | int | float):
        return str(value)
    raise BadValue("profile", os.path.basename(path).removesuffix(_SUFFIX), f"{path}: '{key}' is a table, or no text")
