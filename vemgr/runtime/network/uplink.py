# SPDX-License-Identifier: GPL-2.0-or-later
"""VEs' shares of the host's uplink: what is out there is a tree of classes that is made with the first share, follows
each change, and goes with the last. A VE without a share costs nothing here."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from vemgr.core.config import Definition
from vemgr.core.errors import NotEnforceable, SystemFailure, VemgrError
from vemgr.core.uplink import UplinkConfig
from vemgr.kernel import uplink as kernel
from vemgr.kernel.link_counters import link_counters
from vemgr.kernel.qdiscs import Drops
from vemgr.runtime.store import storage_errors

log = logging.getLogger(__name__)

_FIELD = "network-guarantee"


@dataclass(frozen=True)
class Share:
    """`minor`: of the VE's class, from its host ids, which no other has. `guarantee`: bit/s."""

    minor: int
    guarantee: int
    weight: int


def share_of(definition: Definition) -> Share | None:
    """None where the VE is one of many."""
    settings = definition.settings
    if not settings.shares_uplink or not definition.links:
        return None
    return Share(definition.id_base >> 16, settings.network_guarantee, settings.network_weight)


class Uplink:
    """`on_found` is called with the uplink's bit/s and those that the host keeps, `on_empty` when the last share is
    about to go."""

    def __init__(self, config: UplinkConfig, instance: str) -> None:
        self._config = config
        self._handle = kernel.handle_of(instance)
        self._device = ""
        self._tree: kernel.Tree | None = None  # None: not planted by this daemon
        self._shares: dict[str, Share] = {}
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_found: Callable[[int, int], None] = lambda _rate, _reserve: None
        self.on_empty: Callable[[], None] = lambda: None

    @property
    def active(self) -> bool:
        return bool(self._shares)

    @property
    def common(self) -> int:
        """Of VEs without a class of their own."""
        return self._handle << 16 | kernel.OTHERS

    def classid(self, ve: str) -> int:
        share = self._shares.get(ve)
        return self._handle << 16 | share.minor if share else 0

    def look(self) -> None:
        """Find out what there is, if there is anything."""
        with contextlib.suppress(VemgrError):
            self._find()

    def sent(self) -> int:
        """Bytes that the uplink has sent, 0 where it is not known."""
        with contextlib.suppress(OSError, KeyError):
            return link_counters()[self._device].sent if self._device else 0
        return 0

    def dropped(self, ve: str, drops: Drops) -> int:
        """Packets of a VE with a share for which its class had no room."""
        return drops.get((self._device, self.classid(ve)), 0)

    def check(self) -> kernel.Tree:
        """Raises `NotEnforceable` with what is missing."""
        tree = self._find()
        root = tree.root()
        if root is not None and root[1] not in (0, self._handle) and not self._config.take_over:
            raise NotEnforceable(_FIELD, f"somebody has put the queueing discipline {root[0]} on {tree.device}",
                                 'remove it with tc, or set take-over = true in the table [uplink] of vemgr.toml')
        return tree

    def _find(self) -> kernel.Tree:
        with storage_errors("look for the host's uplink"):
            device = self._config.device or kernel.default_device()
        if not device:
            raise NotEnforceable(_FIELD, "it has no default route", "name its uplink in vemgr.toml: [uplink] device")
        rate = self._config.rate or kernel.speed(device)
        if rate is None:
            raise NotEnforceable(_FIELD, f"nobody has said how fast its uplink {device} is",
                                 'set it in vemgr.toml, a little below what the line carries: [uplink] rate = "950M"')
        try:
            tree = kernel.Tree(device, self._handle, rate)
        except OSError as error:
            raise NotEnforceable(_FIELD, f"there is no interface {device}", "put [uplink] device right in vemgr.toml"
                                 ) from error
        self._device = device
        self.on_found(rate, self._config.reserve.of(rate))
        return tree

    async def hold(self, ve: str, share: Share) -> None:
        """Give a VE its share, or another. Raises `NotEnforceable`, `SystemFailure`; then it has what it had."""
        if share.minor >= kernel.LEAST_RESERVED:
            raise NotEnforceable(_FIELD, "the VE's host ids are among the last there are", "set id-first lower")
        before, self._shares[ve] = self._shares.get(ve), share
        try:
            async with self._lock:
                await self._branch(share)
        except BaseException as error:
            if before is None:
                self.released(ve)
            else:
                self._shares[ve] = before
            if isinstance(error, OSError):
                raise _refusal(ve, error) from error
            raise

    async def _branch(self, share: Share) -> None:
        had, tree = self._tree is not None, await self._planted()
        try:
            await asyncio.to_thread(tree.branch, share.minor, share.guarantee, share.weight)
        except OSError:
            if not had:
                raise
            # Somebody has taken the root away, or the link has gone and come back. So have the others' classes.
            self._tree = None
            await asyncio.to_thread(self._renew, await self._planted(), [*self._shares.values()])

    async def _planted(self) -> kernel.Tree:
        if self._tree is None:
            tree = self.check()
            await asyncio.to_thread(tree.plant, self._config.reserve.of(tree.rate))
            self._tree = tree
        return self._tree

    def released(self, ve: str) -> None:
        """Its class goes in the background."""
        share = self._shares.pop(ve, None)
        if share is not None:
            self._begin(self._release(ve, share))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _release(self, ve: str, share: Share) -> None:
        async with self._lock:
            if ve in self._shares or self._tree is None:  # it runs again already
                return
            try:
                await asyncio.to_thread(self._tree.cut, share.minor)
                await self._fell_if_empty()
            except OSError as error:
                log.error("VE %s: its share of %s cannot be removed: %s", ve, self._tree.device, error)

    async def _fell_if_empty(self) -> None:
        if self._tree is not None and not self._shares:
            self.on_empty()
            await asyncio.to_thread(self._tree.fell)
            self._tree = None

    async def adopt(self, shares: Mapping[str, Share]) -> None:
        """After a restart of the daemon: what VEs that run are to have, they get; what is left of others goes."""
        self.look()
        self._shares = dict(shares)
        await self.restore()

    async def restore(self) -> None:
        """Make it anew where somebody has changed it."""
        async with self._lock:
            self._tree = None
            try:
                tree = await self._planted() if self._shares else None
                await asyncio.to_thread(kernel.fell_strangers, self._handle, tree.device if tree else "")
                if tree is not None:
                    await asyncio.to_thread(self._renew, tree, list(self._shares.values()))
            except (OSError, VemgrError) as error:
                log.error("the VEs' shares of the uplink: %s", error)

    @staticmethod
    def _renew(tree: kernel.Tree, shares: list[Share]) -> None:
        for share in shares:
            tree.branch(share.minor, share.guarantee, share.weight)
        for minor in tree.minors() - {share.minor for share in shares}:
            tree.cut(minor)

    async def take_back(self) -> None:
        """All of it, when vemgr goes."""
        await asyncio.gather(*self._tasks)
        with storage_errors("give the uplink back"):
            await asyncio.to_thread(kernel.fell_strangers, self._handle, "")
        self._tree = None


def _refusal(ve: str, error: OSError) -> VemgrError:
    if error.errno == errno.ENOENT:
        return NotEnforceable(_FIELD, "the kernel has no HTB", "modprobe sch_htb")
    return SystemFailure(f"VE {ve} cannot get its share of the uplink: {error.strerror or error}", ve=ve,
                         errno=error.errno)
