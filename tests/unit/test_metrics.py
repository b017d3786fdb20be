# SPDX-License-Identifier: GPL-2.0-or-later
"""What Prometheus is offered, read with the official parser, and where."""

import asyncio
import contextlib
import os
import stat

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vemgr.core.beancounters import beancounters
from vemgr.core.config import parse_settings
from vemgr.core.errors import BadParameter, BadValue
from vemgr.core.host import HostConfig
from vemgr.core.metrics import MetricsConfig
from vemgr.daemon.scraping import Scraping
from vemgr.runtime.observing.metrics import exposition

READINGS = {"cpu.stat.usage_usec": 2_500_000, "cpu.stat.nr_throttled": 3, "memory.current": 4096, "memory.peak": 8192,
            "memory.events.max": 1, "memory.events.oom_kill": 0, "pids.current": 5, "link.in": 7, "link.in_dropped": 0,
            "link.out": 8, "link.out_dropped": 2}


def scraped(text):
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_names_units_and_what_is_left_out():
    settings = parse_settings({"cpus": "1.5", "memory": "64M"})
    counters = beancounters(READINGS, settings, frozenset({"cpu", "memory", "pids"}), (500, 0), {})
    found = scraped(exposition([{"name": "web1", "state": "running", "counters": counters},
                                {"name": "db", "state": "stopped", "counters": []}], "1.2").decode())
    values = {name: {sample.labels.get("ve"): sample.value for sample in family.samples}
              for name, family in found.items()}
    assert found["vemgr_info"].samples[0].labels == {"version": "1.2"}
    assert values["vemgr_ve_up"] == {"web1": 1, "db": 0}
    assert values["vemgr_ve_cpu_seconds"] == {"web1": 2.5} and found["vemgr_ve_cpu_seconds"].type == "counter"
    assert values["vemgr_ve_cpu_limit_cpus"] == {"web1": 1.5}
    assert values["vemgr_ve_cpu_guarantee_cpus"] == {"web1": 0.5}
    assert values["vemgr_ve_memory_bytes"] == {"web1": 4096} and found["vemgr_ve_memory_bytes"].type == "gauge"
    assert values["vemgr_ve_memory_limit_bytes"] == {"web1": 64 << 20}
    assert values["vemgr_ve_network_transmit_drops"] == {"web1": 2}
    assert values["vemgr_ve_processes_limit"] == values["vemgr_ve_io_read_bytes"] == {}  # unlimited; not available
    text = exposition([], "1").decode()
    assert all(line.split()[2].endswith("_total") for line in text.splitlines()
               if line.startswith("# TYPE") and line.endswith(" counter"))


@pytest.mark.parametrize(("text", "address", "path", "local"), [
    ("off", None, "", True), ("127.0.0.1:9189", ("127.0.0.1", 9189), "", True), ("[::1]:1", ("::1", 1), "", True),
    ("0.0.0.0:9189", ("0.0.0.0", 9189), "", False), ("/run/m.sock", None, "/run/m.sock", True),
])
def test_where(text, address, path, local):
    config = HostConfig.from_mapping({"metrics": {"listen": text}}).metrics
    assert (config.address, config.path, config.local) == (address, path, local)


@pytest.mark.parametrize("text", ["", ":9189", "9189", "localhost:9189", "*:9189", "127.0.0.1", "127.0.0.1:0",
                                  "127.0.0.1:65536", "::1:9189", "run/m.sock", "/" + "x" * 107, 9189, "[]:1"])
def test_where_not(text):
    with pytest.raises(BadValue, match=r"metrics\.listen"):
        HostConfig.from_mapping({"metrics": {"listen": text}})


def test_only_what_is_known():
    with pytest.raises(BadParameter, match=r"metrics\.port"):
        HostConfig.from_mapping({"metrics": {"port": 1}})
    with pytest.raises(BadValue, match="not a table"):
        HostConfig.from_mapping({"metrics": "on"})
    assert HostConfig().metrics.listen == "off"


async def ask(path, request):
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(request)
    reply = b""
    with contextlib.suppress(ConnectionError):  # so much is not read to its end
        reply = await reader.read()
    writer.close()
    return reply.partition(b"\r\n\r\n")


def test_as_much_of_http_as_is_needed(tmp_path):
    path = str(tmp_path / "m.sock")

    async def answer():
        return "text/plain", b"x 1\n"

    async def story():
        server = Scraping(MetricsConfig(path), answer)
        await server.open()
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        head, _, body = await ask(path, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n") and b"Content-Length: 4\r\n" in head and body == b"x 1\n"
        assert (await ask(path, b"HEAD /metrics?a=b HTTP/1.1\r\n\r\n"))[2] == b""
        assert b" 404 " in (await ask(path, b"GET / HTTP/1.1\r\n\r\n"))[0]
        assert b" 405 " in (await ask(path, b"POST /metrics HTTP/1.1\r\n\r\n"))[0]
        assert (await ask(path, b"x" * 20000))[0] == b""
        idle = [await asyncio.open_unix_connection(path) for _ in range(8)]
        assert b" 503 " in (await ask(path, b""))[0]
        for _, writer in idle:
            writer.close()
        second = Scraping(MetricsConfig(path), answer)
        server.close()
        await second.open()
        assert (await ask(path, b"GET /metrics HTTP/1.1\r\n\r\n"))[2] == b"x 1\n"
        second.close()
        assert not os.path.exists(path)

    asyncio.run(asyncio.wait_for(story(), 30))


def test_a_place_that_is_taken_is_said_and_stays(tmp_path, caplog):
    taken = tmp_path / "file"
    taken.write_text("mine")
    asyncio.run(Scraping(MetricsConfig(str(taken)), None).open())
    assert "cannot be offered" in caplog.text and taken.read_text() == "mine"
