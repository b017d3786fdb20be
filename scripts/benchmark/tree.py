# SPDX-License-Identifier: GPL-2.0-or-later
"""The root file system that all contenders run: two static programs and the directories that each wants to find."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from benchmark.process import run

_DIRECTORIES = ("bin", "sbin", "usr", "etc", "proc", "sys", "dev", "run", "tmp", "root", "var")


def make_tree(path: Path, *, init: bool = True, owner: int = 0) -> Path:
    """`init`: with a /sbin/init. `owner`: host id that all of it belongs to, for a user namespace without id-mapped
    mounts. Raises `Failed` without a compiler."""
    for name in _DIRECTORIES:
        (path / name).mkdir(parents=True)
    program = path / "bin/true"
    run(["gcc", "-O2", "-static", "-s", "-o", str(program), str(Path(__file__).with_name("tiny.c"))])
    if init:
        shutil.copy2(program, path / "sbin/init")
    # systemd-nspawn wants to see an operating system.
    (path / "etc/os-release").write_text("ID=bench\n")
    (path / "etc/passwd").write_text("root:x:0:0:root:/:/bin/true\n")
    (path / "etc/group").write_text("root:x:0:\n")
    if owner:
        for directory, directories, files in os.walk(path):
            for name in (".", *directories, *files):
                os.chown(f"{directory}/{name}", owner, owner)
    return path
