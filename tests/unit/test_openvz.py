# SPDX-License-Identifier: GPL-2.0-or-later
"""What OpenVZ's files of containers come to: tests/data/openvz/*.conf, and what is said of each in *.txt beside it.

To accept a change: `PYTHONPATH=. python -m vemgr.cli import-vz --dry-run FILE.conf >FILE.txt`, and read the difference.
"""

from pathlib import Path

import pytest
from click.testing import CliRunner

from vemgr.cli.main import cli
from vemgr.core.config import parse_settings
from vemgr.core.errors import BadValue
from vemgr.core.openvz import read

FILES = sorted((Path(__file__).parents[1] / "data/openvz").glob("*.conf"))


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_golden(file):
    run = CliRunner().invoke(cli, ["import-vz", "--dry-run", str(file)], catch_exceptions=False)
    assert run.output == file.with_suffix(".txt").read_text()
    found = read(file.read_text())
    parse_settings(found.texts)
    assert all(line.taken or line.why for line in found.lines), "each line is accounted for"


@pytest.mark.parametrize("line", [
    "PHYSPAGES=$(reboot)", 'HOSTNAME="`id`"', 'NAME="$HOME"', "source /etc/passwd", "A=1; reboot", "A=1 B=2",
    'A="x" y', "A='", "rm -rf /", "A=\\", 'A="a\\"b"', "1A=2", "A", "A = 1", "if true; then A=1; fi"])
def test_what_needs_a_shell_is_refused(line):
    with pytest.raises(BadValue, match="line 2"):
        read(f"ONBOOT=yes\n{line}\n")


@pytest.mark.parametrize(("text", "settings"), [
    ("", {}), ("# only\n\n", {}), ("A='$(x)'", {}), ("PHYSPAGES=0:0", {}), ("PHYSPAGES=unlimited", {}),
    ("PHYSPAGES=1:9223372036854775807", {}), ("PHYSPAGES=1:262144P", {"memory": "1G"}),
    ("PHYSPAGES=99999999999999999999G", {}), ("SWAPPAGES=1G\nPHYSPAGES=1G", {"memory": "1G", "swap": "1G"}),
    ("SWAPPAGES=1G", {}), ("DISKINODES=5000\nDISKSPACE=1G", {"disk": "1G", "inodes": "5000"}), ("DISKINODES=5000", {}),
    ("CPULIMIT=50%", {"cpus": "0.5"}), ("CPUS=2\nCPULIMIT=800", {"cpus": "2"}), ("CPULIMIT=nan", {}), ("CPUS=x", {}),
    ("CPULIMIT=inf", {}), ("CPUUNITS=1", {"cpu-weight": "1"}), ("IOPRIO=9", {}), ("IOLIMIT=-1", {}),
    ("IP_ADDRESS='10.1.2.3/24 x'", {"address": "10.1.2.3"}), ("IP_ADDRESS=300.1.1.1", {}),
    ("CAPABILITY='MKNOD:on SETUID:off KILL:off X'", {"capability": "+mknod -kill"}),
    ("RATE=eth0:1:10", {}), ("DEVNODES='../../etc:rw'", {}), ("NETIF=ifname=eth0,mac=x", {}),
    ("PHYSPAGES=1G\nPHYSPAGES=2G", {"memory": "2G"}), ("HOSTNAME='a b'", {}), ("NAME=../x", {}),
    ("\udcff=1", None), ("CPUS=²", {}),
])
def test_values(text, settings):
    if settings is None:
        with pytest.raises(BadValue):
            read(text)
    else:
        assert read(text).texts == settings
