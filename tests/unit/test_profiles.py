# SPDX-License-Identifier: GPL-2.0-or-later
"""Profiles: which value wins, and what is no profile."""

import pytest

from vemgr.core.errors import BadValue
from vemgr.runtime.profiles import Profiles


@pytest.fixture
def profiles(tmp_path):
    (tmp_path / "small.toml").write_text('memory = "256M"\nstop-timeout = 5\non-boot = true\ncpus = 0.5\n')
    (tmp_path / "db.toml").write_text('memory = "1G"\nswap = "1G"\nafter = ["a", "b"]\n')
    return Profiles(str(tmp_path))


def test_a_later_one_wins_and_what_is_given_over_all(profiles):
    assert profiles.expanded({"profile": "small db", "stop-timeout": "9"}) == {
        "profile": "small db", "memory": "1G", "swap": "1G", "stop-timeout": "9", "on-boot": "yes", "cpus": "0.5",
        "after": "a b"}
    assert profiles.expanded({"profile": "db small"})["memory"] == "256M"
    for text in ("none", "default", ""):
        assert profiles.expanded({"profile": text, "cpus": "1"}) == {"profile": text, "cpus": "1"}
    assert profiles.expanded({"cpus": "1"}) == {"cpus": "1"}


@pytest.mark.parametrize(("content", "why"), [
    ("memory = ", "cannot be read"), ('memory = "lots"', "not a size"), ('memroy = "1G"', "unknown setting"),
    ('address = "10.0.0.1"', "each VE's own"), ('profile = "small"', "each VE's own"), ("[memory]", "table"),
    ('swap = "1G"', "memory limit"), ("cpus = [1]", "table"), ("description = 1979-05-27", "table"),
    (b"\xff", "cannot be read"), ("a = " + "[" * 5000, "cannot be read")])
def test_what_is_none(profiles, tmp_path, content, why):
    (tmp_path / "bad.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadValue, match=why) as raised:
        profiles.expanded({"profile": "small bad"})
    assert "bad" in raised.value.message
    assert [(each["name"], bool(each["error"])) for each in profiles.list()] == [
        ("bad", True), ("db", False), ("small", False)]


@pytest.mark.parametrize("name", ["missing", "../small", "a/b", ".x", "X"])
def test_names(profiles, name):
    with pytest.raises(BadValue, match=r"there is no|a name has"):
        profiles.expanded({"profile": name})
    assert Profiles("/does/not/exist").list() == []
