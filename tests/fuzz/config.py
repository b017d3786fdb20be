# SPDX-License-Identifier: GPL-2.0-or-later
"""The files that an administrator may edit: what cannot be used is refused with an error of ours, and what can be used
is the same after it was written back."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.fuzz.engine import mutated
from vemgr.api.location import load_config
from vemgr.core.config import Definition, parse_settings
from vemgr.core.errors import VemgrError
from vemgr.runtime.store import Store
from vemgr.templates.record import Record, read_template, write_record

_SETTINGS = {
    "cpus": "1.5",
    "memory": "512M",
    "swap": "1G",
    "pids": "100",
    "cpu-mask": "0-2,5",
    "io-read": "10M/s",
    "hostname": "a.b",
    "init": "/sbin/init --x 'y z'",
    "on-boot": "yes",
    "description": "größe",
}
_HOST = b"""state-dir = "/var/lib/vemgr"
run-dir = "/run/vemgr"
id-first = 1879048192
id-last = 2147483647
table = "vemgr"
cgroup = "vemgr"

[network.front]
bridge = "front0"
subnet = "10.1.2.0/24"
mode = "routed"
"""
_WORDS = [
    b"[",
    b"]",
    b"{",
    b"}",
    b"=",
    b'"',
    b"'",
    b"\n",
    b'"""',
    b"#",
    b".",
    b",",
    b"\0",
    b"\\u0000",
    b"\\uD800",
    b"\xff",
    b"inf",
    b"nan",
    b"1979-05-27",
    b"12:00:00",
    b"0x10",
    b"1e3",
    b"true",
    b"[ve]",
    b"[[ve]]",
    b"[settings]",
    b"[network]",
    b"[" * 3000,
    b"a." * 3000 + b"a=1\n",
    b"{a=" * 2000,
    b"id-base",
    b"links",
    b"format",
    b"started",
    b"unlimited",
    b"default",
    b"front:10.1.2.3",
    b"\xe2\x80\xa8",
    b"\xd9\xa1",
    b"x" * 1000,
    b"../..",
    b"host",
    b"archive",
]


class Configuration:
    name = "config"

    def __init__(self):
        self._top = Path(tempfile.mkdtemp())
        self._store = Store(str(self._top / "ve"))
        definition = Definition(
            name="web1",
            template="host",
            id_base=1879048192,
            created="2026-01-01T00:00:00+00:00",
            settings=parse_settings(_SETTINGS),
            started=True,
        )
        self._store.create(definition)
        self._store.create(replace(definition, name="copy"))
        self._template = self._top / "templates/debian"
        (self._template / "rootfs").mkdir(parents=True)

    def corpus(self):
        write_record(
            self._template, Record(kind="archive", description="x", size=5, init="/sbin/init", init_kind="systemd")
        )
        record = (self._template / "template.toml").read_bytes()
        return [
            b"D" + self._file().read_bytes(),
            b"H" + _HOST,
            b"T" + record,
            b"T" + record.replace(b"archive", b"host") + b'links = ["/usr"]\n',
        ]

    def _file(self):
        return Path(self._store.path("web1")) / "config.toml"

    def mutate(self, rng, corpus):
        data = rng.choice(corpus)
        return data[:1] + mutated(rng, [data[1:], *(other[1:] for other in rng.sample(corpus, 2))], _WORDS)

    def check(self, data):
        try:
            return {b"D": self._definition, b"H": self._host, b"T": self._record}.get(data[:1], self._host)(data[1:])
        except VemgrError as error:
            return str(error)

    def _definition(self, data):
        self._file().write_bytes(data)
        salvaged = self._store.salvage("web1")
        assert salvaged.name == "web1"
        definition = self._store.load("web1")
        self._store.save(definition)
        assert self._store.load("web1") == definition, "read, written, read again"
        return f"good {definition.settings}"

    def _host(self, data):
        path = self._top / "vemgr.toml"
        path.write_bytes(data)
        config = load_config(str(path))
        assert config.state_dir.startswith("/") and "\0" not in config.state_dir + config.run_dir
        return f"good {config}"

    def _record(self, data):
        (self._template / "template.toml").write_bytes(data)
        template = read_template(self._template, "/")
        assert template.name == "debian"
        return f"good {template.kind}"

    def finish(self):
        """Every input was checked whole."""

    def close(self):
        shutil.rmtree(self._top)
