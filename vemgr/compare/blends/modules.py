# SPDX-License-Identifier: GPL-2.0-or-later
"""Which Python packages vemgr stands on, found by what its sources import: wherever they come from, a distribution or
PyPI, and whether or not something has been noted of them there.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from vemgr.compare.driver import DriverFailed

#: Not for a host of VEs: what makes guests, with all libraries of libvirt, and what others test themselves with.
_WITHOUT = frozenset({"libvirt", "pytest"})


@functools.cache
def packages(package: str) -> dict[str, Path]:
    """By name, the files or directories of `package` and of all that it imports and that is not of the standard
    library. Raises `DriverFailed` when an import of the package itself cannot be found."""
    found: dict[str, Path] = {}
    wanted = [(package, "")]
    while wanted:
        name, by = wanted.pop()
        if name in found or name in sys.stdlib_module_names or name in _WITHOUT:
            continue
        path = _place(name)
        if path is not None:
            found[name] = path
            wanted += [(each, name) for each in _imported_by(path)]
        elif by == package:
            raise DriverFailed(f"{package} imports {name}, which is not installed", module=name)
        # Others import what they could use if it were there.
    return found


def _place(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.has_location and spec.origin else None


def _imported_by(path: Path) -> set[str]:
    found: set[str] = set()
    for source in path.rglob("*.py") if path.is_dir() else [path]:
        if source.suffix == ".py":
            found |= imported(source.read_bytes())
    return found


def imported(source: bytes) -> set[str]:
    """The top packages that it imports, at its beginning or later; nothing of one that is not for this Python."""
    try:
        nodes: Iterable[ast.AST] = ast.walk(ast.parse(source))
    except (SyntaxError, ValueError):
        return set()
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names
