# SPDX-License-Identifier: GPL-2.0-or-later
"""python -m tests.faults.stress [--seconds N] [--seed N]: eight clients at once, each with random verbs on a few VEs.

Every answer must be one that some order of the calls explains; now and then all stand still, and the API, the store,
the keeper, cgroups, links and tables must tell the same; in the end the host must look as it did before.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import resource
import secrets
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.faults.history import ABSENT, STOPPED, Call, outcome, unfounded
from tests.faults.stage import OTHER, Stage, made_stage
from tests.faults.verbs import feed
from tests.kernel.conftest import eventually
from vemgr.api.client import Client, RemoteError

CLIENTS = 8
NAMES = ("a", "b", "c", "d")
ROUND = 10.0  # seconds between two looks at everything
DEADLINE = 120.0  # seconds for one call, on a loaded machine
GROWTH = 12 << 20  # bytes of memory
_WEIGHTS = {"create": 10, "start": 14, "stop": 8, "restart": 4, "suspend": 4, "resume": 5, "destroy": 4,
            "destroy --force": 4, "set": 6, "exec": 10, "plan": 2, "show": 5, "list": 5, "run": 4, "import": 4,
            "remove": 4}
_COMMAND = {"argv": ["true"], "env": {}, "cwd": "/", "user": "root", "tty": False}
_IN_STEPS = ("stop", "restart", "destroy --force", "suspend", "resume")
#: What may become of an exec while its VE is being stopped.
_TORN = {"exec": ("SystemFailure", "ExecFailed", "NotRunning", "NoSuchVE")}


class Clients:
    """What all of them share."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.stage = stage
        self.seed = seed
        self.calls: list[Call] = []
        self.answers: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self._lock = threading.Lock()

    def note(self, call: Call) -> None:
        with self._lock:
            self.calls.append(call)
            self.answers[f"{call.verb}: {call.answer}"] += 1

    def work(self, number: int, turn: int, seconds: float) -> None:
        """One client, for one round."""
        chance = random.Random(f"{self.seed}/{number}/{turn}")
        until = time.monotonic() + seconds
        client = Client(f"{self.stage.run}/vemgr.sock")
        client._socket.settimeout(DEADLINE)
        try:
            while time.monotonic() < until:
                verb = chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
                self._one(client, chance, verb, number)
        finally:
            client.close()

    def _one(self, client: Client, chance: random.Random, verb: str, number: int) -> None:
        name = chance.choice(NAMES)
        begun = time.monotonic()
        answers: dict[str, str] = {}
        try:
            found = _do(client, chance, verb, name)
            if verb == "list":
                states = {ve["name"]: ve["state"] for ve in found["ves"]}
                answers = {each: states.get(each, ABSENT) for each in NAMES}
            else:
                answers[name] = found["state"] if verb == "show" else "ok"
        except RemoteError as error:
            assert "defect" not in str(error), error
            answers[name] = ABSENT if verb == "show" and error.identifier == "NoSuchVE" else error.identifier
            if error.identifier in ("SystemFailure", "StartFailed", "CannotStop", "ExecFailed"):
                assert verb in _TORN or verb == "run", f"{verb} {name}: {error}"
                self.errors[re.sub(r"VE [a-d]|\d+", "…", str(error))] += 1
        ended = time.monotonic()
        for each, answer in answers.items():
            self.note(Call(verb, each, answer, begun, ended, number))


def _do(client: Client, chance: random.Random, verb: str, name: str) -> dict[str, Any]:
    simple: dict[str, tuple[str, dict[str, Any]]] = {
        "create": ("Create", {"template": chance.choice(["bb", "bb", "t"]),
                              "settings": {"network": chance.choice(["none", "bridge"])}}),
        "start": ("Start", {}), "stop": ("Stop", chance.choice([{"kill": True}, {"timeout": 10}])),
        "restart": ("Restart", {"timeout": 10}), "suspend": ("Suspend", {}), "resume": ("Resume", {}),
        "destroy": ("Destroy", {}), "destroy --force": ("Destroy", {"force": True}), "plan": ("Plan", {}),
        "show": ("Show", {}), "set": ("Set", {"settings": chance.choice([
            {"description": str(chance.random())}, {"network": "none"}, {"network": "bridge"}])}),
    }
    if verb in simple:
        method, parameters = simple[verb]
        return client.call(method, {"name": name, **parameters})
    if verb == "list":
        return client.call("List")
    if verb == "exec":
        return _execute(client, "Exec", name=name)
    if verb == "run":
        return _execute(client, "Run", name=f"run-{name}", template="bb", settings={})
    if verb == "import":
        reader, writer = os.pipe()
        feeder = threading.Thread(target=feed, args=(writer,))
        feeder.start()
        try:
            return client.call("ImportTemplate", {"name": "t", "description": "", "archive": 0}, [reader])
        finally:
            os.close(reader)
            feeder.join()
    return client.call("RemoveTemplate", {"name": "t"})


def _execute(client: Client, method: str, **parameters: Any) -> dict[str, Any]:
    with open(os.devnull, "r+b") as null:
        reply = client.call(method, {"command": _COMMAND, "stdio": [0, 1, 2], **parameters}, [null.fileno()] * 3)
    (status,) = reply["descriptors"]
    try:
        struct.unpack("=i", os.read(status, 4))  # it may have been killed with its VE
    finally:
        os.close(status)
    return reply


def judge(calls: list[Call], before: dict[str, set[str]]) -> dict[str, set[str]]:
    """The states that each VE may be in after `calls`. Raises `AssertionError` for answers that cannot be."""
    may: dict[str, set[str]] = {}
    for name in NAMES:
        history = [_unless_torn(call, calls) for call in calls if call.name == name]
        history = [call for call in history if call is not None and call.verb not in ("run", "import", "remove")
                   and (call.verb, call.answer) != ("create", "TemplateNotFound")]
        assert not unfounded(history), unfounded(history)
        why, may[name] = outcome([call for call in history if call.answer != "Locked"
                                  and not _sees_between(call, history)], before[name])
        assert not why, why
    return may


def _unless_torn(call: Call, calls: list[Call]) -> Call | None:
    """An exec whose VE was stopped meanwhile may end in any way."""
    if call.answer in _TORN.get(call.verb, ()) and any(
            other.overlaps(call) and other.name == call.name
            and other.verb in ("stop", "restart", "destroy", "destroy --force", "suspend") for other in calls):
        return None
    return call


def _sees_between(call: Call, history: list[Call]) -> bool:
    """Whoever only looks takes no lock, and may meet a VE half way: stopped in a restart, thawed in a stop."""
    return call.verb in ("show", "list", "exec", "plan") and any(
        other.overlaps(call) and other.verb in _IN_STEPS for other in history)


def consistent(stage: Stage, may: dict[str, set[str]]) -> None:
    """While nobody asks for anything: all who know of VEs tell the same, and what the answers have led us to expect."""
    def look() -> str:
        ves = {ve["name"]: ve for ve in stage.call("List")["ves"]}
        states = {name: ve["state"] for name, ve in ves.items() if name != OTHER}
        up = sorted(name for name, ve in ves.items() if ve["state"] != STOPPED)
        stored = {path.parent.name for path in (stage.state / "ve").glob("[!.]*/config.toml")}
        cgroups = sorted(Path(path).name for path in stage.cgroups() if Path(path).parent.name == "ve")
        attached = sorted(path.name for path in (stage.run / "network").glob("*"))
        links = [link for link in stage.host()["links"] if link.startswith("ve")]
        addresses = [ve["address"] for ve in ves.values() if ve["address"]]
        found = {
            "states": {name: states.get(name, ABSENT) for name in NAMES
                       if states.get(name, ABSENT) not in may[name]},
            "others": sorted(set(states) - set(NAMES)), "store": sorted(stored ^ set(ves)),
            "cgroups": sorted(set(cgroups) ^ set(up)), "verbs": [ve["name"] for ve in ves.values() if ve["verb"]],
            "links": len(links) - len(attached), "attached to nothing": sorted(set(attached) - set(up)),
            "addresses": len(addresses) - len(set(addresses)),
            "dead": [ve["name"] for ve in ves.values() if ve["pid"] and not os.path.exists(f"/proc/{ve['pid']}")],
        }
        wrong = {key: value for key, value in found.items() if value}
        return f"{wrong}; {states}; may be {may}" if wrong else ""

    eventually(lambda: not look(), look, 30)
    for name in NAMES:
        with contextlib.suppress(RemoteError):
            assert stage.call("Show", name=name)["settings"]


def memory(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def stress(stage: Stage, seconds: float, seed: int, say: Callable[[str], object] = print) -> Counter[str]:
    """Raises `AssertionError` at the first thing that is wrong."""
    clients = Clients(stage, seed)
    may: dict[str, set[str]] = {name: {ABSENT} for name in NAMES}
    before: dict[str, Any] = {}
    sizes: list[int] = []
    began = time.monotonic()
    turn = 0
    while not turn or time.monotonic() - began < seconds:
        with ThreadPoolExecutor(CLIENTS) as pool:
            length = min(ROUND, max(1.0, seconds - (time.monotonic() - began)))
            for future in [pool.submit(clients.work, number, turn, length) for number in range(CLIENTS)]:
                future.result()
        may = judge(clients.calls, may)
        consistent(stage, may)
        if not before:  # what the first round has made for good, and memory that is kept, do not count
            clean(stage)
            may = {name: {ABSENT} for name in NAMES}
            before, sizes = stage.settled(), [memory(pid) for pid in stage.pids()]
        say(f"round {turn}: {len(clients.calls)} answers are possible")
        clients.calls.clear()
        turn += 1
    clean(stage)
    stage.await_picture(before, why=f"stress, seed {seed}", timeout=30)
    grown = [memory(pid) - size for pid, size in zip(stage.pids(), sizes, strict=True)]
    assert max(grown) < GROWTH, f"keeper or daemon has grown: {grown}"
    return clients.answers + clients.errors


def clean(stage: Stage) -> None:
    for ve in stage.call("List")["ves"]:
        if ve["name"] != OTHER:
            with contextlib.suppress(RemoteError):
                stage.call("Destroy", name=ve["name"], force=True)
    with contextlib.suppress(RemoteError):
        stage.call("RemoveTemplate", name="t")


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.faults.stress", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with made_stage() as stage:
        answers = stress(stage, options.seconds, options.seed)
    for answer, number in sorted(answers.items()):
        print(f"{number:7} {answer}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
