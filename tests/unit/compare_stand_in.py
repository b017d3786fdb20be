# SPDX-License-Identifier: GPL-2.0-or-later
"""A kind of virtualization that virtualizes nothing: its instances are directories, and its commands run there."""

import os
import signal
import subprocess
import time
from types import SimpleNamespace

from vemgr.compare.driver import DriverFailed, Finished, Resources
from vemgr.compare.noise import Noise
from vemgr.compare.schema import Absent, Column, Figure, Header, Sample, Work, assemble
from vemgr.compare.workloads.workload import Stage

QUIET = Noise(0.0, 0.0, 0.0, 0.0)
RESOURCES = Resources(1, 1 << 29)


class Instance:
    def __init__(self, driver, name):
        self.driver, self.name = driver, name
        self.first_instruction, self.up, self.address = 0.001, 0.002, "127.0.0.1"
        self.running = True

    def run(self, argv, *, timeout, input=b""):
        if not self.running or self.driver.broken:
            raise DriverFailed(f"{self.name} is gone", instance=self.name)
        begin = time.monotonic()
        done = subprocess.run([str(word) for word in argv], input=input, capture_output=True, timeout=timeout)
        return Finished(done.returncode, done.stdout, done.stderr, time.monotonic() - begin)

    def spawn(self, argv):
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, process_group=0)

        def stop():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return SimpleNamespace(stop=stop)

    def memory(self):
        return 1 << 20

    def stop(self):
        self.running = False
        self.driver.instances.remove(self)
        return 0.003


class Driver:
    def __init__(self, name="ve", label="a stand-in", why=""):
        self.name, self.label, self.why = name, label, why
        self.instances, self.started, self.closed, self.broken = [], 0, False, False

    def probe(self):
        return self.why

    def prepare(self, root, resources, directory):
        self.root = root

    def start(self, name, resources):
        self.started += 1
        self.instances.append(Instance(self, name))
        return self.instances[-1]

    def disk_bytes(self):
        return 4096

    def clean(self):
        return []

    def close(self):
        self.closed = True
        while self.instances:
            self.instances[0].stop()


def stage(driver, probe, directory):
    return Stage(driver, RESOURCES, probe, str(directory), f"{driver.name}-")


class Counting:
    """A work that returns what it is told to."""

    def __init__(self, name="count", values=(), unit="ns", better="lower", rounds=3, crowded=True, missing=""):
        self.name = self.title = self.group = name
        self.figures = [Figure(name=name, title=f"title of {name}", unit=unit, better=better)]
        self.needs, self.rounds, self.quick, self.crowded = (), rounds, True, crowded
        self.values, self.why, self.done = iter(values), missing, []

    def missing(self, stage):
        return self.why

    def measure(self, stage):
        self.done.append(stage.driver.name)
        value = next(self.values, 1.0)
        if isinstance(value, BaseException):
            raise value
        return {self.name: value}


def header(works, columns, **options):
    works = [Work(name=work.name, title=work.title, group=work.group, rounds=work.rounds, figures=list(work.figures))
             for work in works]
    columns = [each if isinstance(each, Column) else Column(name=each, label=f"label of {each}") for each in columns]
    return Header(**{"started": "2026-11-23T00:00:00+00:00", "vemgr": "0", "seed": 7, "template": "bb", "cpus": 1,
                     "memory": 1 << 29, "noise": 0.1, "quick": False, "environment": {"kernel": "6"},
                     "works": works, "columns": columns, **options})


def report(works, columns, values, absent=(), complete=True, **options):
    """`values`: from (work, driver) to the values of its only figure; or to dicts, for several figures."""
    head = header(works, columns, **options)
    samples = [Sample(round=number, workload=work, driver=driver, seconds=0.1, noise=QUIET,
                      values=value if isinstance(value, dict) else {work: value})
               for (work, driver), found in values.items() for number, value in enumerate(found, 1)]
    lines = [*samples, *(Absent(workload=work, driver=driver, why=why) for work, driver, why in absent)]
    return assemble(head, lines, complete=complete)
