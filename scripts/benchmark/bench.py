# SPDX-License-Identifier: GPL-2.0-or-later
"""What the measurements share: the root file system, a vemgr, and crun."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from benchmark.contenders import Crun, isolated_crun, plain_crun
from benchmark.instance import TEMPLATE, Instance
from benchmark.measure import Failed
from benchmark.tree import make_tree

BARE = "bare"  # the template without an init
Made = TypeVar("Made")


@dataclass(frozen=True)
class Sizes:
    """How much is measured: rounds of interleaved starts, of whole processes, of bursts; VEs in a burst and at rest."""

    rounds: int = 200
    processes: int = 40
    bursts: int = 5
    burst: int = 200
    resident: int = 1000


QUICK = Sizes(rounds=3, processes=2, bursts=2, burst=8, resident=8)


class Bench:
    """`missing`: contenders that are not there or do not run on this host, and why."""

    def __init__(self, base: Path, sizes: Sizes, extra: str = "", os_tree: Path | None = None) -> None:
        """`extra`: further lines for vemgr.toml. `os_tree`: the root of an operating system with systemd."""
        self.base, self.sizes, self.os_tree = base, sizes, os_tree
        self.missing: dict[str, str] = {}
        self._extra = extra
        self._undo = ExitStack()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._undo.close()

    def offer(self, name: str, make: Callable[[], Made]) -> Made | None:
        """What `make` makes; None, and an entry in `missing`, where it fails."""
        try:
            return make()
        except Failed as error:
            self.missing[name] = str(error)
            return None

    @cached_property
    def tree(self) -> Path:
        return make_tree(self.base / "tree")

    @cached_property
    def vemgr(self) -> Instance:
        return self.new_instance("vemgr")

    def new_instance(self, name: str) -> Instance:
        trees = {TEMPLATE: self.tree, BARE: self._bare_tree}
        return self._undo.enter_context(closing(Instance(self.base / name, trees, self._extra)))

    @cached_property
    def _bare_tree(self) -> Path:
        return make_tree(self.base / "bare", init=False)

    @cached_property
    def crun(self) -> Crun | None:
        return self.offer("crun", lambda: plain_crun(self.base, self.tree))

    @cached_property
    def isolated_crun(self) -> Crun | None:
        return self.offer("isolated crun", lambda: isolated_crun(self.base, self.vemgr.settings))
