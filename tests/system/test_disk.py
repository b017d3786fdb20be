# SPDX-License-Identifier: GPL-2.0-or-later
"""The disk of a running VE gets larger: what the kernel ring cannot see where CAP_SYS_RESOURCE is missing."""

import os

from tests.system.conftest import STATE

MIB = 1 << 20


def size_of(ve):
    """What `df` says inside, in MiB."""
    return int(ve.exec("sh", "-c", "df -Pm / | tail -1").stdout.split()[1])


def test_a_disk_grows_under_a_running_ve(make_ve):
    ve = make_ve("growing", disk="64M", network="none")
    image = STATE / "ve" / ve.name / "disk.img"
    assert ve.show()["diskBy"] == "image" and size_of(ve) <= 64
    script = "dd if=/dev/urandom of=/kept bs=1M count=30 2>/dev/null && md5sum /kept >/sum"
    ve.exec("sh", "-c", script)
    assert ve.set(disk="1G").stderr == ""  # nothing waits for the next start
    assert 900 < size_of(ve) <= 1024
    assert os.stat(image).st_size == 1024 * MIB
    assert "only while the VE is stopped" in ve.set(disk="512M", status=21).stderr
    # More than there was, and it is there again.
    ve.exec("sh", "-c", "dd if=/dev/zero of=/large bs=1M count=100 2>/dev/null && sync")
    ve.vemgr("restart", ve.name, "--timeout", "0")
    assert ve.exec("md5sum", "-c", "/sum").stdout == "/kept: OK\n"
    assert ve.exec("stat", "-c", "%s", "/large").stdout == f"{100 * MIB}\n"
    assert size_of(ve) > 900


def test_what_was_interrupted_is_completed(make_ve):
    """A daemon that is killed in between leaves a file that is a block larger than the disk is to be."""
    ve = make_ve("interrupted", disk="64M", network="none")
    image = STATE / "ve" / ve.name / "disk.img"
    ve.exec("sh", "-c", "echo kept >/kept && sync")
    ve.vemgr("stop", "--kill", ve.name)
    os.truncate(image, 256 * MIB + 4096)
    file = image.with_name("config.toml")
    file.write_text(file.read_text().replace('"64M"', '"256M"'))
    ve.vemgr("start", ve.name)
    assert 200 < size_of(ve) <= 256 and os.stat(image).st_size == 256 * MIB
    assert ve.exec("cat", "/kept").stdout == "kept\n"
