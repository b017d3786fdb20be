# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts and stops of many VEs, in the order that their settings ask for (`core.ordering`)."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Any

from vemgr.core.errors import BadValue, Locked, NoSuchVE, NotReady, NotRunning, SystemFailure, VemgrError
from vemgr.core.ordering import Node, Sequence, find_cycle, reverse
from vemgr.runtime.instances import Instance, Instances

log = logging.getLogger(__name__)

_STOPS = 32  # at once; most of a stop is waiting
_LOOK = 0.1  # seconds until a VE that is busy with another verb is asked again


@dataclass(frozen=True)
class Outcome:
    """`step`: "up", or what ended the VE."""

    name: str
    step: str = ""
    error: VemgrError | None = None


class Order:
    """`start`: a VE. `stop`: a VE, with the seconds it has to end by itself and the time of the loop by when it must
    have. `at_once`: how many may be coming up. `all_stops`: seconds that a stop of all VEs has."""

    def __init__(self, instances: Instances, start: Callable[[str], Awaitable[None]],
                 stop: Callable[[str, float | None, float], Awaitable[str]],
                 in_background: Callable[[Coroutine[Any, Any, None]], None], at_once: int, all_stops: int) -> None:
        self._instances = instances
        self._start = start
        self._stop = stop
        self._in_background = in_background
        self._at_once = at_once
        self._all_stops = float(all_stops)
        self._over = asyncio.Event()  # set for the starts that are going on: no more are begun

    def end_starts(self) -> None:
        """What is being started goes on, the rest is not begun; nobody waits for VEs to be up any more."""
        self._over.set()
        self._over = asyncio.Event()

    async def start(self, names: Collection[str]) -> AsyncIterator[Outcome]:
        """Start VEs, each when what it comes after is up, or has failed, or has had its time."""
        coming_up = {before for name in names for before in self._instances.get(name).definition.settings.after
                     if (found := self._instances.find(before)) and found.running and not found.up.is_set()}
        sequence = Sequence(self._nodes({*names, *coming_up}))
        for cycle in sequence.cut:
            log.error("VE %s does not wait for VE %s, for that would go round: %s", *cycle[:2], " after ".join(cycle))
        failed: dict[str, VemgrError] = {}
        over = self._over

        async def one(name: str) -> Outcome:
            for before in sorted(sequence.waits_for(name) & failed.keys()):
                log.warning("VE %s starts although VE %s, which it comes after, is not up: %s", name, before,
                            failed[before])
            return await self._start_one(name, over)

        async for outcome in self._each(sequence, self._at_once, one, over):
            if outcome.error is not None:
                failed[outcome.name] = outcome.error
            if outcome.name in names:
                yield outcome

    async def _start_one(self, name: str, over: asyncio.Event) -> Outcome:
        try:
            instance = self._instances.get(name)
            seconds = float(instance.definition.settings.ready_timeout)
            if not instance.running:
                await self._start(name)
            if seconds and not instance.up.is_set():
                waiting = asyncio.ensure_future(wait_until_up(instance, instance.pid, seconds))
                await _first(waiting, over)
                if not waiting.done():
                    waiting.cancel()
                    return Outcome(name, "started")
                waiting.result()
        except VemgrError as error:
            return Outcome(name, error=error)
        except Exception as error:  # one VE must not keep the others from starting
            log.exception("VE %s does not start", name)
            return Outcome(name, error=SystemFailure(f"VE {name} does not start: {error}"))
        return Outcome(name, "up")

    async def stop(self, names: Collection[str], timeout: float | None) -> AsyncIterator[Outcome]:
        """Stop VEs in the reverse order. All together have a time, of which each VE may take so much that what remains
        is as long for each that has to wait for it; one that takes longer is killed."""
        self.end_starts()
        now = asyncio.get_running_loop().time
        deadline = now() + self._all_stops
        sequence = Sequence(reverse(self._nodes(names)))

        async def one(name: str) -> Outcome:
            rounds = max(sequence.chain(name), math.ceil(sequence.remaining / _STOPS))
            return await self._stop_one(name, timeout, now() + max(0.0, deadline - now()) / rounds)

        async for outcome in self._each(sequence, _STOPS, one, asyncio.Event()):
            yield outcome

    async def _stop_one(self, name: str, timeout: float | None, until: float) -> Outcome:
        while True:
            try:
                return Outcome(name, await self._stop(name, timeout, until))
            except (NotRunning, NoSuchVE):
                return Outcome(name, "ended by itself")
            except Locked as error:  # it is being started, or copied
                if asyncio.get_running_loop().time() >= until:
                    return Outcome(name, error=error)
                await asyncio.sleep(_LOOK)
            except VemgrError as error:
                return Outcome(name, error=error)
            except Exception as error:
                log.exception("VE %s does not stop", name)
                return Outcome(name, error=SystemFailure(f"VE {name} does not stop: {error}"))

    async def _each(self, sequence: Sequence, width: int, one: Callable[[str], Coroutine[Any, Any, Outcome]],
                    over: asyncio.Event) -> AsyncIterator[Outcome]:
        tasks: dict[asyncio.Task[Outcome], str] = {}
        try:
            while sequence.remaining and not over.is_set():
                for name in sequence.take(width - len(tasks)):
                    tasks[asyncio.create_task(one(name))] = name
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    sequence.settled(tasks[task])
                for task in done:
                    del tasks[task]
                    yield task.result()
        finally:  # nobody may listen any more; what has been begun is not given up
            for task in tasks:
                self._in_background(_to_its_end(task))

    def _nodes(self, names: Collection[str]) -> list[Node]:
        return [Node(name, instance.definition.settings.boot_priority, instance.definition.settings.after)
                for name in names if (instance := self._instances.find(name)) is not None]


async def _to_its_end(task: asyncio.Task[Outcome]) -> None:
    outcome = await task
    if outcome.error is not None:
        log.error("%s", outcome.error)


async def _first(task: asyncio.Future[None], event: asyncio.Event) -> None:
    happening = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((task, happening), return_when=asyncio.FIRST_COMPLETED)
    finally:
        happening.cancel()


async def wait_until_up(instance: Instance, pid: int, seconds: float) -> None:
    """The VE may be stopped meanwhile, or end, which is then what is told."""
    up, ended = (asyncio.ensure_future(event.wait()) for event in (instance.up, instance.ended))
    try:
        await asyncio.wait((up, ended), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        up.cancel()
        ended.cancel()
    if up.done() and not up.cancelled():
        return
    if instance.pid != pid or instance.ended.is_set():
        raise NotReady(f"VE {instance.name} was started but has ended before it was up: {instance.last_exit}",
                       remedy=f"vemgr logs {instance.name}", ve=instance.name)
    raise NotReady(f"VE {instance.name} runs but has not said within {seconds:g} s that it is up",
                   remedy=f"vemgr logs {instance.name} shows what it is doing", ve=instance.name)


def check_order(instances: Instances, name: str, after: tuple[str, ...]) -> None:
    """Raises `BadValue` if `name` would come after itself. Names that nobody has yet are allowed."""
    if not after:
        return
    all_ = {instance.name: instance.definition.settings.after for instance in instances} | {name: after}
    cycle = find_cycle(all_, name)
    if cycle:
        raise BadValue("after", " ".join(after), f"it goes round: {' after '.join(cycle)}",
                       remedy="take one of them out of the circle")
