# SPDX-License-Identifier: GPL-2.0-or-later
"""What is right after a kill. It is learned: the target is killed while nothing is going on, before the verb and after.

A kill in the midst of the verb must end in one of these pictures.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable

from tests.sweep.doing import Doing, WrongError
from tests.sweep.picture import Picture, difference, take
from tests.sweep.verbs import PUBLISHED, SUBJECT, Step, ensure, nothing
from vemgr.core.errors import VemgrError
from vemgr.kernel.veth import port_prefix

_PATIENCE = 15.0  # seconds after which what is wrong is taken to stay so
_STILL = 0.15  # seconds without a change: a picture to learn


class Expected:
    """`after_kill`: the states that an interrupted verb may leave, by name. `base`: the verb's base, once everything
    has been in use. All raise `WrongError`."""

    def __init__(self, doing: Doing) -> None:
        self._doing = doing
        self._stage = doing.stage
        self.after_kill: list[tuple[str, Picture]] = []
        self.base: list[tuple[str, Picture]] = []

    def learn(self) -> None:
        """Raises `WrongError` where even a kill at rest leaves something behind."""
        doing = self._doing
        ensure(SUBJECT, "absent")(self._stage)
        for _ in range(2):
            doing.base()
            doing.perform()
        doing.base()
        before = self._still()
        self._learn("undone", nothing)
        self._learn("done", lambda _stage: doing.perform())
        for step in doing.verb.between:
            self._learn("between", step)
        if doing.target == "keeper":
            # It was killed before the verb had to do with it, and the next one has done it.
            doing.base()
            self._kill_at_rest()
            doing.verb.base(self._stage)
            doing.perform()
            self.after_kill.append(("done by the next", self._still()))
        # As each point ends: the verb done, and undone, by whoever has been started anew.
        doing.base()
        self._kill_at_rest()
        doing.base()
        doing.perform()
        doing.base()
        self.base = [("base", before), ("base with a new one", self._still())]
        self._check_same_but(("daemon", "keeper"), self.base[1][1], self.base[:1])

    def _learn(self, name: str, step: Step) -> None:
        self._doing.base()
        step(self._stage)
        at_rest = after = self._still()
        if self._doing.target == "daemon":
            self._kill_at_rest()
            after = self._still()
            self._check_same_but(("daemon",), after, [(f"{name}, before a kill at rest", at_rest)])
        elif self._doing.target == "keeper":
            self._kill_at_rest()
            after = self._still()
            left = [*after["disks"], *after["cgroups"][2:],
                    *(link for link in after["links"] if link.startswith("link of")),
                    *(file for file in after["files"] if file.startswith("run/network/")),
                    *re.findall(rf"\b{PUBLISHED}\b", after["rules"]),
                    *re.findall(rf'"{port_prefix(self._stage.instance)}[^*"]+"', after["rules"])]
            if left or any(ve != ("stopped", "", False) for ve in after["ves"].values()):
                raise WrongError(f"the keeper was killed at rest, and left are {left} and {after['ves']}")
            self._check_same_but(("daemon", "keeper", "ves", "processes", "cgroups", "links", "files", "rules",
                                  "disks"),
                                 after, [(f"{name}, before a kill at rest", at_rest)])
        self.after_kill.append((name, after))

    def _kill_at_rest(self) -> None:
        stage = self._stage
        if self._doing.target == "daemon":
            stage.kill(stage.daemon)
            stage.start_daemon()
        elif self._doing.target == "keeper":
            stage.kill(stage.keeper)
            stage.start_keeper()
            stage.wait(lambda: stage.call("GetHost")["keeperPid"] == stage.keeper,
                       "the daemon does not find the new keeper")

    def _still(self) -> Picture:
        """The picture, once it has stopped changing."""
        began = since = time.monotonic()
        last = self._take()
        while time.monotonic() - since < _STILL:
            time.sleep(0.02)
            now = self._take()
            if now != last:
                last, since = now, time.monotonic()
            if time.monotonic() - began > _PATIENCE:
                raise WrongError("it does not come to rest")
        return last

    def _take(self) -> Picture:
        self._stage.reap()
        return take(self._stage)

    def _check_same_but(self, keys: Iterable[str], now: Picture, others: list[tuple[str, Picture]]) -> None:
        trimmed = [(name, {**picture, **{key: now[key] for key in keys}}) for name, picture in others]
        if all(now != picture for _, picture in trimmed):
            raise WrongError(f"at rest: {difference(now, trimmed)}")

    def await_one_of(self, pictures: list[tuple[str, Picture]], when: str) -> str:
        """Wait until the host looks like one of them; returns which."""
        deadline = time.monotonic() + _PATIENCE
        why = "?"
        while time.monotonic() < deadline:
            try:
                now = self._take()
                for name, picture in pictures:
                    if self._matches(now, picture, pictures):
                        return name
                why = difference(now, pictures)
            except (VemgrError, OSError, AssertionError) as error:  # nobody serves yet
                why = f"{type(error).__name__}: {error}"
                self._stage.forget_client()
            time.sleep(0.004)
        raise WrongError(f"{when}: {why}")

    def _matches(self, now: Picture, picture: Picture, pictures: list[tuple[str, Picture]]) -> bool:
        # The daemon opens its netlink sockets when it needs them first: as often as not while it cleans up.
        loose = {"daemon", *self._doing.verb.leaves}
        known = [other for _, other in (*pictures, *self.base)]
        return all(now[key] == picture[key] for key in picture if key not in loose) and all(
            any(now[key] == other[key] for other in known) for key in loose - {"daemon"}) and _is_between(
                now["daemon"], [other["daemon"] for other in known])


def _is_between(now: list[str], known: list[list[str]]) -> bool:
    """Nothing that none of them has, and all that one of them has."""
    counted, others = Counter(now), [Counter(other) for other in known]
    return any(counted <= other for other in others) and any(other <= counted for other in others)
