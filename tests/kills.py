# SPDX-License-Identifier: GPL-2.0-or-later
"""Kill `vemgr compare` at any moment of any work in any column, and see what the next run's clean-up leaves:

    python -m tests.kills                                          # three moments of each work in each column there is
    python -m tests.kills --driver lxc --workload start --points 20 --seed 7
    python -m tests.kills --archive debian.tar --kernel /var/lib/vemgr/compare/kernel --resume

Without `--archive` the instances have busybox, and so no programs of a distribution. With `--kernel` there are guests.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.kernel.conftest import Instance
from vemgr.compare import drivers, schema
from vemgr.compare.journal import entries
from vemgr.compare.keeping import SAMPLES
from vemgr.compare.workloads.catalogue import ALL

_LIMIT = 1800  # seconds for one run
_GONE = 30.0  # seconds for the kernel to take down what has ended
_TEMPLATE = "bb"


class Stage(Instance):
    """A vemgr of its own, in which `compare` is run and killed."""

    def __init__(self, base: Path, archive: str, kernel: str) -> None:
        super().__init__(base)
        if archive:
            self("template", "import", _TEMPLATE, archive, timeout=_LIMIT)
        else:
            self.import_busybox()
        self.compared = self.state / "compare"
        if kernel:
            self.compared.mkdir()
            (self.compared / "kernel").symlink_to(kernel)
        self._outputs = 0

    def options(self, driver: str, work: str) -> list[str]:
        self._outputs += 1
        return ["compare", "run", "--template", _TEMPLATE, "--driver", driver, "--workload", work, "--repeat", "1",
                "--noise", "100", "--memory", "256M", "--output", str(self.base / f"out-{self._outputs}")]

    def clean(self) -> None:
        """As the next run does, whatever it is to measure."""
        self(*self.options("host", "syscall"), timeout=_LIMIT)

    def end(self) -> None:
        """Where something was left, it may be going while we look."""
        for name in [ve["name"] for ve in self.json("list")]:
            self("destroy", "--force", name, code=None)
        self.close()

    def things(self) -> set[str]:
        """What a run could leave, other than what it keeps on purpose: images, kernels, and what it has found out."""
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        found = {f"mount {line.split()[4]}" for line in mounts if f" {self.compared}/" in line}
        found |= {f"link {link}" for link in self.links()} - {"link lo"}
        found |= {f"VE {ve['name']}" for ve in self.json("list")}
        found |= {f"template {template['name']}" for template in self.json("template", "list")}
        found |= {f"process {pid} {command}" for pid, command in self._processes()}
        for directory in ("journal", "instances", "crun/state", "runc/state", "lxc/state", "guests"):
            found |= {f"file {path}" for path in (self.compared / directory).glob("*")
                      if not path.name.endswith((".ext4", ".initrd")) and path.name not in ("vmlinuz",)}
        return found

    def _processes(self) -> Iterator[tuple[int, str]]:
        for entry in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                root = os.readlink(f"/proc/{entry}/root")
                if str(self.compared) in command or root.startswith(str(self.compared)):
                    yield int(entry), command

    def journal(self) -> list[dict[str, str]]:
        return [entry for path in (self.compared / "journal").glob("*") for entry in entries(path.read_bytes())]


def remains(journal: Sequence[dict[str, str]]) -> list[str]:
    """Of what a killed run had noted: processes by their marks, guests, containers, cgroups by their names."""
    words = [f"VEMGR_COMPARE={entry['mark']}".encode() for entry in journal if "mark" in entry]
    names = [entry["name"] for entry in journal if "name" in entry]
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if any(word in environment for word in words) or any(f"guest={name},".encode() in command
                                                                 for name in names):
                found.append(f"process {pid} {command!r}")
    found += [f"cgroup {path}" for name in names for path in (
        *Path("/sys/fs/cgroup").glob(f"vemgr-compare/{name}"), *Path("/sys/fs/cgroup").glob(f"*/vemgr-compare/{name}"))]
    if shutil.which("podman") and any(name.startswith("cmp-") for name in names):
        listed = subprocess.run(["podman", "ps", "--all", "--format", "{{.Names}}"], capture_output=True, text=True,
                                check=False, timeout=60).stdout.split()
        found += [f"podman's {name}" for name in names if name in listed]
    return found


class Kills:
    """Of one driver and work. `wrong`: what was found, one line each."""

    def __init__(self, stage: Stage, driver: str, work: str, dice: random.Random) -> None:
        self._stage, self._driver, self._work, self._dice = stage, driver, work, dice
        self.points, self.wrong, self.why = 0, list[str](), ""
        self.during: set[str] = set()
        self._began = 0.0

    def run(self, points: int, *, resume: bool) -> None:
        options = self._stage.options(self._driver, self._work)
        process = self._begin(options)
        prepared = self._await_samples(process, options)
        process.wait(_LIMIT)
        seconds = time.monotonic() - self._began
        report = schema.decode((Path(options[-1]) / "report.json").read_bytes(), "report")
        self.why = report.why_absent(self._work, self._driver)
        if self.why:
            return
        before = self._stage.things()
        for number in range(points):
            # Every third at any moment of the run, the others when all is prepared: that is what takes longest.
            early = number % 3 == 2
            moment = self._dice.uniform(0, seconds if early else seconds - prepared)
            self._point(moment, before, early=early, resume=resume and number == points - 1)

    def _begin(self, options: Sequence[str]) -> subprocess.Popen[str]:
        self._began = time.monotonic()
        process: subprocess.Popen[str] = self._stage.popen(*options, stdout=subprocess.DEVNULL,
                                                           stderr=subprocess.DEVNULL)
        return process

    def _await_samples(self, process: subprocess.Popen[str], options: Sequence[str]) -> float:
        """Seconds until it has begun to measure, or has ended."""
        while process.poll() is None and not _kept(Path(options[-1])):
            time.sleep(0.01)
        return time.monotonic() - self._began

    def _point(self, moment: float, before: set[str], *, early: bool, resume: bool) -> None:
        options = self._stage.options(self._driver, self._work)
        process = self._begin(options)
        if not early:
            self._await_samples(process, options)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        # Not with SIGTERM, nor all of its processes: as the kernel's want of memory would.
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.points += 1
        journal = self._stage.journal()
        self.during |= {str(entry["kind"]) for entry in journal}
        kept = _kept(Path(options[-1]))
        if resume and kept:
            self._stage("compare", "run", "--resume", "--output", options[-1], timeout=_LIMIT)
            if _kept(Path(options[-1]))[:len(kept)] != kept:
                self.wrong.append(f"{self._driver} {self._work}: samples were lost")
        else:
            self._stage.clean()
        if left := self._left(before, journal):
            since = "its begin" if early else "its first line"
            self.wrong.append(f"{self._driver} {self._work}, {moment:.3f} s after {since}: {left}")

    def _left(self, before: set[str], journal: Sequence[dict[str, str]]) -> list[str]:
        deadline = time.monotonic() + _GONE
        while (found := [*sorted(self._stage.things() - before), *remains(journal)]) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found


def _kept(output: Path) -> list[bytes]:
    """Its whole lines; nothing where not even the first is whole."""
    path = output / SAMPLES
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--driver", action="append", choices=drivers.NAMES, help="all that there are, when not given")
    parser.add_argument("--workload", action="append", choices=[work.name for work in ALL], help="all, when not given")
    parser.add_argument("--points", type=int, default=3, metavar="N", help="moments of each")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="only N pairs of a column and a work")
    parser.add_argument("--seed", type=int, default=0, help="of what is left to chance")
    parser.add_argument("--archive", default="", metavar="FILE", help="template with the programs that are measured")
    parser.add_argument("--kernel", default="", metavar="DIR", help="what 'vemgr compare kernel' has fetched")
    parser.add_argument("--resume", action="store_true", help="the last of each is taken up again")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of the clearing away
    dice = random.Random(given.seed)
    done: list[Kills] = []
    with tempfile.TemporaryDirectory(prefix="kills-", dir="/var/tmp") as directory:
        stage = Stage(Path(directory), given.archive, given.kernel)
        try:
            there = [row["name"] for row in json.loads(stage("compare", "drivers", "--json", timeout=_LIMIT).stdout)
                     if row["available"]]
            pairs = [(driver, work) for driver in given.driver or there if driver in there
                     for work in given.workload or [work.name for work in ALL]]
            for driver, work in dice.sample(pairs, min(given.sample or len(pairs), len(pairs))):
                kills = Kills(stage, driver, work, dice)
                done.append(kills)
                kills.run(given.points, resume=given.resume)
                print(f"{driver} {work}: {kills.why or f'{kills.points} points, there were {sorted(kills.during)}'}",
                      flush=True)
        finally:
            stage.end()
    wrong = [line for kills in done for line in kills.wrong]
    print(f"{sum(kills.points for kills in done)} points in {len({kills._driver for kills in done if kills.points})} "
          f"columns, {len(wrong)} wrong")
    for line in wrong:
        print(f"WRONG {line}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
