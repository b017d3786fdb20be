# SPDX-License-Identifier: GPL-2.0-or-later
"""`limits verify` says that limits hold that do, and that those do not that somebody has lifted."""

import json
import threading
from pathlib import Path


def test_limits_that_hold(make_ve, vemgr, figure):
    ve = make_ve("held", cpus="0.5", cpu_guarantee="0.4", memory="64M", pids="40", io_write="4M", io_read="8M")
    found = json.loads(vemgr("limits", "verify", ve.name, "--json").stdout)
    for finding in found:
        figure(f"{finding['setting']}: asked {finding['asked']}, got {finding['got']} {finding['unit']}")
    assert {finding["setting"]: finding["outcome"] for finding in found} == {
        "cpus": "enforced", "cpu-guarantee": "kept", "memory": "enforced", "pids": "enforced", "io-write": "enforced",
        "io-read": "enforced"}
    assert ve.show()["pid"] == vemgr.list()[ve.name]["pid"] and ve.exec("echo", "alive").stdout == "alive\n"
    assert ve.number("pids.current") < 10, "the load has ended"
    assert not list(Path("/var/lib/vemgr/ve").glob("*/.verify-*"))


def test_a_limit_that_is_not_there(make_ve, vemgr):
    """The scheduler puts back what is lifted here, so it is lifted all the time."""
    ve = make_ve("lifted", io_write="4M")
    device, ended = ve.read("io.max").split()[0], threading.Event()

    def lift():
        while not ended.wait(0.01):
            (ve.group / "io.max").write_text(f"{device} wbps=max")

    lifting = threading.Thread(target=lift)
    lifting.start()
    try:
        found = vemgr("limits", "verify", ve.name, "--resource", "io", status=5).stdout
    finally:
        ended.set()
        lifting.join()
    assert "io-write: not enforceable" in found


def test_more_cpus_than_there_are(make_ve, vemgr):
    ve = make_ve("vast", cpus="100")
    done = vemgr("limits", "verify", ve.name, status=5)
    assert "cpus: not enforceable because the VE can use" in done.stdout
