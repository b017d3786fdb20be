# SPDX-License-Identifier: GPL-2.0-or-later
"""The file tree of an instance that is no VE and no guest: an overlay over the template, as a VE has.

Without it the runtimes that know no layers would all write to one tree, and a workload of one would be seen in another.
It is mounted before the clock of a start runs, which is in favour of those runtimes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib import resources
from pathlib import Path

from vemgr.compare.driver import DriverFailed
from vemgr.compare.journal import Entry, Journal

#: Where process 1 is in every instance, and where it leaves the time of its first instruction.
FIRST, STAMP = "/.vemgr-first", "/.vemgr-stamp"
KIND = "tree"


def first_program() -> Path:
    """Process 1 of every instance (first.c). Raises `DriverFailed`."""
    path = Path(str(resources.files("vemgr.compare").joinpath("vemgr-first")))
    if not path.is_file():
        raise DriverFailed(f"{path} has not been built", path=path,
                           remedy="install vemgr, or say 'python3 setup.py build_ext --inplace' in a checkout")
    return path


def command(*argv: str, instance: str = "", timeout: float = 120) -> str:
    """Run a program of the host; what it printed. Raises `DriverFailed` with the last line of its complaint."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                              timeout=timeout, check=False)
    except FileNotFoundError as error:
        raise DriverFailed(f"{argv[0]} is not installed", command=argv[0]) from error
    except subprocess.TimeoutExpired as error:
        raise DriverFailed(f"'{' '.join(argv)}' had not ended after {timeout:g} seconds", command=argv[0]) from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise DriverFailed(f"'{' '.join(argv)}' failed: {lines[-1]}", command=argv[0], instance=instance)
    return done.stdout


class InstanceTree:
    """`root` is mounted from the making until `remove`. Raises `DriverFailed`."""

    def __init__(self, name: str, lower: Path, directory: Path, journal: Journal) -> None:
        self._base = directory / "instances" / name
        self.root, self.upper = self._base / "root", self._base / "upper"
        self._journal = journal
        if any(character in f"{lower}{self._base}" for character in ":,\\"):
            raise DriverFailed(f"{lower} or {self._base} cannot be layers of an overlay: one of ':,\\' is in the path",
                               instance=name)
        self._number = journal.add(KIND, path=str(self._base))
        try:
            for path in (self.root, self.upper, self._base / "work"):
                path.mkdir(mode=0o755, parents=True)
            shutil.copy(first_program(), f"{self.upper}{FIRST}")
            command("mount", "-t", "overlay", "overlay", "-o",
                    f"lowerdir={lower},upperdir={self.upper},workdir={self._base}/work", str(self.root), instance=name)
        except BaseException:
            self.remove()
            raise

    @property
    def stamp(self) -> Path:
        return Path(f"{self.upper}{STAMP}")

    def disk_bytes(self) -> int:
        return disk_bytes(self.upper)

    def remove(self) -> None:
        undo({"path": str(self._base)})
        self._journal.done(self._number)


def undo(entry: Entry) -> str | None:
    """Unmount and remove what `InstanceTree` has made."""
    base = entry["path"]
    if not os.path.isdir(base):
        return None
    if os.path.ismount(f"{base}/root"):
        command("umount", f"{base}/root")
    if _mounted_below(base):  # never walk into something that is not ours
        raise DriverFailed(f"{base} cannot be removed: something is still mounted in it", path=base,
                           remedy=f"umount what 'findmnt -R {base}/root' shows")
    shutil.rmtree(base)
    return f"tree {base}"


def _mounted_below(base: str) -> bool:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return any(line.split()[4].startswith(f"{base}/") for line in file)


def disk_bytes(path: Path) -> int:
    """Bytes of disk below a directory, blocks as the file system counts them."""
    total = os.lstat(path).st_blocks
    for directory, names, files in os.walk(path):
        total += sum(os.lstat(os.path.join(directory, name)).st_blocks for name in (*names, *files))
    return total * 512
