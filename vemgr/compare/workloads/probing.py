# SPDX-License-Identifier: GPL-2.0-or-later
"""Building the probe: once for each source, statically, so that it runs in any template of this architecture."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from vemgr.compare.workloads.workload import Probe
from vemgr.core.errors import SystemFailure

_SOURCE = Path(__file__).with_name("probe.c")
_FLAGS = ("-std=c11", "-O2", "-static", "-s")


def build_probe(directory: Path) -> Probe:
    """The program, below `directory`. Raises `SystemFailure` where there is no compiler, or no static C library."""
    source = _SOURCE.read_bytes()
    path = directory / f"probe-{hashlib.sha256(source + ' '.join(_FLAGS).encode()).hexdigest()[:12]}"
    if not path.exists():
        if shutil.which("gcc") is None:
            raise SystemFailure("the program that measures cannot be built: there is no gcc",
                                remedy="install gcc and the static C library (Debian: gcc libc6-dev)")
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = directory / f".probe-{os.getpid()}"
        done = subprocess.run(["gcc", *_FLAGS, "-o", str(partial), str(_SOURCE)], capture_output=True, text=True,
                              timeout=120, check=False)
        if done.returncode:
            raise SystemFailure(f"the program that measures cannot be built: {done.stderr.strip()[-300:]}",
                                remedy="it needs the static C library (Debian: libc6-dev, Fedora: glibc-static)")
        partial.rename(path)
    return Probe(str(path), path.read_bytes())
