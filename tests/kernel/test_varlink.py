# SPDX-License-Identifier: GPL-2.0-or-later
"""A client that is not ours: the reference implementation of varlink."""

import pytest
import varlink

from vemgr.core.errors import all_errors

NAME = "org.vemgr.Manager"


@pytest.fixture
def foreign(vemgr):
    vemgr("list")
    with varlink.Client(address=f"unix:{vemgr.run}/vemgr.sock") as client:
        yield client


def test_introspection(foreign):
    with foreign.open("org.varlink.service") as service:
        info = service.GetInfo()
    assert info["vendor"] == "vemgr" and NAME in info["interfaces"]
    interface = foreign.get_interface(NAME)
    assert {"List", "Show", "Create", "Start", "Stop", "Set", "Exec", "Run", "GetHost", "ListTemplates"} <= set(
        interface.members)
    errors = {name for name, member in interface.members.items() if type(member).__name__ == "_Error"}
    assert errors == {error.__name__ for error in all_errors()}


def test_list_and_start(foreign, vemgr, ve):
    with foreign.open(NAME) as manager:
        assert ve in [entry["name"] for entry in manager.List()["ves"]]
        manager.Start(name=ve)
        shown = manager.Show(name=ve)
        assert shown["state"] == "running" and shown["pid"] > 1
        assert manager.Set(name=ve, settings={"description": "by a foreign client"})["pending"] == []
        assert manager.Stop(name=ve, timeout=0)["step"] == "killed: on request"
        assert "host" in [template["name"] for template in manager.ListTemplates()["templates"]]
    assert vemgr.show(ve)["settings"]["description"] == "by a foreign client"


def test_errors_have_names_and_facts(foreign, ve):
    with foreign.open(NAME) as manager:
        with pytest.raises(varlink.VarlinkError) as missing:
            manager.Start(name="missing")
        assert missing.value.error() == f"{NAME}.NoSuchVE"
        assert missing.value.parameters()["exitCode"] == 14
        assert missing.value.parameters()["facts"] == {"ve": "missing"}
        with pytest.raises(varlink.VarlinkError) as stopped:
            manager.Stop(name=ve)
        assert stopped.value.error() == f"{NAME}.NotRunning"


@pytest.mark.parametrize(("method", "parameters"), [
    ("Start", {}), ("Start", {"name": 5}), ("Create", {"name": "x", "template": "bb", "settings": {"cpus": 1}}),
    ("Nonsense", {}), ("Exec", {"name": "x", "command": {}, "stdio": [0, 1, 2]}),
])
def test_calls_that_are_wrong(foreign, method, parameters):
    with foreign.open(NAME) as manager:
        manager.List()
        with pytest.raises(varlink.VarlinkError) as wrong:
            manager._call(method, parameters)
        assert wrong.value.error().startswith("org.varlink.service.")
        assert "ves" in manager.List(), "the connection goes on"
