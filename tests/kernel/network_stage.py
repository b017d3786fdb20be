# SPDX-License-Identifier: GPL-2.0-or-later
"""The stage for the network tests: three network namespaces, none of them the machine's own.

    outside 198.51.100.1  --veth--  198.51.100.2 "host" 10.77.0.1  --bridge--  10.77.0.2 VE

`play` runs a scenario (a function of a test module) as a process of its own in a new namespace, the "host"; the
others hang on sleeping processes. The machine's own namespace has no part in it, so a failure leaves nothing behind.
"""

import asyncio
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from vemgr.core.plan import NETNS_FD
from vemgr.kernel.netlink import send_batch
from vemgr.kernel.veth import End

ROOT = Path(__file__).parents[2]
BRIDGE, SUBNET, GATEWAY, PREFIXLEN, VE = "vetest0", "10.77.0.0/20", "10.77.0.1", 20, "10.77.0.2"
OUTSIDE, UPLINK = "198.51.100.1", "198.51.100.2"
UPLINK_MTU = 1400
SUBNET6, GATEWAY6, VE6 = "fd77::/64", "fd77::1", "fd77::2"
OUTSIDE6, UPLINK6 = "2001:db8::1", "2001:db8::2"
MAC = "02:00:00:00:00:02"


def end(**values):
    """The VE's end of its link."""
    return End(**{"mac": MAC, "address": f"{VE}/{PREFIXLEN}", "gateway": GATEWAY, "mtu": UPLINK_MTU} | values)


def play(module, scenario):
    """Run `scenario` of the file `module` on a stage; a failure shows what it printed. Called by the tests."""
    run = subprocess.run(
        ["unshare", "--net", "--mount", sys.executable, "-W", "error", __file__, module, scenario],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def can_play():
    """Whether namespaces can be made and links in them: the capability, not the user id."""
    command = ["unshare", "--net", "--mount", "ip", "link", "add", "probe", "type", "bridge"]
    try:
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except OSError:
        return False


class Namespace:
    """A further network namespace, held by a sleeping process until `close`."""

    def __init__(self):
        self.holder = subprocess.Popen(["unshare", "--net", "sleep", "60"])
        self.path = f"/proc/{self.holder.pid}/ns/net"
        own = os.readlink("/proc/self/ns/net")
        while os.readlink(self.path) == own:
            time.sleep(0.005)
        self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def run(self, *command, code=0, **options):
        """Run a command inside; returns what it printed. `code` None: any exit code will do."""
        run = subprocess.run(
            ["nsenter", f"--net={self.path}", *command], capture_output=True, text=True, timeout=20, **options
        )
        assert code in (None, run.returncode), (command, run.stdout, run.stderr)
        return run.stdout.strip()

    def python(self, text, *arguments, **options):
        return self.run(sys.executable, "-W", "error", "-c", text, *arguments, **options)

    def serve(self, text):
        """Start a Python program inside; returns when it has printed a line. Ends with the stage."""
        server = subprocess.Popen(
            ["nsenter", f"--net={self.path}", sys.executable, "-c", text], stdout=subprocess.PIPE, text=True
        )
        assert server.stdout.readline() == "ready\n"
        return server

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self.holder.send_signal(signal.SIGKILL)
            self.holder.wait()


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@contextlib.contextmanager
def outside():
    """The world beyond the host, which knows no way to the VEs' subnet."""
    ip("link", "set", "lo", "up")
    with contextlib.closing(Namespace()) as world:
        ip("link", "add", "uplink0", "mtu", str(UPLINK_MTU), "type", "veth",
           "peer", "name", "world0", "netns", str(world.holder.pid))
        ip("addr", "add", f"{UPLINK}/24", "dev", "uplink0")
        ip("link", "set", "uplink0", "up")
        world.run("ip", "addr", "add", f"{OUTSIDE}/24", "dev", "world0")
        world.run("ip", "link", "set", "world0", "up")
        ip("route", "add", "default", "via", OUTSIDE)
        yield world


SEND_BATCH = """
import sys
from vemgr.kernel.netlink import send_batch
assert "pyroute2" not in sys.modules
send_batch([bytes.fromhex(line) for line in sys.stdin.read().split()])
"""


async def attach(net, host_ifname, namespace, end):
    """What a set-up process does: it has the namespace as a descriptor of an agreed number."""
    await net.make_way(host_ifname)
    message = net.birth(host_ifname, end)
    kept = os.dup(NETNS_FD) if os.path.exists(f"/proc/self/fd/{NETNS_FD}") else -1
    os.dup2(namespace.fd, NETNS_FD)
    try:
        send_batch([message])
    finally:
        os.close(NETNS_FD)
        if kept >= 0:
            os.dup2(kept, NETNS_FD, inheritable=False)
            os.close(kept)


def send_inside(namespace, messages, **options):
    return namespace.python(SEND_BATCH, input="\n".join(m.hex() for m in messages), **options)


def main(module, scenario):
    # The stage sees the settings and devices of its own namespace; /sys still shows the machine's.
    spec = importlib.util.spec_from_file_location("scenarios", module)
    scenarios = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scenarios)
    found = getattr(scenarios, scenario)
    asyncio.run(found(), debug=False)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(*sys.argv[1:])
