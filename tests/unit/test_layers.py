# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import dataclasses

import pytest

from vemgr.core.errors import BadValue
from vemgr.core.layers import Template, Tree, check_template_name


@pytest.mark.parametrize("name", ["a", "host", "debian-12", "alpine-3.19.1", "0x", "a" * 63, "a..b"])
def test_names_that_are_allowed(name: str) -> None:
    assert check_template_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "-x", "x-", "x.", "a/b", "A", "a" * 64, "a\n", "ä", "a b", "a_b", ".x.partial-00000000"],
)
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(BadValue) as caught:
        check_template_name(name)
    assert caught.value.facts["field"] == "template"


def test_templates_are_values() -> None:
    tree = Tree("/", ["/var/lib/vemgr/templates/x/rootfs"])
    assert Template(name="x", trees=[tree]) == Template(name="x", trees=[Tree("/", list(tree.lowers))])
    with pytest.raises(dataclasses.FrozenInstanceError):
        tree.mountpoint = "/usr"  # type: ignore[misc]
