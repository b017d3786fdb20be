# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of the distribution, where the template has them: what they are told and how they are read."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from vemgr.compare.schema import Better, Figure
from vemgr.compare.workloads.network import serving, unreachable
from vemgr.compare.workloads.workload import LONG, Stage, WorkFailed

_IPERF_PORT = 15998
Measure = Callable[[Stage], float]


@dataclass(frozen=True)
class Application:
    """One figure of a program. `client`: the program of the host that reaches the instance from there."""

    name: str
    title: str
    unit: str
    better: Better
    needs: Sequence[str]
    run: Measure
    group: str = "applications"
    rounds: int = LONG
    quick: bool = False
    crowded: bool = True
    client: str = ""

    @property
    def figures(self) -> Sequence[Figure]:
        return [Figure(name=self.name, title=self.title, unit=self.unit, better=self.better)]

    def missing(self, stage: Stage) -> str:
        if self.client and shutil.which(self.client) is None:
            return f"the host has no {self.client} to be the client"
        return stage.lacks(self.needs) or (unreachable(stage) if self.client else "")

    def measure(self, stage: Stage) -> Mapping[str, float]:
        return {self.name: self.run(stage)}


def number_in(text: str, pattern: str) -> float:
    """The one group of `pattern`. Raises `WorkFailed` where a program speaks otherwise than we know."""
    found = re.search(pattern, text, re.MULTILINE)
    if found is None:
        raise WorkFailed(f"no figure is found in what the program printed: {text[-300:]!r}")
    return float(found[1])


def sysbench(stage: Stage) -> float:
    said = stage.shell(stage.shared(), "sysbench cpu --threads=1 --time=2 run")
    return number_in(said, r"events per second:\s*([0-9.]+)")


class _Side(msgspec.Struct):
    iops: float


class _Job(msgspec.Struct):
    read: _Side
    write: _Side


class _Fio(msgspec.Struct):
    jobs: list[_Job]


def fio(stage: Stage) -> float:
    """Mixed: 70 % reads, 4 KiB, eight at a time."""
    said = stage.shell(stage.shared(), "fio --name=mixed --filename=fio --size=64M --rw=randrw --rwmixread=70 --bs=4k "
                                       "--ioengine=psync --numjobs=8 --thread --group_reporting --direct=1 "
                                       "--time_based --runtime=2 --output-format=json")
    try:
        job = msgspec.json.decode(said[said.index("{"):], type=_Fio).jobs[0]
    except (ValueError, IndexError) as error:  # msgspec's errors are ValueErrors
        raise WorkFailed(f"not the report of fio that was expected: {error}") from error
    return job.read.iops + job.write.iops


class _Sum(msgspec.Struct):
    bits_per_second: float


class _End(msgspec.Struct):
    sum_received: _Sum


class _Iperf(msgspec.Struct):
    end: _End


def iperf3(stage: Stage) -> float:
    """The client is the host's own."""
    with serving(stage, stage.shared(), ["iperf3", "-s", "-p", str(_IPERF_PORT)]) as address:
        stage.shell(stage.shared(), "sleep 1")
        done = subprocess.run(["iperf3", "-c", address, "-p", str(_IPERF_PORT), "-t", "2", "-J", "--connect-timeout",
                               "5000"], capture_output=True, timeout=60, check=False)
    try:
        return msgspec.json.decode(done.stdout, type=_Iperf).end.sum_received.bits_per_second / 8e6
    except ValueError as error:
        raise WorkFailed(f"iperf3: {done.stdout.decode(errors='replace')[-300:]}") from error


def redis(stage: Stage) -> float:
    """GET by ten connections over the loopback of the instance; nothing is saved."""
    instance = stage.shared()
    server = instance.spawn(["redis-server", "--port", "15997", "--save", "", "--dir", stage.directory])
    try:
        stage.shell(instance, "for i in $(seq 100); do redis-cli -p 15997 ping >/dev/null 2>&1 && exit 0; sleep 0.1; "
                              "done; echo redis does not come up >&2; exit 1")
        said = stage.shell(instance, "redis-benchmark -p 15997 -t get -n 50000 -c 10 -q --csv")
    finally:
        server.stop()
    return number_in(said, r'^"GET","([0-9.]+)"')


_NGINX_PORT = 15995
_NGINX = """
user root; pid nginx.pid; error_log error.log; worker_processes 1; daemon off;
events { worker_connections 256; }
http { access_log off; keepalive_requests 1000000; server { listen %d; root pages; } }
"""
_PREPARE_NGINX = """
rm -f nginx.pid; mkdir -p pages logs && head -c 1024 /dev/zero | tr '\\0' x > pages/page && cat > nginx.conf
"""
_AWAIT_NGINX = ("for i in $(seq 100); do [ -s nginx.pid ] && exit 0; sleep 0.1; done; "
                "echo nginx does not come up >&2; cat error.log >&2; exit 1")


@contextlib.contextmanager
def _nginx(stage: Stage) -> Iterator[str]:
    """nginx with one worker and a page of 1 KiB; where its port is."""
    instance = stage.shared()
    stage.shell(instance, f"{{ {_PREPARE_NGINX.strip()}; }} <<'END'\n{_NGINX % _NGINX_PORT}END")
    argv = [stage.where("nginx"), "-p", stage.directory, "-e", "error.log", "-c", f"{stage.directory}/nginx.conf"]
    with serving(stage, instance, argv) as address:
        stage.shell(instance, _AWAIT_NGINX)
        yield f"{address or '127.0.0.1'}:{_NGINX_PORT}"


def _wrk(place: str) -> list[str]:
    return ["wrk", "--threads=1", "--connections=10", "--duration=2s", f"http://{place}/page"]


def _requests(said: str) -> float:
    """Raises `WorkFailed` where not all were answered."""
    if "Non-2xx" in said or "Socket errors" in said:
        raise WorkFailed(f"wrk: {said[-300:]}")
    return number_in(said, r"^Requests/sec:\s*([0-9.]+)")


def nginx(stage: Stage) -> float:
    """wrk and nginx in the same instance."""
    with _nginx(stage):
        return _requests(stage.shell(stage.shared(), shlex.join(_wrk(f"127.0.0.1:{_NGINX_PORT}"))))


def nginx_from_host(stage: Stage) -> float:
    """wrk is the host's own."""
    with _nginx(stage) as place:
        done = subprocess.run(_wrk(place), capture_output=True, timeout=60, check=False, text=True)
    if done.returncode:
        raise WorkFailed(f"wrk: {done.stdout[-300:]}{done.stderr[-300:]}")
    return _requests(done.stdout)


_POSTGRES = """
bin=$(dirname "$1"); data=$PWD/postgres; port=15996
as() { su postgres -s /bin/sh -c "$1"; }
stop() { as "$bin/pg_ctl -D $data -m immediate stop" >/dev/null 2>&1; }
if [ ! -d "$data" ]; then
    mkdir "$data" && chown postgres "$data" && as "$bin/initdb -D $data" >/dev/null || exit 1
    fresh=yes
fi
as "$bin/pg_ctl -D $data -w -l $data/log -o '-p $port -k $data' start" >/dev/null || exit 1
trap stop EXIT
[ -z "$fresh" ] || as "$bin/pgbench -h $data -p $port -i -s 2 postgres" >/dev/null 2>&1 || exit 1
as "$bin/pgbench -h $data -p $port -n -c 4 -T 2 postgres"
"""


def pgbench(stage: Stage) -> float:
    """TPC-B-like transactions of four clients at scale 2, synced."""
    said = stage.shell(stage.shared(), _POSTGRES, stage.where("initdb"), timeout=180)
    return number_in(said, r"^tps = ([0-9.]+)")


_SQLITE = ("rm -f sqlite; { echo 'CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT);'; for i in $(seq 200); do "
           "echo \"INSERT INTO t (b) VALUES ('row $i');\"; done; } > sqlite.sql; "
           "./probe time sqlite3 sqlite '.read sqlite.sql'")


def sqlite3(stage: Stage) -> float:
    """200 inserts, a transaction and a sync each."""
    return 200 / number_in(stage.shell(stage.shared(), _SQLITE), r"^seconds ([0-9.e+-]+)")


_PROJECT = r"""
mkdir -p project && cd project
[ -e f0.c ] || for n in $(seq 0 19); do
    { echo '#include <stdio.h>'; echo '#include <stdlib.h>'; echo '#include <string.h>'
      for f in $(seq 30); do
          echo "int f${n}_$f(int x) { int s = x; for (int i = 0; i < x; i++) s = s * 31 + i % $f; return s; }"
      done; } > f$n.c
done
../probe time sh -c 'for each in *.c; do gcc -O1 -c "$each" -o "${each%.c}.o" || exit 1; done'
"""


def compile_project(stage: Stage) -> float:
    """20 files of C, one after the other."""
    return number_in(stage.shell(stage.shared(), _PROJECT), r"^seconds ([0-9.e+-]+)")


WORKS = (
    Application("sysbench", "sysbench cpu", "events/s", "higher", ("sysbench",), sysbench, crowded=False),
    Application("fio", "fio, mixed 4 KiB, 8 threads", "IO/s", "higher", ("fio",), fio),
    Application("iperf3", "iperf3, TCP from the host", "MB/s", "higher", ("iperf3",), iperf3, client="iperf3"),
    Application("redis", "redis, GET, 10 clients", "/s", "higher",
                ("redis-server", "redis-cli", "redis-benchmark"), redis),
    Application("nginx", "nginx, wrk, 10 connections", "/s", "higher", ("nginx", "wrk", "seq"), nginx),
    Application("nginx-host", "nginx, wrk from the host", "/s", "higher", ("nginx", "seq"), nginx_from_host,
                client="wrk"),
    Application("pgbench", "PostgreSQL, pgbench, 4 clients", "/s", "higher", ("initdb", "pgbench", "su"), pgbench),
    Application("sqlite", "SQLite, synced inserts", "/s", "higher", ("sqlite3", "seq"), sqlite3, crowded=False),
    Application("compile", "compile 20 files of C", "s", "lower", ("gcc", "seq"), compile_project, crowded=False),
)
