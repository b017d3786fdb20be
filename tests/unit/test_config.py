# SPDX-License-Identifier: GPL-2.0-or-later
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vemgr.core.config import (
    BY_KEY,
    DEFAULTS,
    SETTINGS,
    Definition,
    Settings,
    changed,
    parse_settings,
    show_settings,
    wished_links,
)
from vemgr.core.errors import BadParameter, BadValue, VemgrError
from vemgr.core.links import Link
from vemgr.core.names import check_name

#: A value of each setting that is not the default, as a user writes it.
OTHER = {
    "cpus": "1.5", "cpu-burst": "50ms", "cpu-guarantee": "0.5", "cpu-weight": "300", "cpu-mask": "0-2,5",
    "memory": "512M",
    "memory-guarantee": "256M", "swap": "256M", "pids": "50",
    "io-weight": "200", "io-read": "10M/s", "io-write": "2M/s", "iops-read": "100", "iops-write": "200",
    "group": "acme",
    "network": "lan:address=10.50.0.2,address=fd50::2,mac=02:00:00:00:00:05 bridge", "address": "10.1.2.3 fd00::5",
    "mac": "02:00:00:00:00:07", "publish": "8080:80 192.0.2.1:53:53/udp [::]:443:443",
    "network-rate": "100M:in 10M:out", "network-guarantee": "5M", "network-weight": "300",
    "disk": "10G", "inodes": "100000", "mount": "/srv/a:/a /srv/b:/a/b:ro",
    "hostname": "web.example", "init": "/sbin/init --x 'a b'",
    "allow": "i386,nesting", "feature": "fuse nesting", "device": "/dev/sdb:r:force /dev/ttyUSB0",
    "capability": "+mknod -net_raw", "user-namespaces": "0",
    "on-boot": "yes", "boot-priority": "5", "after": "db1 db2", "ready-timeout": "9", "restart": "on-failure",
    "stop-timeout": "5", "description": "a line", "profile": "small db",
}


def test_the_table_and_the_values_fit():
    assert [s.attribute for s in SETTINGS] == [f.name for f in dataclasses.fields(Settings)]
    assert set(OTHER) == set(BY_KEY)
    for setting in SETTINGS:
        assert setting.option == f"--{setting.key}" and not setting.help.endswith(".")
        assert setting.controller in ("", "cpu", "cpuset", "memory", "pids", "io")


@pytest.mark.parametrize("key", OTHER)
def test_each_setting_round_trips(key):
    needs = {"swap": {"memory": "1G"}, "cpu-burst": {"cpus": "1"}, "inodes": {"disk": "1G"}}
    texts = {key: OTHER[key], **needs.get(key, {})}
    settings = parse_settings(texts)
    assert settings != DEFAULTS
    assert show_settings(settings) == texts
    assert parse_settings(show_settings(settings, all_=True)) == settings
    assert parse_settings({key: "default"}, settings) == dataclasses.replace(
        settings, **{BY_KEY[key].attribute: getattr(DEFAULTS, BY_KEY[key].attribute)})


def test_all_at_once():
    settings = parse_settings({**OTHER, "network": "lan bridge:address=10.2.3.4"})
    assert parse_settings(show_settings(settings)) == settings
    assert show_settings(DEFAULTS) == {}
    assert set(show_settings(DEFAULTS, all_=True)) == set(BY_KEY)
    assert parse_settings(show_settings(DEFAULTS, all_=True)) == DEFAULTS


@pytest.mark.parametrize("texts", [
    {"network": "none", "address": "10.1.2.3"}, {"network": "none", "mac": "02:00:00:00:00:05"},
    {"network": "none", "publish": "80:80"}, {"network": "lan lan"},
    {"network": "lan:address=10.1.2.3", "address": "10.1.2.4"},
    {"inodes": "2000"}, {"inodes": "8193", "disk": "32M"}, {"disk": "31M"}, {"disk": "0"},
    {"disk": "32M", "inodes": "9"},
    {"network": "lan:mac=02:00:00:00:00:05", "mac": "02:00:00:00:00:06"}, {"address": "10.1.2.3 10.1.2.4"},
])
def test_what_contradicts_itself(texts):
    with pytest.raises(BadValue):
        parse_settings(texts)


def test_the_links_that_are_wished_for():
    settings = parse_settings({"network": "lan bridge:mac=02:00:00:00:00:05", "address": "fd00::5,10.1.2.3",
                               "mac": "02:00:00:00:00:07"})
    assert wished_links(settings) == (Link("lan", "10.1.2.3", "fd00::5", "02:00:00:00:00:07"),
                                      Link("bridge", mac="02:00:00:00:00:05"))
    assert wished_links(parse_settings({"network": "none"})) == ()
    assert wished_links(DEFAULTS) == (Link("bridge"),)


@given(st.dictionaries(st.sampled_from([*BY_KEY, "nonsense"]), st.text(max_size=12), max_size=3))
def test_any_texts_give_settings_or_an_error_of_ours(texts):
    try:
        settings = parse_settings(texts)
    except VemgrError as error:
        assert error.exit_code in (20, 21) and error.facts["field"]
    else:
        assert parse_settings(show_settings(settings)) == settings


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), min_size=1,
                max_size=4))
def test_any_command_as_init(words):
    settings = Settings(init=tuple(words))
    assert parse_settings(show_settings(settings)) == settings


def test_unknown_key():
    with pytest.raises(BadParameter, match="unknown setting: mem") as error:
        parse_settings({"mem": "1G"})
    assert "memory" in error.value.remedy


@pytest.mark.parametrize("texts", [
    {"cpu-guarantee": "unlimited"}, {"memory-guarantee": "unlimited"}, {"cpu-guarantee": "0.001"},
    {"cpu-guarantee": "2.1", "cpu-mask": "0,3"}, {"cpu-guarantee": "1.5", "cpus": "1"},
    {"memory-guarantee": "65M", "memory": "64M"}, {"cpu-guarantee": "2.1", "cpu-mask": "auto:2"},
    {"cpu-weight": "idle", "cpu-guarantee": "1"},
])
def test_guarantees_that_are_none(texts):
    with pytest.raises(BadValue, match="guarantee"):
        parse_settings(texts)


@pytest.mark.parametrize(("key", "text"), [
    ("cpu-weight", "0"), ("cpu-weight", "10001"), ("cpu-weight", "Idle"), ("cpu-weight", "\u0663"), ("cpu-weight", ""),
    ("cpu-mask", "auto:0"), ("cpu-mask", "auto:"), ("cpu-mask", "auto"), ("cpu-mask", "auto:9000"),
    ("cpu-mask", "auto:2,4"), ("cpu-mask", "auto:\u0663"),
])
def test_what_is_no_weight_and_no_mask(key, text):
    with pytest.raises(BadValue, match=key):
        parse_settings({key: text})


def test_words_for_cpus_come_back():
    texts = {"cpu-weight": "idle", "cpu-mask": "auto:2"}
    shown = show_settings(parse_settings({"cpu-weight": "idle", "cpu-mask": "auto:02"}))
    assert {key: shown[key] for key in texts} == texts


def test_a_limit_does_not_go_below_the_guarantee():
    guaranteed = parse_settings({"cpu-guarantee": "1", "memory-guarantee": "64M"})
    for texts in ({"cpus": "0.5"}, {"memory": "32M"}):
        with pytest.raises(BadValue, match="more than the limit"):
            parse_settings(texts, guaranteed)
    assert parse_settings({"cpus": "1", "memory": "64M"}, guaranteed).cpus == 1000
    assert parse_settings({"cpu-guarantee": "0", "memory-guarantee": "0"}, guaranteed) == DEFAULTS


def test_swap_needs_memory():
    with pytest.raises(BadValue, match="needs a memory limit"):
        parse_settings({"swap": "1G"})
    limited = parse_settings({"swap": "1G", "memory": "1G"})
    with pytest.raises(BadValue):
        parse_settings({"memory": "unlimited"}, limited)
    assert parse_settings({"memory": "2G"}, limited).swap == 1 << 30


def test_changed():
    assert changed(DEFAULTS, DEFAULTS) == []
    assert [s.key for s in changed(DEFAULTS, parse_settings({"pids": "5", "cpus": "1"}))] == ["cpus", "pids"]


@pytest.mark.parametrize("name", ["a", "web1", "a-b", "0", "x" * 63])
def test_names(name):
    assert check_name(name) == name


@given(st.text(max_size=70))
def test_a_name_is_safe_as_a_path(name):
    try:
        check_name(name)
    except BadValue:
        return
    assert name.isascii() and 0 < len(name) < 64 and not set(name) & set("/.\0\n ") and name[0] != "-"


def test_host_name_of_a_definition():
    definition = Definition(name="web1", template="bb", id_base=1, created="now")
    assert definition.hostname == "web1"
    assert dataclasses.replace(definition, settings=Settings(hostname="x.y")).hostname == "x.y"
