# SPDX-License-Identifier: GPL-2.0-or-later
"""Definitions on disk: `ve/NAME/config.toml`, readable and editable by an administrator.

A definition is replaced as a whole: written beside, fsynced, renamed, its directory fsynced, so that a crash at any
moment leaves the old one or the new one (rename(2), and "All File Systems Are Not Created Equal", OSDI 2014).
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import stat
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import tomlkit
from tomlkit.exceptions import ParseError

from vemgr.core.config import Definition, parse_settings, show_settings
from vemgr.core.errors import BadValue, NoSpace, NoSuchVE, SystemFailure, VEExists, VemgrError
from vemgr.core.ids import ID_COUNT, NESTED_BASE
from vemgr.core.links import Link, parse_address, parse_links, show_links
from vemgr.core.names import check_name
from vemgr.kernel.durable import (
    make_directories,
    rename_durably,
    replace_file,
    replaced_file,
    unfinished,
)
from vemgr.kernel.namespaces import nested
from vemgr.kernel.quota import assign
from vemgr.kernel.removal import remove_tree

log = logging.getLogger(__name__)

FORMAT = 2
# What comes of a text that is no TOML, or of tables where there should be texts. A thousand brackets are too deep for
# the parser, and infinity is too large to be a number of ids.
_NO_DEFINITION = (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError)
_READABLE = (1, FORMAT)  # 1: one link, to the network "bridge", with its address under `address`
DISK_IMAGE, DISK_PARTIAL = "disk.img", ".disk.img.partial"  # see `images`
_STARTED = "started"  # a file beside the definition
_HIGHEST_ID = 1 << 32
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Broken(VemgrError):
    """A definition on disk cannot be read; the VE is left alone until somebody mends the file."""

    exit_code = 3


class Store:
    """The directory `ve` of the state directory. Methods raise `NoSpace` or `SystemFailure` for the disk's faults."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._read: dict[str, tuple[tuple[int, ...], Definition]] = {}  # as they were in the files
        with storage_errors("make the state directory"):
            make_directories(directory)

    def path(self, name: str) -> str:
        return f"{self.directory}/{name}"

    def names(self) -> list[str]:
        with storage_errors("list the definitions"):
            return sorted(e.name for e in os.scandir(self.directory) if not e.name.startswith(".") and e.is_dir())

    def load(self, name: str) -> Definition:
        path = f"{self.path(name)}/config.toml"
        try:
            with storage_errors(f"read the definition of VE {name}"):
                # Each start asks, since an administrator may have edited the file; to read it when nobody has would be
                # the longest of all that the daemon does for a start.
                version = _version(os.stat(path))
                known = self._read.get(name)
                if known is not None and known[0] == version:
                    return self._marked(known[1])
                with open(path, "rb") as file:
                    content = file.read()
        except SystemFailure as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise NoSuchVE(name) from None
            raise
        try:
            definition = _parse(name, content.decode())
            self._read[name] = version, definition
            return self._marked(definition)
        except _NO_DEFINITION as error:
            raise Broken(f"the definition of VE {name} cannot be read: {error}", remedy=f"mend {path}",
                         path=path) from error
        except VemgrError as error:
            raise Broken(f"the definition of VE {name} is wrong: {error.message}", remedy=f"mend {path}",
                         path=path) from error

    def salvage(self, name: str) -> Definition:
        """What can be known of a VE whose definition is broken: enough to leave it running, and to give neither its
        ids nor its address to another."""
        ve: dict[str, object] = {}
        id_base = 0
        links: tuple[Link, ...] = ()
        with suppress(OSError, *_NO_DEFINITION), open(f"{self.path(name)}/config.toml", "rb") as file:
            ve = tomllib.load(file).get("ve", {})
        with suppress(*_NO_DEFINITION):
            id_base = int(str(ve.get("id-base")))
        with suppress(BadValue, *_NO_DEFINITION):
            links = _links(ve)
        with suppress(OSError):
            id_base = id_base or os.stat(f"{self.path(name)}/data/0/upper").st_uid
        return Definition(name=name, template="?", id_base=id_base, created="", links=links, started=True)

    def create(self, definition: Definition) -> None:
        """Make the VE's directory with its definition, complete or not at all."""
        path = self.path(definition.name)
        with storage_errors(f"create VE {definition.name}"):
            partial = self._make_partial(definition.name)
            try:
                replace_file(f"{partial}/config.toml", _render(definition))
                if os.path.lexists(path):
                    raise VEExists(definition.name)
                rename_durably(partial, path)
            except BaseException:
                with suppress(OSError):  # without remove_tree, which would need descriptors
                    os.unlink(f"{partial}/config.toml")
                with suppress(OSError):
                    os.rmdir(partial)
                raise

    def _make_partial(self, name: str) -> str:
        """An empty directory for what is to be a VE; what an interrupted try has left goes."""
        partial = f"{self.directory}/.{name}.partial"
        if os.path.lexists(partial):
            remove_tree(partial)
        os.mkdir(partial, 0o700)
        return partial

    def begin(self, definition: Definition, count: int, project: int = 0) -> str:
        """The directory of a VE that is made of another, with `count` trees for its writes: hidden until `finish`.
        Returns its path."""
        with storage_errors(f"create VE {definition.name}"):
            partial = self._make_partial(definition.name)
            try:
                self._make_trees(f"{partial}/data", definition.id_base, count, project)
            except BaseException:
                with suppress(OSError):
                    remove_tree(partial)
                raise
        return partial

    def finish(self, definition: Definition) -> None:
        """Show the VE that was begun: there is all of it from now on."""
        partial = f"{self.directory}/.{definition.name}.partial"
        with storage_errors(f"create VE {definition.name}"):
            replace_file(f"{partial}/config.toml", _render(definition))
            rename_durably(partial, self.path(definition.name))

    def rename(self, definition: Definition, new: str) -> None:
        """Give a VE another name, in one step. Before it, its next start becomes a first one, which does no harm to a
        VE that keeps its name."""
        old, path = self.path(definition.name), self.path(new)
        with storage_errors(f"rename VE {definition.name}"):
            if os.path.lexists(path):
                raise VEExists(new)
            replace_file(f"{old}/config.toml", _render(replace(definition, started=False), _existing(
                f"{old}/config.toml")))
            with suppress(FileNotFoundError):
                os.unlink(f"{old}/{_STARTED}")
            self._read.pop(definition.name, None)
            rename_durably(old, path)

    def save(self, definition: Definition) -> None:
        path = f"{self.path(definition.name)}/config.toml"
        with storage_errors(f"save the definition of VE {definition.name}"):
            replace_file(path, _render(definition, _existing(path)))

    @contextmanager
    def saved(self, definition: Definition) -> Iterator[None]:
        """Save it; where what is done meanwhile fails, the one that was there comes back. See `replaced_file`."""
        path = f"{self.path(definition.name)}/config.toml"
        with storage_errors(f"save the definition of VE {definition.name}"), replaced_file(
                path, _render(definition, _existing(path))):
            yield

    def _marked(self, definition: Definition) -> Definition:
        if definition.started or not os.path.exists(f"{self.path(definition.name)}/{_STARTED}"):
            return definition
        return replace(definition, started=True)

    def mark_started(self, name: str) -> None:
        """Remember that a VE has been started: by a file, since saving the definition takes as long as the start did.
        If a crash or a full disk takes the mark away, /etc/hosts is written once more, which does no harm."""
        with suppress(OSError), open(f"{self.path(name)}/{_STARTED}", "wb"):
            pass

    def trees(self, definition: Definition, count: int, project: int = 0) -> bool:
        """Have the directories for the VE's own writes: data/N/{upper,work} for each tree of its template. What is new
        belongs to a project (`kernel.quota`). Returns whether all of it is new; on failure nothing new is left."""
        data = f"{self.path(definition.name)}/data"
        new = not os.path.lexists(data)
        if new and os.path.lexists(f"{self.path(definition.name)}/{DISK_IMAGE}"):
            raise SystemFailure(f"the files of VE {definition.name} are on a disk with a size, not in a directory",
                                remedy="its definition must say 'disk'", ve=definition.name)
        try:
            with storage_errors(f"prepare the data of VE {definition.name}"):
                self._make_trees(data, definition.id_base, count, project if new else 0)
        except VemgrError:
            if new:
                self.drop_trees(definition.name, count)
            raise
        return new

    @staticmethod
    def _make_trees(data: str, id_base: int, count: int, project: int) -> None:
        for number in range(count):
            if _is_made(f"{data}/{number}", id_base):  # at each start but the first
                continue
            if project:
                os.makedirs(f"{data}/{number}", mode=0o700)
                assign(f"{data}/{number}", project)  # and so all that is made in it
            for kind in ("upper", "work"):
                os.makedirs(f"{data}/{number}/{kind}", mode=0o700, exist_ok=True)
            upper = f"{data}/{number}/upper"
            # The root directory of the overlay is this one: readable by all users of the VE, reachable by none
            # of the host, as the directories above are 0700.
            os.chmod(upper, 0o755)
            os.chown(upper, id_base, id_base)

    def drop_trees(self, name: str, count: int) -> str:
        """Undo `trees` where all of it was new: there are only files of ours in it, and most often none. So it goes
        without descriptors, and without the renames of `remove_tree`, which want space: it may be for want of them that
        the VE did not start. What cannot be deleted now is put out of sight; returns what is then to be purged."""
        data = f"{self.path(name)}/data"
        for path in (*(f"{data}/{number}{kind}" for number in range(count) for kind in ("/upper", "/work", "")), data):
            with suppress(OSError):
                os.rmdir(path)
        try:
            shutil.rmtree(data)
        except FileNotFoundError:
            pass
        except OSError as error:
            return self._out_of_sight(data, name, error)
        return ""

    def _out_of_sight(self, data: str, name: str, why: OSError) -> str:
        gone = self._gone(name)
        try:
            os.rename(data, gone)
        except OSError:
            log.error("the data of VE %s, which has not started, could not be removed: %s", name, why)
            return ""
        return gone

    def _gone(self, name: str) -> str:
        return f"{self.directory}/.{name}.{secrets.token_hex(4)}.removed"

    def remove(self, name: str) -> str:
        """Take a VE out of sight in one step, so that a crash leaves no half VE; returns what is then to be purged."""
        gone = self._gone(name)
        self._read.pop(name, None)
        with storage_errors(f"remove VE {name}"), suppress(FileNotFoundError):  # somebody has deleted it by hand
            rename_durably(self.path(name), gone)
        return gone

    def tidy(self, name: str) -> None:
        """Delete what a `save`, or a change of a disk, that was killed has left; only while nobody saves."""
        with suppress(OSError):
            os.unlink(unfinished(f"{self.path(name)}/config.toml"))
        with suppress(OSError):
            os.unlink(f"{self.path(name)}/{DISK_PARTIAL}")

    @staticmethod
    def purge(gone: str) -> bool:
        """Delete what was removed, which may take long; whether it is gone."""
        try:
            remove_tree(gone)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.error("%s could not be deleted, which is tried again later: %s", gone, error)
            return False
        return True

    def leftovers(self) -> list[str]:
        """What an interrupted create or destroy has left, to be purged. Other hidden names are not ours."""
        with storage_errors("list the definitions"):
            return [e.path for e in os.scandir(self.directory)
                    if e.name.startswith(".") and e.name.endswith((".partial", ".removed"))]


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn the disk's `OSError` into an error that says what could not be done."""
    try:
        yield
    except OSError as error:
        path, code = error.filename or "", error.errno or 0
        if code in _FULL:
            raise NoSpace(f"cannot {what}: no space left on the disk", remedy="free some space or inodes",
                          path=path, errno=code) from error
        raise SystemFailure(f"cannot {what}: {error.strerror or error}", path=path, errno=code) from error


def _is_made(tree: str, id_base: int) -> bool:
    """Whether a tree for a VE's own writes is there, with the owner and the mode that it needs."""
    try:
        upper = os.stat(f"{tree}/upper", follow_symlinks=False)
    except OSError:
        return False
    return (upper.st_mode == stat.S_IFDIR | 0o755 and upper.st_uid == upper.st_gid == id_base
            and os.path.isdir(f"{tree}/work"))


def _version(status: os.stat_result) -> tuple[int, ...]:
    """What changes with the content of a file."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _parse(name: str, text: str) -> Definition:
    document = tomllib.loads(text)  # a tenth of the time of tomlkit, which is needed for comments only
    if document["format"] not in _READABLE:
        raise BadValue("format", document["format"], f"this vemgr reads format {FORMAT}")
    ve = document["ve"]
    if not _is_base(int(ve["id-base"])):
        raise BadValue("id-base", ve["id-base"], "no range of ids for a VE begins there")
    return Definition(
        name=check_name(name), template=str(ve["template"]), id_base=int(ve["id-base"]), created=str(ve["created"]),
        settings=parse_settings({key: str(value) for key, value in document.get("settings", {}).items()}),
        links=_links(ve), started=bool(ve.get("started", False)),
        ephemeral=bool(ve.get("ephemeral", False)),
    )


def _is_base(number: int) -> bool:
    """Never the host's own ids, and in a VE never others than that one's."""
    return number == NESTED_BASE if nested() else ID_COUNT <= number <= _HIGHEST_ID - ID_COUNT


def _links(ve: Mapping[str, Any]) -> tuple[Link, ...]:
    if "links" in ve:
        return parse_links("links", str(ve["links"]))
    return (Link(address=parse_address("address", str(ve["address"]))),) if ve.get("address") else ()


def _existing(path: str) -> tomlkit.TOMLDocument:
    """The document as it is, for the comments an administrator has written into it."""
    with suppress(FileNotFoundError, ParseError), open(path, encoding="utf-8") as file:
        return tomlkit.parse(file.read())
    return tomlkit.document()


def _render(definition: Definition, document: tomlkit.TOMLDocument | None = None) -> str:
    if document is None:
        document = tomlkit.document()
        document.add(tomlkit.comment(f"VE {definition.name}; 'vemgr set' changes the settings"))
    document["format"] = FORMAT
    values = {"template": definition.template, "id-base": definition.id_base, "created": definition.created,
              "links": show_links(definition.links), "started": definition.started, "ephemeral": definition.ephemeral}
    _merge(document, "ve", values)
    _merge(document, "settings", show_settings(definition.settings))
    return tomlkit.dumps(document)


def _merge(document: tomlkit.TOMLDocument, name: str, values: Mapping[str, object]) -> None:
    if name not in document:
        document[name] = tomlkit.table()
    table = document[name]
    assert isinstance(table, dict)
    for key in [key for key in table if key not in values]:
        del table[key]
    for key, value in values.items():
        if key not in table or table[key] != value:
            table[key] = value
