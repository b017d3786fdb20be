# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk of a known speed, in memory (null_blk, Documentation/block/null_blk.rst), with BFQ: so slow that it is what
VEs wait for. Weights mean nothing on a disk that the CPUs cannot keep busy."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from benchmark.measure import Failed
from benchmark.process import run

_MIB, _SPEED = 1024, 20  # MiB, MB/s
_DEVICES = Path("/sys/kernel/config/nullb")
_TIMER = 2  # a request takes its time


@contextlib.contextmanager
def slow_disk(mountpoint: Path) -> Iterator[Path]:
    """A file system on it, mounted there. Raises `Failed` where the kernel has no null_blk."""
    run(["modprobe", "-a", "null_blk", "bfq"])
    name = f"vb{os.getpid()}"
    device = _DEVICES / name
    try:
        device.mkdir()
        for key, value in (("memory_backed", 1), ("size", _MIB), ("irqmode", _TIMER), ("mbps", _SPEED), ("power", 1)):
            (device / key).write_text(str(value))
        node = name if Path(f"/dev/{name}").exists() else f"nullb{(device / 'index').read_text().strip()}"
        Path(f"/sys/block/{node}/queue/scheduler").write_text("bfq")
        run(["mkfs.ext4", "-q", f"/dev/{node}"])
        mountpoint.mkdir()
        run(["mount", f"/dev/{node}", str(mountpoint)])
        mountpoint.chmod(0o711)
        yield mountpoint
    except OSError as error:
        raise Failed(f"no disk of null_blk: {error}") from error
    finally:
        with contextlib.suppress(Failed):
            run(["umount", "-l", str(mountpoint)])
        with contextlib.suppress(OSError):
            (device / "power").write_text("0")
            device.rmdir()
