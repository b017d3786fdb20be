# SPDX-License-Identifier: GPL-2.0-or-later
"""README.md's tour and the man pages' examples on this host, with or without limits: they do what the texts say."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

# With --import-mode=importlib the directory of a test is not on the path.
_spec = importlib.util.spec_from_file_location("tour", Path(__file__).parents[1] / "tour.py")
tour = sys.modules["tour"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tour)


class Reader:
    """Who follows the tour: a shell in which `sudo` and `vemgr` mean an instance of the test's own."""

    def __init__(self, instance, directory):
        self.instance, self.bin = instance, directory
        self.program("sudo", 'exec "$@"')
        self.program("vemgr", f'exec "{sys.executable}" -m vemgr.cli "$@"')

    def program(self, name, text):
        (self.bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.bin / name).chmod(0o755)

    def types(self, line):
        """The line's exit code and what it prints, with the paths of a usual installation."""
        environment = self.instance.environment(LC_ALL="C")
        environment["PATH"] = f"{self.bin}:{environment['PATH']}"
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.instance.netns}", "bash", "-c", line], cwd="/", env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
        )
        return done.returncode, done.stdout.replace(str(self.instance.state), "/var/lib/vemgr")


def test_the_tour_works_as_written(make_instance, tmp_path):
    with make_instance(template=False) as instance:
        reader = Reader(instance, tmp_path)
        tour.follow(reader.types, instance.json("host")["controllers"])
        assert json.loads(reader.types("vemgr list --json")[1]) == []


def test_the_examples_of_the_man_pages_work(make_instance, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "files").mkdir()
    toml = next(tour.displays(tour.PROJECT / "docs/man/vemgr.toml.5"))
    network = re.search(r"^\[network\.backend\]\n(?:.+\n)+", toml, re.MULTILINE)[0]
    with make_instance(template=False) as instance:
        with instance.config.open("a") as config:
            config.write(f'{network}bridge = "vb{instance.tag}"\n')
        instance.import_busybox("debian-12")
        reader = Reader(instance, tmp_path)
        meter = next(filter(os.path.exists, ("/dev/ttyUSB0", "/dev/hwrng", "/dev/ttyS0", "/dev/rtc0")))
        place = {"/srv/files:": f"{tmp_path}/files:", "/etc/motd:": f"{__file__}:", "/dev/ttyUSB0": meter,
                 "-- site": f"-C {tmp_path} site", "-cf - site": f"-C {tmp_path} -cf - site"}
        tour.follow_examples(reader.types, instance.json("host")["controllers"], place)
        assert reader.types("vemgr exec -C /srv web1 -- test -d site")[0] == 0
        assert {ve["name"] for ve in instance.json("list")} >= {"ci", "meter", "files", "web", "db"}


def test_the_examples_are_found():
    assert len(tour.examples()) > 8 and {page for page, _ in tour.examples()} >= {"vemgr.1"}


def test_the_tour_is_found():
    steps = tour.steps()
    assert len(steps) > 10
    assert sum(step.needs_controllers for step in steps) >= 2


def test_what_readme_shows_is_compared():
    assert not tour.differs("web1  running  10.77.0.2", "web1 running   10.71.0.33\n")
    assert not tour.differs("name: a\n...\n", "name: a\nstate: b\nids: c\n")
    assert not tour.differs("", "")
    assert tour.differs("web1  running", "web1  stopped")
    assert tour.differs("", "a warning")
