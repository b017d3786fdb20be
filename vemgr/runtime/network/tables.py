# SPDX-License-Identifier: GPL-2.0-or-later
"""The VEs' firewall tables: changed in small transactions, and made anew where they are not as they should be."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from vemgr.core.errors import VemgrError
from vemgr.kernel.elements import Element
from vemgr.kernel.firewall import Firewall
from vemgr.kernel.ruleset import Rules
from vemgr.kernel.table_watch import TableWatch
from vemgr.runtime.store import storage_errors

log = logging.getLogger(__name__)


class Tables:
    """`wanted`: the rules, and what running VEs have in them. `in_use`: whether somebody needs them."""

    def __init__(self, name: str, wanted: Callable[[], tuple[Rules, list[Element]]],
                 in_use: Callable[[], bool]) -> None:
        self._name, self._wanted, self._in_use = name, wanted, in_use
        self._firewall: Firewall | None = None
        self._watch: TableWatch | None = None
        self._stale = False  # whether they hold something that should be gone

    @property
    def made(self) -> bool:
        return self._firewall is not None

    def install(self) -> None:
        """Make them what they should be."""
        if self._firewall is None:
            self._firewall = Firewall(self._name)
        rules, elements = self._wanted()
        watch = self._watched()
        self._firewall.ensure(rules, elements)
        watch.removed()  # what we have done ourselves
        self._stale = False

    def change(self, gone: Sequence[Element], new: Sequence[Element]) -> None:
        """One small transaction for each. Raises `VemgrError`."""
        firewall = self._firewall
        if firewall is None or self._stale or not (firewall.take(gone) and firewall.add(new)):
            log.warning("the firewall tables are not as they should be: made anew")
            self.install()

    def release(self, gone: Sequence[Element]) -> None:
        """Remove what nobody needs any more, now or with the next change: nothing has to wait for it."""
        if self._firewall is None:
            return
        try:
            self.change(gone, ())
        except VemgrError as error:
            self._stale = True
            log.error("the firewall tables: what is not needed any more could not be removed: %s", error)

    def remove(self) -> None:
        self._unwatch()
        (self._firewall or Firewall(self._name)).remove()

    def close(self) -> None:
        self._unwatch()
        if self._firewall is not None:
            self._firewall.close()

    def _unwatch(self) -> None:
        if self._watch is not None:
            asyncio.get_running_loop().remove_reader(self._watch)
            self._watch.close()
            self._watch = None

    def _watched(self) -> TableWatch:
        if self._watch is None:
            with storage_errors("watch the firewall tables"):
                watch = TableWatch(self._name)
                try:
                    asyncio.get_running_loop().add_reader(watch, self._on_changed, watch)
                except OSError:
                    watch.close()
                    raise
            self._watch = watch
        return self._watch

    def _on_changed(self, watch: TableWatch) -> None:
        """Somebody has removed rules of ours, as with "nft flush ruleset": put them back at once."""
        if not watch.removed() or not self._in_use():
            return
        log.warning("somebody has removed firewall rules of ours: made anew")
        try:
            self.install()
        except VemgrError as error:
            log.error("the VEs' firewall tables: %s", error)
