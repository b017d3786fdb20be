# SPDX-License-Identifier: GPL-2.0-or-later
"""shutdown: when it returns, nothing is left that an uninstallation would have to wait for."""

import os

from tests.kernel.conftest import eventually, is_alive


def test_shutdown_returns_when_all_has_ended(make_instance):
    with make_instance() as vemgr:
        name = vemgr.create()
        vemgr("start", name)
        daemon, keeper, init = vemgr.daemon_pid(), vemgr.keeper_pid(), vemgr.show(name)["pid"]
        assert vemgr.out("shutdown", "--timeout", "1").startswith(f"{name}: ")
        assert not is_alive(init) and not is_alive(daemon)
        assert not (vemgr.run / "vemgr.sock").exists()
        assert not os.path.exists(vemgr.cgroup)
        assert vemgr.links() == ["lo"] and vemgr.ruleset() == ""
        eventually(lambda: not is_alive(keeper), "the keeper stays", timeout=1)
        vemgr("destroy", name)  # starts both again
