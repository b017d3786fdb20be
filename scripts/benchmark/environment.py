# SPDX-License-Identifier: GPL-2.0-or-later
"""What a figure depends on besides the code: printed with it, and watched while it is measured."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import vemgr
from benchmark.measure import Failed
from benchmark.process import run

MOST_STEAL = 0.05
_LOOK = 2.0  # seconds
_MOST_BUSY = 0.25
_MOST_CLOCK_STEP = 0.001  # seconds
_CPU = Path("/sys/devices/system/cpu")
_VERSIONS = ("crun", "podman", "systemd-nspawn")


def describe(directory: Path) -> dict[str, str]:
    """The host, for a reader. `directory`: where all contenders keep their files."""
    facts = {
        "vemgr": f"{vemgr.__version__} {_commit()}".strip(),
        "kernel": f"{platform.release()} {platform.machine()}",
        "cpus": f"{os.cpu_count()} x {_cpu_model()}",
        "governor": _read(_CPU / "cpu0/cpufreq/scaling_governor") or "unknown (no cpufreq here)",
        "virtual machine": _virtualisation(),
        "mitigations": _mitigations(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') >> 20} MiB",
        "controllers": _read("/sys/fs/cgroup/cgroup.controllers") or "none",
        "file system": run(["stat", "-f", "-c", "%T", str(directory)]).strip() + f" ({directory})",
        "python": platform.python_version(),
        "load": _read("/proc/loadavg"),
        "busy": _busy(),
        "steal since boot": f"{_share(CpuTimes(), CpuTimes.now()):.1%}",
    }
    return {**facts, **{name: _version(name) for name in _VERSIONS}}


@dataclass(frozen=True)
class CpuTimes:
    """Ticks of all CPUs since boot: in total, those that the hypervisor gave to somebody else, and those in which they
    had nothing to do (proc(5), stat)."""

    total: int = 0
    stolen: int = 0
    idle: int = 0

    @staticmethod
    def now() -> CpuTimes:
        numbers = [int(word) for word in _read("/proc/stat").splitlines()[0].split()[1:]]
        # Guest time, which follows, is in user time already.
        return CpuTimes(sum(numbers[:8]), numbers[7], numbers[3] + numbers[4])


def _busy() -> str:
    """What others do here. Who passes work from process to process waits for a CPU more often than who does not, and
    so turns do not make up for it."""
    before = CpuTimes.now()
    time.sleep(_LOOK)
    after = CpuTimes.now()
    share = 1 - (after.idle - before.idle) / max(1, after.total - before.total)
    return f"{share:.0%} of the CPU time, by others" + (", TOO MUCH TO TRUST THE FIGURES" if share > _MOST_BUSY else "")


def _share(before: CpuTimes, after: CpuTimes) -> float:
    return (after.stolen - before.stolen) / max(1, after.total - before.total)


@dataclass
class Watch:
    """From its making to `complaints`: whether the host was such that a figure can be believed."""

    before: CpuTimes = field(default_factory=CpuTimes.now)
    offset: float = field(default_factory=lambda: time.time() - time.monotonic())

    def steal(self) -> float:
        return _share(self.before, CpuTimes.now())

    @staticmethod
    def load() -> str:
        """Of the last minute, to be seen beside the number of CPUs. Ours is part of it, so it proves nothing alone."""
        return _read("/proc/loadavg").split()[0]

    def complaints(self) -> list[str]:
        found = []
        if (steal := self.steal()) > MOST_STEAL:
            found.append(f"steal {steal:.1%}, more than {MOST_STEAL:.0%}")
        step = time.time() - time.monotonic() - self.offset
        if abs(step) > _MOST_CLOCK_STEP:  # the time of the first instruction is one of the real-time clock
            found.append(f"the clock was stepped by {step * 1000:+.1f} ms")
        return found


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _cpu_model() -> str:
    lines = [line.partition(":") for line in _read("/proc/cpuinfo").splitlines()]
    return next((value.strip() for key, _, value in lines if key.strip() == "model name"), "unknown")


def _virtualisation() -> str:
    if shutil.which("systemd-detect-virt") is None:
        return "unknown"
    done = subprocess.run(["systemd-detect-virt"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _mitigations() -> str:
    """What the kernel pays for: "Mitigation: ..." of each weakness; the rest does not cost time."""
    files = sorted((_CPU / "vulnerabilities").glob("*"))
    found = [f"{file.name} ({text.partition(':')[2].partition(';')[0].strip()})" for file in files
             if (text := _read(file)).startswith("Mitigation")]
    return ", ".join(found) or "none"


def _version(program: str) -> str:
    if shutil.which(program) is None:
        return "not installed"
    try:
        return run([program, "--version"]).splitlines()[0]
    except (Failed, IndexError) as error:
        return f"does not say: {error}"


def _commit() -> str:
    root = Path(__file__).parents[2]
    git = ["git", "-C", str(root), "-c", f"safe.directory={root}"]
    try:
        changed = run([*git, "status", "--porcelain", "--untracked-files=no"]).strip()
        return run([*git, "rev-parse", "--short", "HEAD"]).strip() + ("+changes" if changed else "")
    except Failed:
        return ""
