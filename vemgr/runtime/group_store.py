# SPDX-License-Identifier: GPL-2.0-or-later
"""Groups on disk: `group/NAME.toml` in the state directory, as the definitions of VEs are (`runtime.store`)."""

from __future__ import annotations

import contextlib
import logging
import os
import tomllib

import tomlkit

from vemgr.core.config import show_settings
from vemgr.core.errors import VemgrError
from vemgr.core.groups import MOST_LEVELS, Group, check_group_name, parse_group_settings
from vemgr.kernel.durable import make_directories, remove_file, remove_unfinished, replace_file
from vemgr.runtime.store import storage_errors

log = logging.getLogger(__name__)

_FORMAT = 1
_SUFFIX = ".toml"
_NO_DEFINITION = (KeyError, ValueError, TypeError, AttributeError, RecursionError)


class GroupStore:
    """Methods raise `NoSpace` or `SystemFailure` for the disk's faults."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def load(self) -> list[Group]:
        """All that can be read, each after the one that it is in. VEs that name another do not start. Deletes what a
        `save` that was killed has left: only while nobody saves."""
        with contextlib.suppress(OSError):
            remove_unfinished(self.directory)
        try:
            names = sorted(name.removesuffix(_SUFFIX) for name in os.listdir(self.directory)
                           if name.endswith(_SUFFIX) and not name.startswith("."))
        except FileNotFoundError:
            return []
        found: dict[str, Group] = {}
        for name in names:
            try:
                check_group_name(name)
                found[name] = self._load(name)
            except (OSError, VemgrError, *_NO_DEFINITION) as error:
                log.error("%s: %s", self._path(name), error)
        return self._in_order(found)

    def _in_order(self, found: dict[str, Group]) -> list[Group]:
        placed: dict[str, Group] = {}
        for _ in range(MOST_LEVELS):
            placed |= {name: group for name, group in found.items()
                       if name not in placed and (not group.parent or group.parent in placed)}
        for name in found.keys() - placed:
            log.error("%s: it is in group %s, which is not there or too deep", self._path(name), found[name].parent)
        return [*placed.values()]

    def _load(self, name: str) -> Group:
        with open(self._path(name), "rb") as file:
            document = tomllib.load(file)
        if document["format"] != _FORMAT:
            raise ValueError(f"this vemgr reads format {_FORMAT}")
        parent = str(document.get("parent", ""))
        texts = {key: str(value) for key, value in document.get("settings", {}).items()}
        return Group(name, parent and check_group_name(parent), parse_group_settings(texts))

    def save(self, group: Group) -> None:
        document = tomlkit.document()
        document.add(tomlkit.comment(f"group {group.name}; 'vemgr group set' changes it"))
        document["format"] = _FORMAT
        document["parent"] = group.parent
        document["settings"] = show_settings(group.settings)
        with storage_errors(f"save group {group.name}"):
            make_directories(self.directory)
            replace_file(self._path(group.name), tomlkit.dumps(document))

    def remove(self, name: str) -> None:
        with storage_errors(f"remove group {name}"), contextlib.suppress(FileNotFoundError):
            remove_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self.directory}/{name}{_SUFFIX}"
