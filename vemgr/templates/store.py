# SPDX-License-Identifier: GPL-2.0-or-later
"""The store of templates: one directory each, `<directory>/NAME/{template.toml, rootfs/}`.

A template appears and disappears by one rename, so whoever lists the store sees whole templates only. What is being
made or taken apart is called `.NAME.partial-XXXX`; the daemon sweeps such leftovers when it starts.

The calls block (an import reads a whole archive): the daemon runs them in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from vemgr.core.errors import (
    BadValue,
    NoSpace,
    SystemFailure,
    TemplateExists,
    TemplateInUse,
    TemplateNotFound,
    TemplateUnusable,
)
from vemgr.core.layers import HOST_TEMPLATE, Template, check_template_name
from vemgr.kernel.durable import make_directories, rename_durably
from vemgr.kernel.removal import remove_tree
from vemgr.templates.archive import DEFAULT_LIMITS, ArchiveLimits, unpack
from vemgr.templates.facts import describe_tree, read_os_release
from vemgr.templates.record import Record, read_template, write_record
from vemgr.templates.skeleton import build_skeleton, newly_unreadable

log = logging.getLogger(__name__)

TemplateList = list[Template]  # the method `list` hides the builtin inside the class

_PARTIAL = re.compile(r"\..+\.partial-[0-9a-f]{8}")


def utc_now() -> str:
    """The present time, ISO 8601, whole seconds, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Templates:
    """The templates below `directory`, which is made when first needed, for root only.

    `now` tells the time of creation, `host_root` is what the template `host` links to.
    """

    def __init__(self, directory: Path, *, now: Callable[[], str] = utc_now, host_root: str = "/") -> None:
        self.directory = directory
        self._now = now
        self._host_root = host_root
        self._doomed: set[str] = set()

    def list(self) -> TemplateList:
        """All usable templates, by name. One that is damaged is logged and left out: it must not hide the others."""
        found = []
        for name in self._entries():
            if name.startswith("."):
                continue
            try:
                found.append(self.show(name))
            except (BadValue, TemplateNotFound, TemplateUnusable) as why:
                log.warning("template left out of the list: %s", why)
        return found

    def show(self, name: str) -> Template:
        """Raises BadValue, TemplateNotFound (also when it was removed by hand), TemplateUnusable."""
        check_template_name(name)
        return read_template(self.directory / name, self._host_root)

    def import_archive(
        self,
        name: str,
        stream: BinaryIO,
        *,
        description: str,
        init: str | None = None,
        limits: ArchiveLimits = DEFAULT_LIMITS,
        progress: Callable[[int], None] | None = None,
    ) -> Template:
        """Makes a template of an untrusted tar stream (see `archive.unpack`); on failure nothing is left behind.

        `init`: path in the tree of the program to run as process 1; looked for if None, "" for none.
        Raises BadValue, TemplateExists, TemplateUnusable, NoSpace, SystemFailure.
        """
        check_template_name(name)
        _check_description(description)
        if name == HOST_TEMPLATE:
            raise BadValue("template", name, "this name belongs to the built-in template")
        if os.path.lexists(self.directory / name):
            raise TemplateExists(name)
        with self._partial(name) as partial:
            rootfs = partial / "rootfs"
            rootfs.mkdir(0o755)
            with _directory(rootfs) as root_fd:
                summary = unpack(stream, root_fd, limits=limits, progress=progress)
                facts = describe_tree(root_fd, init)
            record = Record(
                kind="archive", description=description, created=self._now(), size=summary.bytes, files=summary.entries,
                distribution=facts.distribution, version=facts.version, architecture=facts.architecture,
                init=facts.init, init_kind=facts.init_kind,
            )
            write_record(partial, record)
            self._publish(partial, name)
            try:
                return self.show(name)
            except BaseException:
                self._take_away(name)
                raise

    def host(self) -> Template:
        """The built-in template `host`, made at the first call. Raises SystemFailure, NoSpace."""
        with contextlib.suppress(TemplateNotFound):
            return self.show(HOST_TEMPLATE)
        return self._build_host()

    def host_leaks(self) -> Sequence[str]:
        """Files that packages have added to the host since `host` was made and that only the host's root may read.

        A VE on `host` could read them, so `refresh_host` is due. Takes seconds. Raises TemplateNotFound.
        """
        with _failures("the template of the host could not be checked"):
            trees = [tree for tree in self.show(HOST_TEMPLATE).trees if tree.mountpoint != "/"]
            return [path for tree in trees for path in newly_unreadable(tree)]

    def refresh_host(self, running: Sequence[str] = ()) -> Template:
        """Makes `host` anew, after the host's configuration or packages have changed.

        `running`: the VEs that run on it now; their overlays hold the old layers, which are about to be deleted, so
        there must be none (TemplateInUse). A stopped VE keeps its own writes and meets the new layers when it starts.
        """
        if running:
            raise TemplateInUse(HOST_TEMPLATE, list(running))
        return self._build_host()

    def remove(self, name: str, users: Sequence[str]) -> None:
        """Removes a template. `users`: the VEs that stand on it (TemplateInUse if any). Raises TemplateNotFound."""
        check_template_name(name)
        if users:
            raise TemplateInUse(name, list(users))
        if not os.path.lexists(self.directory / name):
            raise TemplateNotFound(name)
        with _failures(f"template {name} could not be removed"):
            self._take_away(name)

    def sweep(self) -> Sequence[str]:
        """Deletes what an interrupted import or removal has left; returns the names. Only when nothing else runs."""
        leftovers = [name for name in self._entries() if _PARTIAL.fullmatch(name)]
        with _failures("leftovers of templates could not be removed"):
            for name in leftovers:
                remove_tree(str(self.directory / name))
        return leftovers

    def sweep_of(self, name: str) -> None:
        """Delete what an import of `name` that was killed has left. The caller sees to it that there is no other."""
        for entry in self._entries():
            if _PARTIAL.fullmatch(entry) and entry.startswith(f".{name}.partial-"):
                self._discard(str(self.directory / entry))

    def _entries(self) -> Sequence[str]:
        with _failures("the templates could not be listed"), contextlib.suppress(FileNotFoundError):
            return sorted(os.listdir(self.directory))
        return []

    def _build_host(self) -> Template:
        with self._partial(HOST_TEMPLATE) as partial:
            with _directory(partial) as fd:
                summary = build_skeleton(fd, self._host_root)
            with _directory(Path(self._host_root)) as host_fd:
                release = read_os_release(host_fd)
            record = Record(
                kind="host", description="links to the host's own operating system", created=self._now(),
                size=summary.bytes, files=summary.files, distribution=release.get("ID", ""),
                version=release.get("VERSION_ID", ""), architecture=os.uname().machine, links=list(summary.links),
            )
            write_record(partial, record)
            if os.path.lexists(self.directory / HOST_TEMPLATE):
                # Two renames, not one: a crash between them leaves no `host`, and the next call makes it again.
                self._take_away(HOST_TEMPLATE)
            self._publish(partial, HOST_TEMPLATE)
        return self.show(HOST_TEMPLATE)

    @contextlib.contextmanager
    def _partial(self, name: str) -> Iterator[Path]:
        """A new directory to make template `name` in; deleted unless it was published."""
        partial = self._partial_path(name)
        with _failures(f"template {name} could not be stored"):
            # Root only: the setuid programs and the secrets of a tree are nobody else's business on the host.
            make_directories(str(self.directory))
            partial.mkdir(0o700)
            try:
                yield partial
            finally:
                self._discard(str(partial))

    def _partial_path(self, name: str) -> Path:
        return self.directory / f".{name}.partial-{secrets.token_hex(4)}"

    def _publish(self, partial: Path, name: str) -> None:
        try:
            rename_durably(str(partial), str(self.directory / name))
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):  # another import was faster
                raise TemplateExists(name) from None
            raise

    def _take_away(self, name: str) -> None:
        """Renames first: a template that is half deleted must not be found by name."""
        doomed = str(self._partial_path(name))
        rename_durably(str(self.directory / name), doomed)
        self._discard(doomed)

    def _discard(self, path: str) -> None:
        """Delete what nobody finds by name. What resists is tried again with the next, and when the daemon starts."""
        self._doomed.add(path)
        for doomed in sorted(self._doomed):
            try:
                if os.path.islink(doomed) or os.path.isfile(doomed):
                    os.unlink(doomed)
                else:
                    remove_tree(doomed)
            except FileNotFoundError:
                pass
            except OSError as error:
                log.error("%s could not be deleted: %s", doomed, error)
                continue
            self._doomed.discard(doomed)


def _check_description(text: str) -> None:
    if len(text) > 200 or not text.isprintable():
        raise BadValue("description", text, "it must be one line of at most 200 printable characters")


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _failures(what: str) -> Iterator[None]:
    """Turns an OSError into the error of the family that names `what`."""
    try:
        yield
    except OSError as error:
        kind = NoSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else SystemFailure
        raise kind(f"{what}: {error}", errno=error.errno, path=error.filename) from error
