# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether KVM works here. That there is a /dev/kvm does not say so: on some nested hosts a guest of it hangs.

A guest that does nothing but say that it has booted has to do so before a deadline. What was found is kept until the
host boots again, or has another kernel for its guests or another QEMU.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from vemgr.compare import marked
from vemgr.compare.commands import new_mark
from vemgr.compare.guests import initrd
from vemgr.compare.guests.kernel import Kernel
from vemgr.compare.journal import Journal

QEMU = "qemu-system-x86_64"
DEADLINE = 20.0  # seconds; a guest that KVM works for is there in one or two
KIND = "trial"


@dataclass(frozen=True)
class Verdict:
    """`accelerator`: kvm or tcg. `why`: what was seen. `host`: for which state of the host it holds."""

    accelerator: str
    why: str
    host: str


def decide(directory: Path, host: str, device: str, boot: Callable[[], str]) -> Verdict:
    """`boot`: tries to boot a guest under KVM; empty, or why that failed."""
    path = directory / "accelerator.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        known = Verdict(**json.loads(path.read_text()))
        if known.host == host:
            return known
    if not os.access(device, os.R_OK | os.W_OK):
        found = Verdict("tcg", f"there is no {device} here that may be opened", host)
    else:
        why = boot()
        found = Verdict("tcg" if why else "kvm", why or "a guest has booted", host)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(asdict(found)))
    new.rename(path)
    return found


def state_of_host(kernel: Kernel) -> str:
    """What a verdict holds for: this boot, this kernel for guests, this QEMU."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    qemu = shutil.which(QEMU)
    return f"{boot} {kernel.version} {os.stat(qemu).st_mtime_ns if qemu else 0}"


def boot(kernel: Kernel, directory: Path, journal: Journal, *, accelerator: str = "kvm",
         deadline: float = DEADLINE) -> str:
    """Empty when a guest has booted; else what it had said last."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    image = directory / "trial.initrd"
    image.write_bytes(initrd.trial())
    mark = new_mark()
    number = journal.add(KIND, mark=mark)
    try:
        process = subprocess.Popen(
            [QEMU, "-nodefaults", "-no-user-config", "-machine", "pc", "-accel", accelerator, "-m", "256",
             "-cpu", "host" if accelerator == "kvm" else "max", "-display", "none", "-serial", "stdio", "-no-reboot",
             "-kernel", str(kernel.image), "-initrd", str(image), "-append", "console=ttyS0 panic=-1"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), marked.VARIABLE: mark})
        try:
            said = _listen(process, deadline)
            ended = process.poll()
        finally:
            process.kill()
            process.communicate()
    finally:
        journal.done(number)
        image.unlink(missing_ok=True)
    if initrd.BOOTED in said:
        return ""
    last = ([line.strip() for line in said.splitlines() if line.strip()] or ["nothing"])[-1]
    how = f"had not booted after {deadline:g} seconds" if ended is None else f"ended before it had booted ({ended})"
    return f"a guest {how}, and had said last: {last[:120]}"


def _listen(process: subprocess.Popen[bytes], seconds: float) -> str:
    assert process.stdout
    said = bytearray()
    end = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while initrd.BOOTED.encode() not in said and selector.select(max(0.0, end - time.monotonic())):
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, end - time.monotonic()))
                break
            said += chunk
    return said.decode(errors="replace")
