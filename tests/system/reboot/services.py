# SPDX-License-Identifier: GPL-2.0-or-later
"""PostgreSQL, redis and nginx as Debian ships them, in three VEs that talk over the bridge."""

from pathlib import Path

NAMES = ("db", "cache", "web")
ARCHIVE = Path("/opt/vemgr-templates/services.tar")
PACKAGES = "postgresql,redis-server,nginx-light"
PAGE = r"exec 3<>/dev/tcp/web/80; printf 'GET / HTTP/1.0\r\n\r\n' >&3; grep -o 'Welcome to nginx' <&3 | head -1"
# What they answer each other while all is well.
WHOLE = ("42\n", "kept\n", "Welcome to nginx\n")


def inside(command, name, script, **options):
    return command("exec", name, "--", "bash", "-c", script, **options).stdout


def sql(command, text, **options):
    return inside(command, "web", f"psql -h db -U postgres -Atc '{text}'", **options)


def make(command):
    if ARCHIVE.exists():
        command("template", "import", "services", ARCHIVE)
    else:
        command("template", "build", "services", "--include", PACKAGES, timeout=900)
    command("create", "db", "--template", "services", "--on-boot", "yes", "--boot-priority", "2", "--memory", "300M")
    command("create", "cache", "--template", "services", "--on-boot", "yes", "--cpus", "1")
    command("create", "web", "--template", "services", "--on-boot", "yes", "--after", "db", "--after", "cache")


def configure(command):
    """Let them listen to each other, and know each other's names."""
    hosts = "".join(f"{command.list()[name]['address']} {name}\n" for name in NAMES)
    for name in NAMES:
        inside(command, name, f"printf '{hosts}' >> /etc/hosts")
    inside(command, "db", "echo \"listen_addresses = '*'\" >> /etc/postgresql/*/main/postgresql.conf; "
                          "echo 'host all all samenet trust' >> /etc/postgresql/*/main/pg_hba.conf; "
                          "systemctl restart 'postgresql@*'")
    inside(command, "cache", "printf 'bind 0.0.0.0\\nprotected-mode no\\n' >> /etc/redis/redis.conf; "
                             "systemctl restart redis-server")


def answers(command, until):
    """What the three say to each other."""
    until(lambda: sql(command, "select 1", status=None) == "1\n", 120, "PostgreSQL answers")
    return (sql(command, "select word from words"), inside(command, "web", "redis-cli -h cache get word"),
            inside(command, "db", PAGE))


def pids(command):
    return {name: command.list()[name]["pid"] for name in NAMES}
