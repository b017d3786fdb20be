# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian without systemd: sysvinit and OpenRC as they are packaged, from boot to end."""

from pathlib import Path

import pytest

ARCHIVE = Path("/opt/vemgr-templates/openrc.tar")
UP = "ps -o args= -p 1 | grep -q '\\[2\\]' && ! ps -e -o comm= | grep -q openrc"
GETTY = "1:2345:respawn:/sbin/getty 38400 console linux"


@pytest.fixture(scope="module")
def openrc(vemgr, module_ves):
    if ARCHIVE.exists():
        vemgr("template", "import", "openrc", ARCHIVE)
    else:
        vemgr("template", "build", "openrc", "--include", "openrc,sysvinit-core,bsdutils,procps", timeout=900)
    try:
        yield module_ves("rc", template="openrc")
    finally:
        vemgr("template", "remove", "openrc", status=None)


def up(ve, until):
    until(lambda: ve.exec("sh", "-c", UP, status=None).returncode == 0, 200, "OpenRC is done with its run level")


def test_it_boots_and_has_a_getty_on_its_console(openrc, vemgr, until):
    up(openrc, until)
    started = openrc.exec("rc-status", "--all", status=None).stdout
    assert "hostname.sh" in started and "crashed" not in started
    # Debian's inittab(5) has none on the console: it is for machines with screens.
    openrc.exec("sh", "-c", f"sed -i '/getty/d' /etc/inittab; echo '{GETTY}' >>/etc/inittab; telinit q")
    until(lambda: "rc login:" in vemgr("logs", "rc").stdout, 30, "the console shows the getty")


@pytest.mark.timeout(900)
def test_a_reboot_and_an_end_mean_what_they_should(openrc, vemgr, until):
    """In a machine without KVM each takes a minute. A stop is a poweroff from inside."""
    up(openrc, until)
    before = vemgr.list()["rc"]["pid"]
    openrc.exec("reboot", status=None)
    until(lambda: vemgr.list()["rc"]["pid"] not in (0, before), 240, "it has rebooted")
    assert openrc.show()["lastExit"] == "rebooted"
    assert vemgr("stop", "--timeout", "240", "rc", timeout=300).stdout == "rc: clean\n"
    assert openrc.show()["lastExit"] == "powered off"
