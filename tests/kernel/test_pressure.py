# SPDX-License-Identifier: GPL-2.0-or-later
"""Pressure and full disks as events: from the kernel's own trigger for all VEs, and from what their disks say."""

import json
import os

import pytest

from tests.kernel.conftest import eventually
from tests.kernel.test_disk import can_have_disks  # noqa: F401  (a fixture)


def kinds(vemgr, ve):
    return {event["kind"]: event["detail"] for event in map(json.loads, vemgr.out("events", "--json", ve).splitlines())}


@pytest.mark.usefixtures("can_have_disks")
def test_a_full_disk_and_waiting_for_cpus_are_told(fresh):
    """Four times as many loops as there are CPUs: somebody always waits. Both take the daemon some ten seconds."""
    if not os.path.exists("/proc/pressure/cpu"):
        (pytest.fail if os.environ.get("VEMGR_MUST_WORK") == "1" else pytest.skip)("the kernel has no PSI")
    ve = fresh.create("--disk", "64M", "--network", "none")
    fresh("start", ve)
    fresh("exec", ve, "--", "sh", "-c", "dd if=/dev/zero of=/fill bs=64k; sync", code=None)
    many = 4 * len(os.sched_getaffinity(0))
    fresh("exec", ve, "--", "sh", "-c",
          f"for i in $(seq {many}); do (while :; do :; done) >/dev/null 2>&1 </dev/null & done")
    try:
        found = eventually(lambda: (told := kinds(fresh, ve)).keys() >= {"disk-full", "cpu-pressure"} and told,
                           lambda: kinds(fresh, ve), timeout=90)
    finally:
        fresh("stop", "--kill", ve)
    assert found["disk-full"] == "bytes" and found["cpu-pressure"].startswith("some waited ")
