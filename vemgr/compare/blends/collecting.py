# SPDX-License-Identifier: GPL-2.0-or-later
"""A root file system out of files of this host, at the paths that they have here.

So a program finds its libraries where its linker has looked for them, and an interpreter its modules, whatever the
distribution's layout is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from vemgr.compare.driver import DriverFailed
from vemgr.compare.tree import command

#: "name => /path (address)", or "/path (address)" for the loader itself.
_LIBRARY = re.compile(r"^\t(?:\S+ => )?(/\S+) \(0x", re.MULTILINE)
_MISSING = re.compile(r"^\t(\S+) => not found", re.MULTILINE)
_ELF = b"\x7fELF"


class Collection:
    """What has been collected below `top`."""

    def __init__(self, top: Path) -> None:
        self.top = top

    def add(self, path: str) -> None:
        """A file, and the symbolic links on the way to it."""
        real = self._walk(path)
        target = f"{self.top}{real}"
        if not os.path.exists(target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copy2(real, target)

    def add_directory(self, path: str) -> str:
        """A directory without what is in it; where it is, which on the host may be behind a link."""
        real = self._walk(path)
        os.makedirs(f"{self.top}{real}", exist_ok=True)
        return real

    def add_tree(self, path: Path, place: str, without: Iterable[str] = ()) -> None:
        """A file, or a directory with what is in it; at `place`. Links are followed."""
        target = f"{self.top}{place}"
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, target, ignore=shutil.ignore_patterns(*without), dirs_exist_ok=True)
        else:
            shutil.copy2(path, target)

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        target = Path(f"{self.top}{path}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def add_libraries(self) -> None:
        """Those of all programs and libraries that are in it. Raises `DriverFailed` for one that this host lacks."""
        files = [str(path) for path in self.top.rglob("*") if path.is_file() and not path.is_symlink()]
        for library in libraries(path for path in files if _is_elf(path)):
            self.add(library)

    def _walk(self, path: str) -> str:
        """Where a path of the host leads, without links; those that it passes are made."""
        at, rest = "/", _parts(path)
        while rest:
            here = os.path.normpath(os.path.join(at, rest.pop(0)))
            if not os.path.islink(here):
                at = here
                continue
            to, link = os.readlink(here), f"{self.top}{here}"
            if not os.path.islink(link):
                os.makedirs(os.path.dirname(link), exist_ok=True)
                os.symlink(to, link)
            at, rest = "/" if to.startswith("/") else at, _parts(to) + rest
        return at


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _is_elf(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == _ELF


def libraries(files: Iterable[str]) -> list[str]:
    """The shared libraries that these need, and those that they need (ldd(1)). Raises `DriverFailed`."""
    # One that is static makes ldd's exit code 1, so that is not looked at.
    try:
        done = subprocess.run(["ldd", *files], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              errors="replace", timeout=120, check=False)
    except subprocess.TimeoutExpired as error:
        raise DriverFailed("ldd had not ended after 120 seconds") from error
    if lacking := _MISSING.search(done.stdout):
        raise DriverFailed(f"the library {lacking[1]} is not installed", library=lacking[1])
    return sorted(set(_LIBRARY.findall(done.stdout)))


def opened_library(name: str) -> str:
    """The path of a library that a program opens by its name. Raises `DriverFailed`."""
    for line in command("ldconfig", "-p").splitlines():
        what, _, path = line.strip().partition(" => ")
        if what.split(" ")[0] == name and "x86-64" in what:
            return path
    raise DriverFailed(f"the library {name} is not installed", library=name)
