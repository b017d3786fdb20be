# SPDX-License-Identifier: GPL-2.0-or-later
"""What is swept: each verb of the API, what the daemon does unasked, and its own coming up.

A verb has a base, the state from which it is done, and `base` leads back there from whatever may have come of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.sweep.stage import SECOND_NETWORK, Stage

BYSTANDER, SUBJECT = "bystander", "subject"
PUBLISHED = 18080
_GATES: list[int] = []  # opened, and open as long as the process lives
_LIVES: dict[str, int] = {}  # of the subject, before it reboots; by stage
_COMMAND = {"argv": ["true"], "env": {}, "cwd": "/", "user": "root", "tty": False}

Step = Callable[[Stage], object]


def nothing(_stage: Stage) -> None:
    """The base itself."""


@dataclass(frozen=True)
class Verb:
    """`base` is idempotent. `request`: method and parameters. `between`: steps from the base to other states in which
    an interrupted verb may leave the VEs; both its base and what it leads to are understood. `leaves`: of a picture,
    what it may leave in any state that one of these has, since the next one finds it and goes on."""

    name: str
    base: Step
    request: tuple[str, dict[str, Any]] = ("", {})
    stdio: Callable[[Stage], Iterator[list[int]]] | None = None
    between: tuple[Step, ...] = ()
    leaves: tuple[str, ...] = ()
    bystander: bool = True
    settle: Step = nothing  # what to wait for after it
    live: bool = False  # where the host can enforce limits, these are changed too
    targets: tuple[str, ...] = ("daemon",)  # others have no system call in it
    # Where it is no request: prepares, and returns what lets it happen.
    begin: Callable[[Stage], Callable[[], object]] | None = None
    finished: Callable[[Stage], bool] | None = None
    renews: bool = False  # the subject has another init after it, also where the daemon was killed

    @property
    def ends_all(self) -> bool:
        """Daemon and keeper end with it."""
        return self.name == "shutdown"

    @contextlib.contextmanager
    def descriptors(self, stage: Stage) -> Iterator[list[int]]:
        if self.stdio is None:
            yield []
        else:
            yield from self.stdio(stage)


def ensure(name: str, state: str, template: str = "bb", **settings: str) -> Step:
    """Bring a VE from any state to this one: absent, created (anew, never started), stopped, running, suspended."""
    def step(stage: Stage) -> None:
        now = stage.ves().get(name, {"state": "absent"})["state"]
        if state in ("absent", "created") and now != "absent":
            stage.call("Destroy", name=name, force=True)
            now = "absent"
        if now == "absent" and state != "absent":
            stage.call("Create", name=name, template=template, settings={**stage.limits(), **settings})
            now = "stopped"
        if now == "suspended" and state != "suspended":
            stage.call("Resume", name=name)
            now = "running"
        if now == "running" and state == "stopped":
            stage.call("Stop", name=name, kill=True)
        if now == "stopped" and state in ("running", "suspended"):
            stage.call("Start", name=name)
            now = "running"
        if now == "running" and state == "suspended":
            stage.call("Suspend", name=name)
    return step


def gone(name: str) -> Step:
    """An ephemeral VE goes by itself, with its data."""
    def step(stage: Stage) -> None:
        stage.wait(lambda: name not in stage.ves(), f"ephemeral VE {name} stays")
        stage.wait(lambda: not any(entry.startswith(".") for entry in os.listdir(f"{stage.state}/ve")),
                   f"the data of {name} stays")
    return step


def both(*steps: Step) -> Step:
    def step(stage: Stage) -> None:
        for each in steps:
            each(stage)
    return step


def setting(**settings: str) -> Step:
    return lambda stage: stage.call("Set", name=SUBJECT, settings=settings)


def _template(name: str, there: bool) -> Step:
    def step(stage: Stage) -> None:
        names = [t["name"] for t in stage.call("ListTemplates")["templates"]]
        if there and name not in names:
            with open(f"{stage.base}/small.tar", "rb") as file:
                stage.call("ImportTemplate", [file.fileno()], name=name, description="", archive=0)
        if not there and name in names:
            stage.call("RemoveTemplate", name=name)
    return step


def _archive(stage: Stage) -> Iterator[list[int]]:
    with open(f"{stage.base}/small.tar", "rb") as file:
        yield [file.fileno()]


def _stream(stage: Stage) -> Iterator[list[int]]:
    """An archive by way of a pipe, as from mmdebstrap."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with open(f"{stage.base}/small.tar", "rb") as file:
        data = file.read()
    producer = os.fork()
    if producer == 0:
        os.close(reader)
        with contextlib.suppress(BrokenPipeError):
            for start in range(0, len(data), 4096):
                os.write(writer, data[start:start + 4096])
        os._exit(0)
    os.close(writer)
    try:
        yield [reader]
    finally:
        os.close(reader)


def _null(_stage: Stage) -> Iterator[list[int]]:
    fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield [fd, fd, fd]
    finally:
        os.close(fd)


def _terminal(_stage: Stage) -> Iterator[list[int]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield [theirs.fileno()]


def _pushed(stage: Stage) -> Iterator[list[int]]:
    """A file, and the confirmation that it is wanted."""
    ours, theirs = socket.socketpair()
    with ours, theirs, open(f"{stage.base}/small.tar", "rb") as file:
        ours.send(b"y")
        yield [file.fileno(), theirs.fileno()]


def _renamed_back(stage: Stage) -> None:
    """The same VE, whatever its name has become."""
    if "twin" in stage.ves():
        stage.call("Rename", name="twin", new=SUBJECT)
    ensure(SUBJECT, "stopped")(stage)


def _held(_stage: Stage) -> Iterator[list[int]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield [theirs.fileno()]


def _pulled(_stage: Stage) -> Iterator[list[int]]:
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.devnull, "wb") as file:
        yield [file.fileno(), theirs.fileno()]


def _no_network(stage: Stage) -> None:
    """No VE has run since the last shutdown: no bridge, no table, the host's own settings."""
    both(ensure(BYSTANDER, "stopped"), ensure(SUBJECT, "stopped"))(stage)
    stage.shut_down()


def _after_shutdown(stage: Stage) -> None:
    """Daemon and keeper run, VEs do not, but have."""
    both(ensure(BYSTANDER, "stopped"), ensure(SUBJECT, "running"), ensure(SUBJECT, "stopped"))(stage)


def _is_down(stage: Stage) -> bool:
    return not os.path.exists(f"{stage.run}/keeper.sock") and not os.path.exists(stage.cgroups)


def _kill_init(stage: Stage) -> Callable[[], object]:
    pid = stage.ves()[SUBJECT]["pid"]
    return lambda: os.kill(pid, signal.SIGKILL)


def _is_over(stage: Stage) -> bool:
    return not os.path.exists(f"{stage.cgroups}/ve/{SUBJECT}")


def _reboot(stage: Stage) -> Callable[[], object]:
    """A command in the VE, before a pipe: the way in is `exec`'s affair."""
    _LIVES[stage.tag] = _lives(stage)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    command = {**_COMMAND, "argv": ["/bin/sh", "-c", "read x; exec /bin/busybox reboot -f"]}
    answer = stage.call("Exec", [reader, null, null], name=SUBJECT, command=command, stdio=[0, 1, 2])
    for fd in (reader, null, *answer["descriptors"]):
        os.close(fd)

    def act() -> None:
        os.write(writer, b"\n")
        os.close(writer)
    return act


def _lives(stage: Stage) -> int:
    with open(f"{stage.base}/vemgrd.log", encoding="utf-8") as file:
        return file.read().count(f"VE {SUBJECT} started")


def _has_rebooted(stage: Stage) -> bool:
    return _lives(stage) > _LIVES[stage.tag]


def _channel(_stage: Stage) -> Iterator[list[int]]:
    """For the console: a client that leaves when it has its answer."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield [theirs.fileno()]


def _litter(stage: Stage) -> Callable[[], object]:
    """A daemon to be, before a gate, and what interrupted verbs leave, in one heap."""
    stage.kill(stage.daemon)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{stage.run}/vemgr.sock")
    for path in (f"{stage.state}/ve/.lost.partial", f"{stage.state}/ve/.gone.0123abcd.removed/data/0/upper/etc",
                 f"{stage.state}/templates/.half.partial-0123abcd/rootfs/etc", f"{stage.cgroups}/ve/lost"):
        os.makedirs(path, exist_ok=True)
    for path in (f"{stage.state}/ve/.gone.0123abcd.removed/config.toml", f"{stage.state}/ve/.lost.partial/x",
                 f"{stage.state}/templates/.half.partial-0123abcd/rootfs/etc/x",
                 f"{stage.state}/ve/{SUBJECT}/config.toml.new"):
        with open(path, "w", encoding="ascii") as file:
            file.write("x")
    gate = f"{stage.base}/gate"
    with contextlib.suppress(FileExistsError):
        os.mkfifo(gate)
    stage.start_daemon(lambda: os.close(os.open(gate, os.O_RDONLY)))  # waits for somebody to open its other end
    return lambda: _GATES.append(os.open(gate, os.O_RDWR))


def _is_clean(stage: Stage) -> bool:
    """It serves and has cleared away. A path of the socket that was there before says nothing."""
    names = [*os.listdir(f"{stage.state}/ve"), *os.listdir(f"{stage.state}/templates")]
    return os.path.exists(f"{stage.run}/vemgr.sock") and not any(name.startswith(".") for name in names)


def _of(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, **more}


_BOTH, _ALL = ("daemon", "keeper"), ("daemon", "keeper", "child")
_STOPPED, _RUNNING, _ABSENT = (ensure(SUBJECT, state) for state in ("stopped", "running", "absent"))
_LINKS = setting(network=f"bridge {SECOND_NETWORK}", publish=f"{PUBLISHED}:80 {PUBLISHED}:80/udp")
_ATTACH = ("Attach", _of(SUBJECT, stream=0))
_RUN = _of("once", template="bb", settings={}, command=_COMMAND, stdio=[0, 1, 2])

VERBS = {verb.name: verb for verb in (
    Verb("create", _ABSENT, ("Create", _of(SUBJECT, template="bb", settings={"description": "new"}))),
    Verb("first-start", ensure(SUBJECT, "created"), ("Start", _of(SUBJECT)),
         between=(both(_RUNNING, _STOPPED),), targets=_ALL),
    Verb("start", _STOPPED, ("Start", _of(SUBJECT)), targets=_ALL),
    Verb("start-host", ensure(SUBJECT, "stopped", "host"), ("Start", _of(SUBJECT)), targets=_ALL),
    Verb("network-start", _no_network, ("Start", _of(SUBJECT)), bystander=False,
         between=(both(_RUNNING, _STOPPED),), leaves=("links", "rules", "files", "daemon", "forwarding"), targets=_ALL),
    Verb("start-networks", both(_STOPPED, _LINKS), ("Start", _of(SUBJECT)), targets=_ALL),
    Verb("stop", _RUNNING, ("Stop", _of(SUBJECT, timeout=20)), targets=_BOTH),
    Verb("stop-kill", _RUNNING, ("Stop", _of(SUBJECT, kill=True)), targets=_BOTH),
    Verb("restart", _RUNNING, ("Restart", _of(SUBJECT, timeout=20)), between=(_STOPPED,), targets=_ALL),
    Verb("suspend", _RUNNING, ("Suspend", _of(SUBJECT))),
    Verb("resume", ensure(SUBJECT, "suspended"), ("Resume", _of(SUBJECT))),
    Verb("destroy", both(_RUNNING, _STOPPED), ("Destroy", _of(SUBJECT, force=False))),
    Verb("destroy-force", _RUNNING, ("Destroy", _of(SUBJECT, force=True)), between=(_STOPPED,), targets=_BOTH),
    Verb("set", both(_STOPPED, setting(description="default")),
         ("Set", _of(SUBJECT, settings={"description": "another"}))),
    Verb("set-live", both(_RUNNING, lambda stage: setting(description="default", **stage.limits())(stage)),
         ("Set", _of(SUBJECT, settings={"description": "another"})), live=True),
    Verb("set-address", both(_STOPPED, setting(address="default")),
         ("Set", _of(SUBJECT, settings={"address": "PREFIX.77"}))),
    Verb("set-network", both(_STOPPED, setting(network="default")),
         ("Set", _of(SUBJECT, settings={"network": "none"}))),
    Verb("set-networks", both(_STOPPED, setting(network="default", publish="")),
         ("Set", _of(SUBJECT, settings={"network": f"bridge {SECOND_NETWORK}", "publish": f"{PUBLISHED}:80"}))),
    Verb("set-publish", both(_RUNNING, setting(publish="")),
         ("Set", _of(SUBJECT, settings={"publish": f"{PUBLISHED}:80 {PUBLISHED}:80/udp"}))),
    Verb("console", _RUNNING, _ATTACH, stdio=_channel, targets=_BOTH),
    Verb("console-before", _STOPPED, _ATTACH, stdio=_channel, targets=_BOTH),
    Verb("exec", _RUNNING, ("Exec", _of(SUBJECT, command=_COMMAND, stdio=[0, 1, 2])), stdio=_null, targets=_ALL),
    Verb("exec-tty", _RUNNING, ("Exec", _of(SUBJECT, command={**_COMMAND, "tty": True}, stdio=[0])), stdio=_terminal,
         targets=_ALL),
    Verb("clone", both(ensure("twin", "absent"), _RUNNING, _STOPPED), ("Clone", _of(SUBJECT, new="twin", hold=0)),
         stdio=_held),
    Verb("rename", _renamed_back, ("Rename", _of(SUBJECT, new="twin"))),
    Verb("template-create", both(_template("new", False), _STOPPED),
         ("CreateTemplate", _of("new", ve=SUBJECT, description="", hold=0)), stdio=_held),
    Verb("push", _RUNNING, ("Push", _of(SUBJECT, path="/tmp/pushed", kind="file", stream=0, hold=1)), stdio=_pushed),
    Verb("push-stopped", _STOPPED, ("Push", _of(SUBJECT, path="/tmp/pushed", kind="file", stream=0, hold=1)),
         stdio=_pushed),
    Verb("pull", _STOPPED, ("Pull", _of(SUBJECT, path="/bin", kind="archive", stream=0, hold=1)), stdio=_pulled),
    Verb("run", gone("once"), ("Run", _RUN), stdio=_null, settle=gone("once"), targets=_ALL),
    Verb("template-import", _template("new", False), ("ImportTemplate", _of("new", description="", archive=0)),
         stdio=_archive),
    Verb("template-build", _template("new", False), ("ImportTemplate", _of("new", description="", archive=0)),
         stdio=_stream),
    Verb("template-remove", _template("new", True), ("RemoveTemplate", _of("new"))),
    Verb("template-host", _template("host", False), ("ListTemplates", {})),
    Verb("refresh-host", lambda stage: stage.call("ListTemplates"), ("RefreshHostTemplate", {}),
         between=(lambda stage: stage.call("RemoveTemplate", name="host"),)),
    Verb("shutdown", _after_shutdown, ("Shutdown", {}), bystander=False, finished=_is_down,
         leaves=("links", "rules", "files", "daemon", "keeper", "forwarding"), targets=_BOTH),
    Verb("ended", _RUNNING, begin=_kill_init, finished=_is_over, targets=_BOTH),
    Verb("reboot", _RUNNING, begin=_reboot, finished=_has_rebooted, renews=True, targets=_BOTH),
    # It has ended, and what was to be its next life was killed.
    Verb("reboot-new", _RUNNING, begin=_reboot, finished=_has_rebooted, between=(_STOPPED,), targets=("child",)),
    Verb("recover", _STOPPED, begin=_litter, finished=_is_clean),
)}
