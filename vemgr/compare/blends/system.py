# SPDX-License-Identifier: GPL-2.0-or-later
"""The system of guests that have VEs in them: this very vemgr, with the Python that it runs on, taken from this host.

There is no network and no package source in it, and nothing of the template, which such a guest has as a disk of its
own: VEs in guests see the same files as everything else. The image is made once for each vemgr and Python.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import sys
import sysconfig
from pathlib import Path

import vemgr
from vemgr.compare.blends.collecting import Collection, opened_library
from vemgr.compare.blends.modules import packages
from vemgr.compare.driver import DriverFailed
from vemgr.compare.guests import image, initrd
from vemgr.compare.journal import Entry, Journal
from vemgr.compare.tree import command, first_program

KIND = "collecting"
#: Its name in the guest, where it is the only one.
TEMPLATE = "template"
CONFIG = "/etc/vemgr/vemgr.toml"
#: What the guest's system takes of its memory: kernel, its first file system, Python three times.
MEMORY = 256 << 20
#: What the VEs of one guest may write.
_SPARE = 4 << 30
_LIBRARIES = ("libnftables.so.1", "libseccomp.so.2")  # opened by their names
_CACHE = "/etc/ld.so.cache"  # where they are
_PACKAGES = "/opt/vemgr"
_UP = f"{_PACKAGES}/up"
_NOT_NEEDED = ("test", "tests", "idlelib", "lib2to3", "ensurepip", "tkinter", "turtledemo", "config-*",
               "site-packages", "dist-packages")
_DIRECTORIES = ("/bin", "/dev", "/lib", "/proc", "/root", "/run", "/sbin", "/sys")
_STATE = f"/var/lib/vemgr/templates/{TEMPLATE}"

#: In the guest's first file system, before it says that it is ready: process 1 must have gone to the disk.
BEFORE = f"""b=/bin/busybox
until [ -e /proc/1/root{_UP} ]; do $b usleep 2000; done
$b chroot /proc/1/root /bin/busybox sh {_UP}
"""


def python() -> str:
    """The interpreter itself, not a link to it in a virtual environment."""
    return os.path.realpath(sys.executable)


def environment() -> dict[str, str]:
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "PYTHONPATH": _PACKAGES,
            "PYTHONDONTWRITEBYTECODE": "1"}


def _up() -> str:
    """As a host without systemd starts vemgr (`vemgr.cli.connection`): the keeper, then the daemon. The bridge's VEs
    are reached from outside the guest as if they were on its network: it answers for them."""
    variables = " ".join(f"{key}={value}" for key, value in environment().items())
    start = f"$b env -i {variables} $b setsid {python()} -m"
    return f"""b=/bin/busybox
for word in $($b cat /proc/cmdline); do
    case $word in vemgr.*) eval "${{word#vemgr.}}" ;; esac
done
fail() {{
    echo "vemgr in the guest: $1" >/dev/console
    $b poweroff -f
}}
# SOCKET LOG PROCESS
await() {{
    until [ -S "$1" ]; do
        $b kill -0 "$3" 2>/dev/null || fail "$($b tail -n 1 "$2")"
        $b usleep 2000
    done
}}
$b mount -t cgroup2 cgroup2 /sys/fs/cgroup || fail "no cgroup2"
$b mount -t ext4 -o ro "/dev/$template" {_STATE}/rootfs || fail "no template"
echo 1 >/proc/sys/net/ipv4/conf/eth0/proxy_arp
echo "subnet = \\"$subnet\\"" >>{CONFIG}
$b mkdir -m 700 /run/vemgr
cd /
{start} vemgr.keeper.main --run-dir /run/vemgr </dev/null >/run/vemgr/keeper.log 2>&1 &
await /run/vemgr/keeper.sock /run/vemgr/keeper.log $!
{start} vemgr.daemon.main --config {CONFIG} </dev/null >/run/vemgr/daemon.log 2>&1 &
await /run/vemgr/vemgr.sock /run/vemgr/daemon.log $!
"""


def missing() -> str:
    """Why there can be no such image of this host, with the remedy; empty if it can."""
    try:
        for library in _LIBRARIES:
            opened_library(library)
        packages("vemgr")
        first_program()
    except DriverFailed as error:
        return f"a guest cannot be given this host's vemgr: {error}"
    if shutil.which("ldd") is None:
        return "a guest cannot be given this host's vemgr: ldd is not installed; install the package libc-bin"
    return ""


def build(directory: Path, journal: Journal) -> Path:
    """The image; the one that is there if it is of the same vemgr and Python. Raises `DriverFailed`."""
    directory.mkdir(mode=0o711, parents=True, exist_ok=True)
    path = directory / f"{_key()}.ext4"
    if not path.exists():
        for old in directory.glob("*.ext4"):
            old.unlink()
        scratch = directory / f"collecting-{secrets.token_hex(4)}"
        number = journal.add(KIND, path=str(scratch))  # before it is there: removed whenever this is killed
        try:
            top = scratch / "root"
            scratch.mkdir(mode=0o700)
            collect(top)
            new = scratch / path.name
            image.make(top, new, image.fingerprint(top)[1] + _SPARE)
            new.rename(path)
        finally:
            undo({"path": str(scratch)})
            journal.done(number)
    return path


def collect(top: Path) -> None:
    """Make the tree."""
    found = Collection(top)
    busybox = initrd.busybox()
    if busybox is None:
        raise DriverFailed("there is no static busybox for the guests", remedy="install the package busybox-static")
    for each in _DIRECTORIES:
        found.add_directory(each)
    found.add_tree(busybox, f"{found.add_directory('/bin')}/busybox")
    stdlib = sysconfig.get_path("stdlib")
    found.add_tree(Path(stdlib), stdlib, _NOT_NEEDED)
    for path in packages("vemgr").values():
        found.add_tree(path, f"{_PACKAGES}/{path.name}")
    # With the last two Python finds a library that it is to open.
    for file in (python(), *map(opened_library, _LIBRARIES), "/sbin/ldconfig", _CACHE):
        found.add(file)
    found.add_libraries()
    _configure(found)
    # What is not compiled here would be compiled at each boot. Isolated: whoever calls it may stand in a directory of
    # somebody else's, with a compileall.py in it.
    command(python(), "-I", "-m", "compileall", "-q", "-s", str(top), "-p", "/", f"{top}{stdlib}", f"{top}{_PACKAGES}",
            timeout=600)


def _configure(found: Collection) -> None:
    (found.top / f".{_STATE}/rootfs").mkdir(parents=True)
    found.write(f"{_STATE}/template.toml", 'format = 1\nkind = "archive"\n')
    found.write(CONFIG, 'lxcfs = "off"\nmode = "routed"\n')
    found.write("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
    found.write("/etc/group", "root:x:0:\n")
    found.write(_UP, _up(), 0o755)


def _key() -> str:
    """Of what the image is made from, without looking at all of it: installing a package changes its directory."""
    own = Path(vemgr.__file__).parent
    looked_at = [path for path in sorted(own.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    looked_at += sorted({path.parent for path in packages("vemgr").values()})
    looked_at += [path for path in (Path(python()), initrd.busybox(), Path(_CACHE)) if path and path.exists()]
    parts = [sys.version, _up(), *((str(path), os.stat(path).st_mtime_ns) for path in looked_at)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def undo(entry: Entry) -> str | None:
    if not os.path.isdir(entry["path"]):
        return None
    shutil.rmtree(entry["path"])
    return f"directory {entry['path']}"
