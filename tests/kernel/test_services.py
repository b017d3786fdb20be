# SPDX-License-Identifier: GPL-2.0-or-later
"""PostgreSQL, redis and nginx as Debian ships them, in three VEs that talk over the bridge. For who asks for it:

    vemgr template build services --suite trixie --include postgresql,nginx-light,redis-server
    VEMGR_SERVICES=/var/lib/vemgr/templates/services/rootfs pytest tests/kernel/test_services.py

To install that takes minutes and the network, which no other test needs. VEMGR_SERVICES is its archive or directory.
"""

import os

import pytest

from tests.kernel.conftest import eventually

pytestmark = [pytest.mark.skipif("VEMGR_SERVICES" not in os.environ, reason="for who asks: VEMGR_SERVICES"),
              pytest.mark.timeout(600)]
PAGE = r"exec 3<>/dev/tcp/web/80; printf 'GET / HTTP/1.0\r\n\r\n' >&3; grep -o 'Welcome to nginx' <&3 | head -1"


@pytest.fixture(scope="module")
def host(make_instance):
    with make_instance(template=False) as vemgr:
        vemgr("template", "import", "services", os.environ["VEMGR_SERVICES"], timeout=300)
        vemgr("create", "db", "--template", "services", "--boot-priority", "2")
        vemgr("create", "cache", "--template", "services")
        vemgr("create", "web", "--template", "services", "--after", "db", "--after", "cache")
        vemgr("start", "--all", timeout=300)
        addresses = {ve["name"]: ve["address"] for ve in vemgr.json("list")}
        hosts = "".join(f"{address} {name}\n" for name, address in addresses.items())
        for name in addresses:
            inside(vemgr, name, f"printf '{hosts}' >> /etc/hosts")
        inside(vemgr, "db", "echo \"listen_addresses = '*'\" >> /etc/postgresql/*/main/postgresql.conf; "
                            "echo 'host all all samenet trust' >> /etc/postgresql/*/main/pg_hba.conf; "
                            "systemctl restart 'postgresql@*'")
        inside(vemgr, "cache", "printf 'bind 0.0.0.0\\nprotected-mode no\\n' >> /etc/redis/redis.conf; "
                               "systemctl restart redis-server")
        yield vemgr


def inside(vemgr, name, script):
    return vemgr.out("exec", name, "--", "bash", "-c", script, timeout=120)


def sql(vemgr, text):
    return inside(vemgr, "web", f"psql -h db -U postgres -Atc '{text}'")


def works(vemgr):
    """What the three say to each other."""
    eventually(lambda: vemgr("exec", "web", "--", "psql", "-h", "db", "-U", "postgres", "-c", "select 1",
                             code=None).returncode == 0, "no PostgreSQL", timeout=120)
    return (sql(vemgr, "select word from words"), inside(vemgr, "web", "redis-cli -h cache get word"),
            inside(vemgr, "db", PAGE))


def test_they_serve_each_other_and_keep_their_data(host):
    for name in ("db", "cache", "web"):
        assert inside(host, name, "systemctl is-system-running --wait; systemctl --failed --plain --no-legend") == (
            "running\n")
    eventually(lambda: host("exec", "web", "--", "psql", "-h", "db", "-U", "postgres", "-c", "select 1",
                            code=None).returncode == 0, "no PostgreSQL", timeout=120)
    sql(host, "create table words (word text)")
    sql(host, "insert into words values (42)")
    inside(host, "web", "redis-cli -h cache set word kept")
    whole = ("42\n", "kept\n", "Welcome to nginx\n")
    assert works(host) == whole

    pids = {ve["name"]: ve["pid"] for ve in host.json("list")}
    host.kill(host.daemon_pid())
    assert {ve["name"]: ve["pid"] for ve in host.json("list")} == pids and works(host) == whole

    said = host.out("stop", "--all", timeout=200).splitlines()
    assert said[0] == "web: clean" and sorted(said) == ["cache: clean", "db: clean", "web: clean"]
    host("start", "--all", timeout=300)
    assert works(host) == whole
