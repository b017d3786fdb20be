# SPDX-License-Identifier: GPL-2.0-or-later
"""The API, spoken by a client that is not ours."""

import pytest

varlink = pytest.importorskip("varlink", reason="the reference client")


@pytest.fixture
def manager(vemgr):
    client = varlink.Client("unix:/run/vemgr/vemgr.sock")
    with client.open("org.vemgr.Manager") as connection:
        yield connection


def test_a_foreign_client_introspects(manager, vemgr):
    client = varlink.Client("unix:/run/vemgr/vemgr.sock")
    with client.open("org.varlink.service") as service:
        info = service.GetInfo()
        assert info["product"] == "vemgr"
        assert "org.vemgr.Manager" in info["interfaces"]
        text = service.GetInterfaceDescription("org.vemgr.Manager")["description"]
    for verb in ("List", "Create", "Start", "Stop", "Set", "Exec", "Destroy"):
        assert f"method {verb}(" in text
    assert "error NoSuchVE" in text


def test_a_foreign_client_lists_and_starts(manager, vemgr):
    manager.Create("foreign", "busybox", {"memory": "64M"})
    try:
        assert {ve["name"]: ve["state"] for ve in manager.List()["ves"]}["foreign"] == "stopped"
        manager.Start("foreign")
        assert vemgr.list()["foreign"]["state"] == "running"
        assert manager.Show("foreign")["inForce"]["memory"] == "64M"
        assert manager.Stop("foreign", 10, False) == {"step": "clean"}
    finally:
        manager.Destroy("foreign", True)


def test_an_error_arrives_with_its_name_and_facts(manager):
    with pytest.raises(varlink.VarlinkError) as caught:
        manager.Start("nobody")
    assert caught.value.error() == "org.vemgr.Manager.NoSuchVE"
    parameters = caught.value.parameters()
    assert parameters["exitCode"] == 14
    assert parameters["facts"] == {"ve": "nobody"}
