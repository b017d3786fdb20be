# SPDX-License-Identifier: GPL-2.0-or-later
"""What figures depend on besides the kind of virtualization, for the reader; and the host's counters of disturbance."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from pathlib import Path

from vemgr.compare.noise import Counters

_CPU = Path("/sys/devices/system/cpu")
_PROGRAMS = {"QEMU": ("qemu-system-x86_64", "--version"), "libvirt": ("libvirtd", "--version"),
             "crun": ("crun", "--version"), "runc": ("runc", "--version"), "podman": ("podman", "--version"),
             "LXC": ("lxc-start", "--version"), "systemd-nspawn": ("systemd-nspawn", "--version")}


def describe(directory: Path) -> dict[str, str]:
    """`directory`: where instances have their disks."""
    facts = {
        "host": platform.node(),
        "kernel": f"{platform.release()} {platform.machine()}",
        "CPU": f"{os.cpu_count()} x {_cpu_model()}",
        "governor": _read(_CPU / "cpu0/cpufreq/scaling_governor") or "unknown (no cpufreq)",
        "this host is": _virtualization(),
        "mitigations": _mitigations(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') >> 20} MiB",
        "cgroup v2 controllers": _controllers(),
        "file system": _said(["stat", "-f", "-c", "%T", str(directory)]) or "unknown",
        "load before": " ".join(_read("/proc/loadavg").split()[:3]),
        "Python": platform.python_version(),
    }
    versions = {name: _said(list(argv)) for name, argv in _PROGRAMS.items() if shutil.which(argv[0])}
    return {**facts, **{name: version for name, version in versions.items() if version}}


def counters() -> Counters:
    fields = _read("/proc/stat").splitlines()[:1] or ["cpu 0"]
    ticks = [int(word) for word in fields[0].split()[1:9]]  # guest time, which follows, is in user time already
    return Counters(time.monotonic(), sum(ticks), ticks[7] if len(ticks) > 7 else 0,
                    _waited("cpu"), _waited("memory"), _waited("io"))


def _waited(for_: str) -> int:
    for line in _read(f"/proc/pressure/{for_}").splitlines():
        if line.startswith("some"):
            return int(line.rpartition("total=")[2])
    return 0


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _said(argv: list[str]) -> str:
    """The first line that a program prints, or nothing."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                              timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next(iter(done.stdout.strip().splitlines()), "")


def _cpu_model() -> str:
    lines = [line.partition(":") for line in _read("/proc/cpuinfo").splitlines()]
    return next((value.strip() for key, _, value in lines if key.strip() == "model name"), "unknown")


def _virtualization() -> str:
    if shutil.which("systemd-detect-virt"):
        found = _said(["systemd-detect-virt", "--vm"])
        if found:
            return "no virtual machine" if found == "none" else f"a virtual machine ({found})"
    flags = _read("/proc/cpuinfo")
    return "a virtual machine" if " hypervisor" in flags else "no virtual machine, as far as its CPU says"


def _mitigations() -> str:
    """Of each weakness for which the kernel pays; the others cost no time."""
    files = sorted((_CPU / "vulnerabilities").glob("*"))
    found = [f"{file.name} ({text.partition(':')[2].partition(';')[0].strip()})" for file in files
             if (text := _read(file)).startswith("Mitigation")]
    return ", ".join(found) or "none"


def _controllers() -> str:
    for mount in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        if os.path.exists(f"{mount}/cgroup.controllers"):
            return _read(f"{mount}/cgroup.controllers") or "none"
    return "no cgroup v2"
