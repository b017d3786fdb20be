# SPDX-License-Identifier: GPL-2.0-or-later
"""The API of a daemon that runs: whatever comes over its socket, it answers or hangs up, has no defect to report, keeps
neither descriptors nor memory, and goes on answering others. Needs root, as a VE runs behind it."""

import contextlib
import json
import os
import re
import socket
import tempfile
from collections import Counter
from copy import deepcopy

from tests.fuzz.engine import GROWTH, memory, mutated
from tests.kernel.conftest import Instance, eventually
from vemgr.api.client import Client

_LOOK = 25  # inputs between two looks at the daemon
_PATIENCE = 40.0  # seconds
_MOST_VES = 20
_MORE_DESCRIPTORS = 40  # of what the last inputs have begun
_COMMAND = {"argv": ["true"], "env": {"A": "b"}, "cwd": "/", "user": "root", "tty": False}
_CALLS = {
    "List": {},
    "Show": {"name": "fuzzed"},
    "Create": {"name": "a", "template": "bb", "settings": {"network": "none"}},
    "Plan": {"name": "fuzzed"},
    "Start": {"name": "a"},
    "Stop": {"name": "a", "timeout": 1, "kill": True},
    "Restart": {"name": "a", "timeout": 0},
    "Suspend": {"name": "a"},
    "Resume": {"name": "a"},
    "Destroy": {"name": "a", "force": True},
    "Set": {"name": "fuzzed", "settings": {"description": "x", "memory": "1G"}},
    "Exec": {"name": "fuzzed", "command": _COMMAND, "stdio": [0, 1, 2]},
    "Run": {"name": "", "template": "bb", "settings": {"network": "none"}, "command": _COMMAND, "stdio": [0, 1, 2]},
    "Attach": {"name": "fuzzed", "stream": 0, "readOnly": False, "force": True},
    "OpenLog": {"name": "fuzzed"},
    "ListTemplates": {},
    "ShowTemplate": {"name": "bb"},
    "ImportTemplate": {"name": "t", "description": "x", "archive": 0},
    "RemoveTemplate": {"name": "t"},
    "GetHost": {},
}
_VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1 << 31,
    1 << 64,
    1.5,
    1e308,
    "",
    "fuzzed",
    "a",
    "bb",
    "\ud800",
    "\udcff",
    "\0",
    "a\nb",
    "\u2028",
    "x" * 300,
    "x" * 70_000,
    "../..",
    "/",
    [],
    {},
    [0, 1, 2],
    [0] * 100,
    {"a": "b"},
    ["\ud800"],
    [[[[]]]],
    {"network": "none"},
    {"memory": "\u0661M"},
    {"cpus": "1e3"},
    {"init": "'"},
    {"init": "\ud800"},
    "unlimited",
    "9" * 5000,
]
_WORDS = [
    b"\0",
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"\\ud800",
    b"\xff",
    b"\\u0000",
    b"[" * 5000,
    b'{"a":' * 3000,
    b"null",
    b"1e999",
    b'"oneway":true,',
    b'"more":true,',
    b'"upgrade":true,',
    b"NaN",
    b"-Infinity",
    b"org.varlink.service.GetInfo",
    b'{"method":"org.varlink.service.GetInfo"}\0',
    b"9" * 5000,
    b"org.vemgr.Manager.",
    b"__init__",
    b"x" * 100_000,
]
# They end what is to be fuzzed, or look at every file of the host.
_LEFT_OUT = re.compile(rb"Shutdown|RefreshHost|\"host\"")


class Api:
    name = "api"

    def __init__(self):
        self._scope = contextlib.ExitStack()
        self._vemgr = self._scope.enter_context(_instance())
        self._vemgr("create", "fuzzed", "--template", "bb", "--network", "none")
        self._vemgr("start", "fuzzed")
        self._path = f"{self._vemgr.run}/vemgr.sock"
        self._pid = self._vemgr.daemon_pid()
        self._given = _descriptors(self._scope)
        self._count = 0
        self._used, self._open = memory(self._pid), self._descriptors()

    def corpus(self):
        return [b"\3" + _message(name, parameters) for name, parameters in _CALLS.items()]

    def mutate(self, rng, corpus):
        if rng.random() < 0.4:
            given, data = rng.choice(corpus)[:1], mutated(rng, [part[1:] for part in rng.sample(corpus, 3)], _WORDS)
        else:
            given, data = b"\3", b"".join(self._call(rng) for _ in range(rng.choice((1, 1, 1, 3))))
        if rng.random() < 0.2:
            given = bytes([rng.choice((0, 1, 2, 3, 7, 17, 60))])
        return (given or b"\0") + data

    @staticmethod
    def _call(rng):
        name = rng.choice(list(_CALLS))
        parameters = json.loads(json.dumps(_CALLS[name]))
        for _ in range(rng.choice((0, 1, 1, 2))):
            place = parameters
            while isinstance(place, dict) and place:
                key = rng.choice(list(place))
                if not isinstance(place[key], dict) or rng.random() < 0.4:
                    break
                place = place[key]
            if not isinstance(place, dict) or not place:
                parameters[rng.choice(("x", "name"))] = deepcopy(rng.choice(_VALUES))
            elif rng.random() < 0.1:
                del place[key]
            else:
                place[key] = deepcopy(rng.choice(_VALUES))
        return _message(name, parameters)

    def check(self, data):
        given, data = data[:1], data[1:]
        if _LEFT_OUT.search(data):
            return "left out"
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(_PATIENCE)
            client.connect(self._path)
            fds = [self._given[(number + len(data)) % len(self._given)] for number in range(given[0] if given else 0)]
            replies = self._talk(client, data, fds)
        self._count += 1
        if self._count % _LOOK == 0:
            self._look()
        for reply in replies:
            assert b"has a defect" not in reply, reply
        return " ".join(_told(reply) for reply in replies)

    @staticmethod
    def _talk(client, data, fds):
        """Say all, and listen until as many replies have come as there can be, or the daemon hangs up."""
        received = bytearray()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if fds:
                data = data[socket.send_fds(client, [data[:1] or b"\0"], fds) :]
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            while True:
                chunk, got, _, _ = socket.recv_fds(client, 65536, 16)
                for fd in got:
                    os.close(fd)
                if not chunk:
                    break
                received += chunk
        return bytes(received).split(b"\0")[:-1]

    def _look(self):
        client = Client(self._path)
        try:
            ves = client.call("List")["ves"]
            for ve in ves if len(ves) > _MOST_VES else ():
                if ve["name"] != "fuzzed":
                    client.call("Destroy", {"name": ve["name"], "force": True})
            assert self._vemgr.daemon_pid() == self._pid, "the daemon has ended"
            self._restore({ve["name"]: ve["state"] for ve in ves}.get("fuzzed"), client)
        finally:
            client.close()
        assert memory(self._pid) - self._used < GROWTH, f"{memory(self._pid) >> 20} MiB of {self._used >> 20} before"
        eventually(
            lambda: self._descriptors() < self._open + _MORE_DESCRIPTORS,
            lambda: Counter(self._vemgr.descriptors(self._pid)),
        )
        log = (self._vemgr.run / "daemon.log").read_text() + (self._vemgr.run / "keeper.log").read_text()
        assert "Traceback" not in log, log[-3000:]

    def _restore(self, state, client):
        """Some calls that came out well have destroyed or stopped it, given it another init, or taken its template."""
        if state == "running":
            return
        if state is not None:
            client.call("Destroy", {"name": "fuzzed", "force": True})
        if "bb" not in {template["name"] for template in client.call("ListTemplates")["templates"]}:
            self._vemgr.import_busybox()
        client.call("Create", {"name": "fuzzed", "template": "bb", "settings": {"network": "none"}})
        client.call("Start", {"name": "fuzzed"})

    def _descriptors(self):
        return len(os.listdir(f"/proc/{self._pid}/fd"))

    def finish(self):
        self._look()

    def close(self):
        self._scope.close()


def _message(name, parameters):
    return json.dumps({"method": f"org.vemgr.Manager.{name}", "parameters": parameters}).encode() + b"\0"


def _told(reply):
    told = json.loads(reply)
    return f"{told.get('error', 'good')}: {told.get('parameters', {}).get('message', '')}"


@contextlib.contextmanager
def _instance():
    with tempfile.TemporaryDirectory(prefix="vemgr-fuzz-", dir="/var/tmp") as base:
        vemgr = Instance(base)
        try:
            vemgr.import_busybox()
            yield vemgr
        finally:
            vemgr.close()


def _descriptors(scope):
    """One of each kind that a client may pass."""
    reader, writer = os.pipe()
    os.close(writer)
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    other.close()
    fds = [
        os.open(os.devnull, os.O_RDWR),
        os.open("/", os.O_RDONLY),
        os.open("/etc/passwd", os.O_RDONLY),
        reader,
        one.detach(),
        os.open("/etc", os.O_PATH),
        os.memfd_create("fuzz"),
        os.open(os.devnull, os.O_WRONLY),
    ]
    for fd in fds:
        scope.callback(os.close, fd)
    return fds
