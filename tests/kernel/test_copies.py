# SPDX-License-Identifier: GPL-2.0-or-later
"""clone, rename, template create: what a stopped VE holds, in another one, under another name, in a template."""

import os
import struct
import subprocess
import time

import pytest

from tests.kernel.conftest import eventually
from tests.kernel.test_files import jobs

FILL = """
mkdir -p /x/y; echo 1 > /x/f; ln /x/f /x/y/g; chown 7:8 /x/f; chmod 4751 /x/f; rm /etc/group; rm -r /usr; mkdir /usr
touch /usr/own; mkfifo /x/p; ln -s /etc /x/l; mv /tmp /tmp2; echo end | dd of=/x/sparse bs=1M seek=100 2>/dev/null
"""
LOOK = """
stat -c '%n %a %u:%g %h %s %F' /x/[fglps]* /x/y/g /usr/*; stat -c '%n %a %u:%g %F' /x/y /tmp2
ls -A /usr / /etc; cat /x/f /x/y/g /etc/passwd
"""
ACL = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, rights, who) for tag, rights, who in (
    (1, 6, 0xFFFFFFFF), (2, 4, 1234), (4, 4, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF), (32, 4, 0xFFFFFFFF)))


@pytest.fixture
def filled(vemgr, fresh):
    """A stopped VE with some of everything."""
    name = vemgr.create("--description", "text", "--publish", "18080:80", "--hostname", "its.own")
    vemgr("start", name)
    vemgr("exec", name, "--", "sh", "-c", FILL)
    vemgr("stop", "--kill", name)
    return name


def look(vemgr, name):
    vemgr("start", name)
    try:
        return vemgr("exec", name, "--", "sh", "-c", LOOK, code=None).stdout
    finally:
        vemgr("stop", "--kill", name)


def upper(vemgr, name):
    return vemgr.state / "ve" / name / "data/0/upper"


def test_clone(vemgr, filled):
    base = vemgr.show(filled)["idBase"]
    os.setxattr(upper(vemgr, filled) / "x/f", "user.note", b"\xff\0")
    os.setxattr(upper(vemgr, filled) / "x/sparse", "security.capability",
                struct.pack("<6I", 0x03000000 | 1, 1 << 10, 0, 0, 0, base))
    os.setxattr(upper(vemgr, filled) / "x/sparse", "system.posix_acl_access", ACL.replace(
        struct.pack("<I", 1234), struct.pack("<I", base + 1234)))
    before = vemgr.traces()
    vemgr("clone", filled, "twin")
    vemgr("destroy", "twin")
    vemgr.assert_traces(before)
    vemgr("clone", filled, "twin")
    mine, theirs = vemgr.show(filled), vemgr.show("twin")
    assert vemgr.out("events", "twin").splitlines()[-1].endswith(f"created  cloned from {filled}")
    assert theirs["settings"]["description"] == "text" and theirs["settings"]["publish"] == ""
    assert theirs["hostname"] == "twin" and theirs["idBase"] not in (0, base)
    assert {link["address"] for link in theirs["network"]}.isdisjoint(link["address"] for link in mine["network"])
    sparse = upper(vemgr, "twin") / "x/sparse"
    assert os.getxattr(upper(vemgr, "twin") / "x/f", "user.note") == b"\xff\0"
    assert struct.unpack("<6I", os.getxattr(sparse, "security.capability"))[5] == theirs["idBase"]
    assert struct.pack("<I", theirs["idBase"] + 1234) in os.getxattr(sparse, "system.posix_acl_access")
    assert sparse.stat().st_blocks < 1000, "holes stay holes"
    assert look(vemgr, "twin") == look(vemgr, filled)
    assert vemgr("exec", "twin", "--", "true", code=31)
    owners = subprocess.run(["find", str(upper(vemgr, "twin")), "-not", "-uid", str(theirs["idBase"]), "-not", "-uid",
                             str(theirs["idBase"] + 7)], capture_output=True, text=True)
    assert [path for path in owners.stdout.split() if not is_whiteout(path)] == []


def is_whiteout(path):
    return os.lstat(path).st_mode & 0o170000 == 0o020000


def test_rename(vemgr, filled):
    before, seen = vemgr.show(filled), look(vemgr, filled)
    vemgr("rename", filled, "renamed")
    after = vemgr.show("renamed")
    assert {key: after[key] for key in ("idBase", "settings", "network", "created")} == {
        key: before[key] for key in ("idBase", "settings", "network", "created")}
    assert vemgr.out("events", filled).endswith("renamed  to renamed\n")
    assert vemgr.out("events", "renamed").endswith(f"renamed  from {filled}\n")
    assert vemgr.state_of(filled) is None and not (vemgr.state / "ve" / filled).exists()
    assert look(vemgr, "renamed") == seen
    vemgr("set", "renamed", "--hostname", "default")
    vemgr("rename", "renamed", "again")
    vemgr("start", "again")
    assert vemgr("exec", "again", "--", "sh", "-c", "hostname; cat /etc/hostname").stdout == "again\nagain\n"
    vemgr.kill(vemgr.daemon_pid())
    assert vemgr.state_of("again") == "running"


def test_template_create(vemgr, filled):
    before = vemgr.traces()
    vemgr("template", "create", "made", "--from", filled)
    vemgr("template", "remove", "made")
    vemgr.assert_traces(before)
    vemgr("template", "create", "made", "--from", filled, "--description", "a test")
    assert vemgr.json("template", "show", "made")["description"] == "a test"
    name = vemgr.create(template="made")
    assert look(vemgr, name) == look(vemgr, filled)
    vemgr("destroy", name)
    vemgr("template", "remove", "made")


def test_refusals(vemgr, fresh):
    one, other = vemgr.create(), vemgr.create()
    vemgr("start", other)
    for arguments, code, why in (
        (("clone", "nobody", "x"), 14, "no such VE"), (("clone", one, other), 44, "exists"),
        (("clone", one, "X"), 21, "a name has"),
        (("clone", other, "x"), 32, "stop it first"), (("rename", one, other), 44, "exists"),
        (("rename", one, one), 44, "exists"), (("rename", other, "x"), 32, "stop it first"),
        (("rename", "nobody", "x"), 14, "no such VE"), (("template", "create", "bb", "--from", one), 44, "exists"),
        (("template", "create", "host", "--from", one), 21, "built-in"),
        (("template", "create", "x", "--from", other), 32, "stop it first"),
        (("template", "create", "x", "--from", one, "--description", "\x1b"), 21, "printable"),
    ):
        refused = vemgr(*arguments, code=code).stderr
        assert why in refused and "--force" not in refused, (arguments, refused)
    assert not [name for name in os.listdir(vemgr.state / "ve") if name.startswith(".")]
    assert not [name for name in os.listdir(vemgr.state / "templates") if name.startswith(".")]


@pytest.mark.parametrize("what", ["client", "daemon"])
@pytest.mark.parametrize("verb", [("clone", "{}", "half"), ("template", "create", "half", "--from", "{}")],
                         ids=["clone", "template"])
def test_given_up(vemgr, filled, verb, what):
    """The client, or the daemon, is killed in the midst of it: nothing is left."""
    with open(upper(vemgr, filled) / "x/large", "wb") as file:
        for _ in range(60):
            file.write(os.urandom(1 << 20))
    before = vemgr.files()
    client = vemgr.popen(*(word.format(filled) for word in verb))
    eventually(lambda: any(".half.partial" in directory for directory in vemgr.files()) and jobs(vemgr), "it begins")
    if what == "client":
        client.kill()
    else:
        vemgr.kill(vemgr.daemon_pid())
    client.communicate(timeout=20)
    vemgr("list")
    eventually(lambda: not jobs(vemgr), "its process stays")
    eventually(lambda: vemgr.files() == before, lambda: (before, vemgr.files()))
    assert vemgr.state_of("half") is None
    deadline = time.monotonic() + 20
    while vemgr("rename", filled, "free", code=None).returncode:
        assert time.monotonic() < deadline
    assert vemgr.state_of("free") == "stopped"
