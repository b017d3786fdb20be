# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures for Prometheus of a daemon that runs, scraped and parsed; and that there are none unless asked for."""

import subprocess

from prometheus_client.parser import text_string_to_metric_families

SCRAPE = ("import sys, urllib.request\n"
          "sys.stdout.write(urllib.request.urlopen('http://127.0.0.1:9189/metrics', timeout=30).read().decode())")


def test_scraped_from_the_loopback_and_only_when_asked(make_instance):
    with make_instance() as own:
        ve = own.create()
        own("start", ve)
        maps = f"/proc/{own.daemon_pid()}/net/tcp"
        with open(maps) as file:
            assert ":23E5 " not in file.read()  # 9189
        own.kill(own.daemon_pid())
        own.config.write_text(own.config.read_text() + '[metrics]\nlisten = "127.0.0.1:9189"\n')
        own("list")
        command = own.command()
        run = subprocess.run([*command[:-2], "-c", SCRAPE], capture_output=True, text=True, timeout=60, check=True)
        found = {family.name: family for family in text_string_to_metric_families(run.stdout)}
        (cpu,) = found["vemgr_ve_cpu_seconds"].samples
        assert cpu.name == "vemgr_ve_cpu_seconds_total" and cpu.labels == {"ve": ve} and cpu.value > 0
        assert [sample.value for sample in found["vemgr_ve_up"].samples] == [1]
        assert bool(found["vemgr_ve_memory_bytes"].samples) == ("memory" in own.json("host")["controllers"])
