# SPDX-License-Identifier: GPL-2.0-or-later
"""The connection to libvirt: the machine's own daemon where one answers, otherwise libvirt's driver for QEMU in this
process, which needs none.

libvirt-python is imported here and nowhere else, and only when guests are asked for.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vemgr.compare.driver import DriverFailed

if TYPE_CHECKING:
    import libvirt

_SOCKETS = ("/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock")
SYSTEM = "qemu:///system"
# A socket's path may have 107 bytes (unix(7)), and those of libvirt's monitors are long.
_RUN = Path("/run/vemgr-compare")
# Guests of ours are root's, and nobody but root gets to their files. Nothing of the machine's cgroups is touched: in
# our process libvirt would see those that we are in as the ones to begin from.
_CONFIGURATION = """user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = [ ]
stdio_handler = "file"
namespaces = [ ]
"""
# It looks up its own account even so, which Debian makes with the whole daemon only.
_NO_ACCOUNT = "Failed to parse user"
_ACCOUNT = "make the account, as scripts/prepare-compare does, or install libvirt-daemon-system"
_events: list[threading.Thread] = []
_failures: list[DriverFailed] = []


def module() -> Any:
    """libvirt-python. Raises `DriverFailed` where it is not installed."""
    # Read at its first import, and by the processes that it forks: it would print its warnings.
    _RUN.mkdir(mode=0o700, exist_ok=True)
    os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", f"3:file:{_RUN}/libvirt.log")
    try:
        import libvirt  # noqa: PLC0415
    except ImportError as error:
        raise DriverFailed("libvirt's Python binding is not installed",
                           remedy="install the package python3-libvirt, or say pip install 'vemgr[compare]'") from error
    # It would print every error, beside raising it.
    libvirt.registerErrorHandler(lambda *_: None, None)
    return libvirt


def choose(uri: str, sockets: tuple[str, ...] = _SOCKETS) -> str:
    """The connection to make: the one that was asked for, the daemon's, or an empty text for one without."""
    return uri or (SYSTEM if any(map(_answers, sockets)) else "")


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def files(uri: str, directory: Path) -> Path:
    """Where the guests' files are. The daemon's guests belong to a user of their own, who does not get to ours."""
    key = hashlib.sha256(str(directory).encode()).hexdigest()[:8]
    return Path("/var/lib/libvirt/images") / f"vemgr-compare-{key}" if uri else directory


def ports(uri: str, directory: Path) -> Path:
    """Where the sockets of their serial ports are."""
    key = hashlib.sha256(str(directory).encode()).hexdigest()[:8]
    return Path("/var/lib/libvirt/qemu") / f"vemgr-compare-{key}" if uri else _RUN / "ports"


def connect(uri: str, directory: Path) -> libvirt.virConnect:
    """Raises `DriverFailed`."""
    libvirt = module()
    if uri:
        return _opened(libvirt, uri)
    if _failures:  # the driver comes up once in a process; what it says afterwards explains nothing
        raise _failures[0]
    root = _own_root()
    _start_events(libvirt)
    try:
        return _opened(libvirt, f"qemu:///embed?root={root}")
    except DriverFailed as failure:
        _failures.append(failure)
        raise


def _opened(libvirt: Any, uri: str) -> libvirt.virConnect:
    try:
        return libvirt.open(uri)
    except libvirt.libvirtError as error:
        remedy = _ACCOUNT if _NO_ACCOUNT in str(error) else ""
        raise DriverFailed(f"libvirt does not connect to {uri}: {error}", remedy=remedy, uri=uri) from error


def _own_root() -> Path:
    """The directory of libvirt's driver in this process, which locks it until the process ends. What it has found out
    of QEMU, which takes seconds, is for all."""
    clean()
    root, cache = _RUN / f"embed-{os.getpid()}", _RUN / "cache"
    if not root.exists():
        cache.mkdir(mode=0o700, exist_ok=True)
        (root / "etc").mkdir(mode=0o700, parents=True)
        (root / "etc/qemu.conf").write_text(_CONFIGURATION)
        (root / "cache").symlink_to(cache)
        atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def clean() -> None:
    """Remove what the driver in processes that have gone has left; guests of theirs are not ended by that."""
    for path in _RUN.glob("embed-*"):
        if not os.path.exists(f"/proc/{path.name.removeprefix('embed-')}"):
            shutil.rmtree(path, ignore_errors=True)


def _start_events(libvirt: Any) -> None:
    """libvirt's driver in this process hears of its guests by a loop that somebody has to turn."""
    if _events:
        return
    libvirt.virEventRegisterDefaultImpl()

    def turn() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    _events.append(threading.Thread(target=turn, daemon=True, name="libvirt"))
    _events[0].start()
