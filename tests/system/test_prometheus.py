# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures as a real Prometheus reads them."""

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

CONFIG = Path("/etc/vemgr/vemgr.toml")
METRICS, SERVER = "127.0.0.1:9189", "127.0.0.1:19090"
SCRAPE = f"scrape_configs:\n- job_name: vemgr\n  scrape_interval: 1s\n  static_configs:\n  - targets: ['{METRICS}']\n"


@pytest.fixture
def published(vemgr, systemctl):
    assert not CONFIG.exists()
    CONFIG.parent.mkdir(exist_ok=True)
    CONFIG.write_text(f'[metrics]\nlisten = "{METRICS}"\n')
    systemctl("restart", "vemgr")
    yield
    CONFIG.unlink()
    systemctl("restart", "vemgr")


@pytest.fixture
def prometheus(published, tmp_path, cannot):
    """Asks a Prometheus, which scrapes vemgr each second: [(labels, value)]."""
    if shutil.which("prometheus") is None:
        cannot("prometheus is not installed")
    (tmp_path / "prometheus.yml").write_text(SCRAPE)
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
             f"--web.listen-address={SERVER}"], stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def ask(query):
        address = f"http://{SERVER}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        try:
            with urllib.request.urlopen(address, timeout=20) as answer:
                found = json.load(answer)
        except OSError:
            assert server.poll() is None, (tmp_path / "log").read_text()[-2000:]
            return []
        return [(each["metric"], float(each["value"][1])) for each in found["data"]["result"]]

    yield ask
    server.terminate()
    server.wait(timeout=60)


def test_a_real_prometheus_knows_the_ves(make_ve, prometheus, until):
    ve = make_ve("scraped", memory="64M")
    (labels, value), = until(lambda: prometheus('vemgr_ve_up{ve="scraped"}'), 90, "Prometheus has scraped")
    assert (labels["job"], labels["instance"], value) == ("vemgr", METRICS, 1)
    assert until(lambda: prometheus("up"), 30)[0][1] == 1  # no sample of the scrape was refused
    (_, held), = until(lambda: prometheus('vemgr_ve_memory_bytes{ve="scraped"}'), 30)
    assert 0 < held <= 64 << 20
    ve.burn()
    until(lambda: [value for _, value in prometheus('rate(vemgr_ve_cpu_seconds_total{ve="scraped"}[10s])')
                   if value > 0.2], 60, "the CPU time it uses is seen to grow")
