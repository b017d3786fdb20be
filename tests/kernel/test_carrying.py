# SPDX-License-Identifier: GPL-2.0-or-later
"""export and import: what a VE is, through one file, on another host with other ids; and what is refused."""

import json
import os
import socket
import struct
import subprocess

import pytest

from tests.kernel.conftest import eventually
from tests.kernel.test_copies import ACL, FILL, is_whiteout, look, upper
from tests.kernel.test_files import jobs
from vemgr.api.client import RemoteError

MORE = """
mkdir -p /x/deep/er; mkfifo -m 640 /x/deep/p; rm -r /tmp2; chmod 1770 /x/deep; chown 3:4 /x/deep /x/deep/p; ln -s n /x/s
"""


@pytest.fixture(scope="module")
def other(make_instance):
    """Another host: other directories, another range of ids."""
    with make_instance() as instance:
        instance("shutdown")
        with open(instance.config, "a") as config:
            config.write("id-first = 1310720000\nid-last = 1376255999\n")
        yield instance


@pytest.fixture
def there(other):
    yield other
    names = [ve["name"] for ve in other.json("list")]
    if names:
        other("destroy", "--force", *names)


@pytest.fixture
def filled(vemgr, fresh):
    name = vemgr.create("--description", "text", "--publish", "18081:80")
    vemgr("start", name)
    vemgr("exec", name, "--", "sh", "-c", FILL + MORE)
    vemgr("stop", "--kill", name)
    base, top = vemgr.show(name)["idBase"], upper(vemgr, name)
    os.setxattr(top / "x/f", "user.note", b"\xff\0")
    os.setxattr(top / "x/f", "user.overlay.opaque", b"y")
    os.setxattr(top / "x/sparse", "security.capability", struct.pack("<6I", 0x03000000 | 1, 1 << 10, 0, 0, 0, base))
    os.setxattr(top / "x/sparse", "system.posix_acl_access", ACL.replace(
        struct.pack("<I", 1234), struct.pack("<I", base + 1234)))
    return name


def picture(vemgr, name):
    """Everything in a VE's layer, with ids as it sees them itself."""
    base, top, found, inodes = vemgr.show(name)["idBase"], upper(vemgr, name), {}, {}
    for directory, names, files in os.walk(top):
        for path in [directory, *(os.path.join(directory, each) for each in [*names, *files])]:
            info, short = os.lstat(path), os.path.relpath(path, top)
            if is_whiteout(path):
                found[short] = "whiteout"
                continue
            content = b""
            if os.path.islink(path):
                content = os.readlink(path)
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    content = file.read()
            attributes = {key: os.getxattr(path, key, follow_symlinks=False)
                          for key in os.listxattr(path, follow_symlinks=False) if not key.startswith((
                              "trusted.overlay.origin", "trusted.overlay.impure", "trusted.overlay.nlink",
                              "trusted.overlay.uuid", "user.overlay."))}
            if "system.posix_acl_access" in attributes:
                attributes["system.posix_acl_access"] = attributes["system.posix_acl_access"].replace(
                    struct.pack("<I", base + 1234), b"1234")
            if "security.capability" in attributes:
                *rest, root = struct.unpack("<6I", attributes["security.capability"])
                attributes["security.capability"] = (*rest, root - base)
            first = inodes.setdefault(info.st_ino, short) if not os.path.isdir(path) else short
            found[short] = (oct(info.st_mode), info.st_uid - base, info.st_gid - base, info.st_mtime_ns, content,
                            attributes, sorted((first, short))[0] if info.st_nlink > 1 else "")
    return found


def test_round_trip(vemgr, filled, there, tmp_path):
    file = tmp_path / "ve"
    before = vemgr.traces()
    vemgr("export", filled, str(file))
    vemgr.assert_traces(before)
    assert file.stat().st_mode & 0o777 == 0o600 and file.stat().st_size < 5 << 20
    assert there.out("import", str(file), "--name", "moved") == "moved\n"
    mine, theirs = vemgr.show(filled), there.show("moved")
    assert abs(mine["idBase"] - theirs["idBase"]) >= 65536
    assert theirs["settings"]["description"] == "text" and theirs["settings"]["publish"] == ""
    one, two = picture(vemgr, filled), picture(there, "moved")
    assert "whiteout" in one.values() and any("trusted.overlay.opaque" in what[5] for what in one.values()
                                              if what != "whiteout")
    assert {path: what for path, what in one.items() if two.get(path) != what} == {} and one.keys() == two.keys()
    assert (upper(there, "moved") / "x/sparse").stat().st_blocks < 1000, "holes stay holes"
    assert look(there, "moved") == look(vemgr, filled)
    assert "exists already" in there("import", str(file), "--name", "moved", code=44).stderr
    with open(file, "rb") as stream:  # a pipe on both sides, and a second one beside the first
        assert there("import", "-", input=stream.read(), text=False).stdout.decode().strip() == filled
    piped = vemgr("export", filled, "-", text=False).stdout
    assert piped[:200] == file.read_bytes()[:200]


def test_addresses_and_what_opens_the_host(vemgr, fresh, tmp_path):
    name = vemgr.create("--address", "auto", "--publish", "18082:80", "--mount",
                        f"{tmp_path}:/mnt", "--feature", "fuse", "--memory-guarantee", "0")
    file = str(tmp_path / "file")
    vemgr("export", name, file)
    address = vemgr.show(name)["network"][0]["address"]
    said = vemgr("import", file, "--name", "twin")
    twin = vemgr.show("twin")
    assert twin["network"][0]["address"] not in ("", address)
    assert "mount = " in said.stderr and "feature = 'fuse'" in said.stderr and "publish = " in said.stderr
    assert {key: twin["settings"][key] for key in ("mount", "feature", "publish")} == {
        "mount": "none", "feature": "none", "publish": ""}
    assert "18082" in vemgr("import", file, "--name", "third", "--trusted", code=78).stderr
    vemgr("destroy", name)
    assert vemgr("import", file, "--trusted").stderr == ""
    again = vemgr.show(name)
    assert again["network"][0]["address"] == address and again["settings"]["mount"] == f"{tmp_path}:/mnt"
    vemgr("set", name, "--address", address)
    vemgr("export", name, file)
    said = vemgr("import", file, "--name", "fourth").stderr
    assert f"{address}" in said and vemgr.show("fourth")["network"][0]["address"] != address


def test_template_in_the_file(vemgr, fresh, there, tmp_path):
    def change(tree):
        (tree / "etc/own").write_text("own\n")

    file, changed = str(tmp_path / "file"), str(tmp_path / "changed")
    vemgr.import_busybox("carried", change=change)
    name = vemgr.create(template="carried")
    vemgr("start", name)
    vemgr("exec", name, "--", "sh", "-c", "echo mine > /etc/mine")
    assert "stop it first" in vemgr("export", name, file, code=32).stderr and not os.path.exists(file)
    vemgr("export", name, file, "--stop")
    assert vemgr.state_of(name) == "running"
    assert "--with-template" in there("import", file, code=91).stderr
    assert [ve["name"] for ve in there.json("list")] == []
    there.import_busybox("carried")
    assert "another one" in there("import", file, code=47).stderr
    vemgr("stop", "--kill", name)
    vemgr("export", name, changed, "--with-template")
    said = there("import", changed).stderr
    stored = said.strip().rpartition(" ")[2]
    assert stored.startswith("carried-") and there.show(name)["template"] == stored
    there("start", name)
    assert there("exec", name, "--", "cat", "/etc/own", "/etc/mine").stdout == "own\nmine\n"
    assert there("import", changed, "--name", "second").stderr == "", "it is here by now"
    assert there("import", file, "--name", "third").stderr == "", "and is found by its content"
    assert len(there.json("template", "list")) == 4
    there("destroy", "--force", name, "second", "third")
    for template in ("carried", stored):
        there("template", "remove", template)
    vemgr("destroy", name)
    vemgr("template", "remove", "carried")


def test_damaged(vemgr, filled, tmp_path):
    """What is found at the beginning, at the end, and by looking at the settings (the rest: tests/unit)."""
    file = tmp_path / "file"
    vemgr("export", filled, str(file), "--with-template")
    whole = file.read_bytes()
    before = vemgr.traces()
    size = struct.unpack("<II", whole[:8])[1]
    manifest = json.loads(whole[8:8 + size])
    assert (manifest["format"], manifest["name"], manifest["trees"]) == (1, filled, 1)

    def framed(**change):
        text = json.dumps(manifest | change).encode()
        return struct.pack("<II", 0x184D2A50, len(text)) + text + whole[8 + size:]

    with vemgr.client() as client:
        for content, why in (
            (b"", "cut off"), (whole[:-60], "cut off in the VE's files"), (whole + b"x", "something follows"),
            # The compression notices most changes, the checksum all.
                (whole[:-200] + bytes([whole[-200] ^ 1]) + whole[-199:], "damaged in the VE's files|checksum does not"),
            (framed(created="then"), "checksum"), (framed(settings={"no": "1"}), "unknown setting"),
            (framed(template="../x"), "template"), (framed(template="new"), "checksum"),
        ):
            file.write_bytes(content)
            ours, theirs = socket.socketpair()
            with ours, theirs, open(file, "rb") as stream, pytest.raises(RemoteError, match=why):
                client.call("Import", {"name": "new", "template": "", "settings": {}, "stream": 0, "hold": 1},
                            [stream.fileno(), theirs.fileno()])
    vemgr.assert_traces(before)
    assert {each["name"] for each in vemgr.json("template", "list")} == {"host", "bb", "bbinit"}


@pytest.mark.parametrize(("verb", "what"), [("export", "client"), ("import", "client"), ("import", "daemon")])
def test_given_up(vemgr, filled, tmp_path, verb, what):
    """The client, or the daemon, is killed in the midst of it: nothing is left."""
    with open(upper(vemgr, filled) / "x/large", "wb") as file:
        for _ in range(8):
            file.write(os.urandom(1 << 20))
    saved = str(tmp_path / "saved")
    vemgr("export", filled, saved)
    before = vemgr.files()
    reader, writer = os.pipe()
    if verb == "export":  # nobody reads
        client = vemgr.popen("export", filled, "-", stdout=writer)
    else:  # and nobody writes to the end
        client = vemgr.popen("import", "-", "--name", "half", stdin=reader)
        with open(saved, "rb") as file:
            os.write(writer, file.read(40_000))
    try:
        eventually(lambda: jobs(vemgr), "it begins", timeout=30)
        if verb == "import":
            eventually(lambda: any(".half.partial" in path for path in vemgr.files()), "it begins", timeout=30)
        if what == "client":
            client.kill()
        else:
            vemgr.kill(vemgr.daemon_pid())
        client.communicate(timeout=30)
        vemgr("list")
        eventually(lambda: not jobs(vemgr), "its process stays", timeout=30)
        eventually(lambda: vemgr.files() == before, lambda: (before, vemgr.files()), timeout=30)
    finally:
        os.close(reader)
        os.close(writer)
    assert vemgr.state_of("half") is None
    eventually(lambda: vemgr("export", filled, saved, code=None).returncode == 0, "it is held", timeout=30)


def test_listed_by_tar(vemgr, filled, tmp_path):
    file = str(tmp_path / "file")
    vemgr("export", filled, file)
    listed = subprocess.run(f"zstd -dc {file} | tar -tvi -f -", shell=True, capture_output=True, text=True, timeout=60)
    assert "./x/f" in listed.stdout and listed.returncode == 0, listed


def test_import_of_openvz(vemgr, fresh, tmp_path):
    file = tmp_path / "117.conf"
    file.write_text('ONBOOT="yes"\nHOSTNAME="old.example"\nOSTEMPLATE="debian-5-x86"\nIP_ADDRESS="192.0.2.1"\n')
    assert "debian-5 not found" in vemgr("import-vz", str(file), code=91).stderr
    said = vemgr.out("import-vz", str(file), "--template", "bb", "--address", "auto")
    assert "1: ONBOOT: on-boot = yes" in said and said.endswith("VE ct117 from template bb\n")
    made = vemgr.show("ct117")
    assert (made["hostname"], made["settings"]["on-boot"], made["template"]) == ("old.example", "yes", "bb")
    vemgr("set", "ct117", "--on-boot", "no")
