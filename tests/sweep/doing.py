# SPDX-License-Identifier: GPL-2.0-or-later
"""Doing a verb on a stage: untouched, or under the tracer; and what is killed there."""

from __future__ import annotations

import json
import os
import select
from typing import Any

from tests.sweep.stage import Caller, Stage
from tests.sweep.tracer import Traced, trace
from tests.sweep.verbs import BYSTANDER, Verb, ensure
from vemgr.api.client import RemoteError

#: Who is killed. `child`: the process that VEs are forked from, and all that is born during the verb: the set-up
#: process, the VE's init, a command on its way in.
TARGETS = ("daemon", "keeper", "child")


class WrongError(Exception):
    """What should not have been so."""


class Doing:
    """One verb, done over and over again."""

    def __init__(self, stage: Stage, verb: Verb, target: str) -> None:
        self.stage = stage
        self.verb = verb
        self.target = target

    def base(self) -> None:
        if self.verb.bystander:
            ensure(BYSTANDER, "running")(self.stage)
        self.verb.base(self.stage)

    def perform(self) -> None:
        """The verb, untouched. Raises `WrongError` when it fails."""
        if self.verb.begin is not None:
            self.verb.begin(self.stage)()
            self.stage.wait(self._finished, f"{self.verb.name} does not come to its end")
            return
        method, parameters = self._request()
        with self.verb.descriptors(self.stage) as fds:
            try:
                answer = self.stage.call(method, fds, **parameters)
            except RemoteError as error:
                raise WrongError(f"{self.verb.name} fails: {error}") from error
        for fd in answer.get("descriptors", []):
            os.close(fd)
        if self.verb.ends_all:
            self.stage.await_shutdown()
        self.verb.settle(self.stage)

    def traced(self, at: int) -> tuple[Traced, Caller]:
        """The verb under the tracer, which kills the target at its call number `at`; 0 for never."""
        stage, verb = self.stage, self.verb
        caller = stage.client()
        children = stage.spawners() if self.target == "child" else None
        with verb.descriptors(stage) as fds:
            if verb.begin is not None:
                act = verb.begin(stage)  # may bring another daemon
                return trace(self._pid, at, act, self._finished, children=children), caller
            method, parameters = self._request()
            if verb.finished is not None:
                return trace(self._pid, at, lambda: caller.begin(method, parameters, fds), self._finished), caller
            return trace(self._pid, at, lambda: caller.begin(method, parameters, fds), lambda: _readable(caller),
                         caller.fileno(), children=children), caller

    @property
    def _pid(self) -> int:
        return self.stage.daemon if self.target == "daemon" else self.stage.keeper

    def _finished(self) -> bool:
        assert self.verb.finished is not None
        return self.verb.finished(self.stage)

    def _request(self) -> tuple[str, dict[str, Any]]:
        """With what this instance has: its subnet, its limits."""
        method, parameters = self.verb.request
        if self.verb.live:
            parameters = {**parameters, "settings": {**parameters["settings"], **self.stage.limits(2)}}
        text = json.dumps(parameters)
        if "PREFIX" in text:
            prefix = self.stage.call("GetHost")["subnet"].split("/")[0].rpartition(".")[0]
            parameters = json.loads(text.replace("PREFIX", prefix))
        return method, parameters


def _readable(caller: Caller) -> bool:
    return bool(select.select([caller], [], [], 0)[0])
