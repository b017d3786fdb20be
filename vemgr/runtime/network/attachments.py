# SPDX-License-Identifier: GPL-2.0-or-later
"""What running VEs have of the network: links with addresses, ports of bridges, published ports.

It may differ from the definition, which says what the next start gives. So it is kept in /run, one file for each VE,
for the daemon that comes after this one; it goes with a reboot, as the VEs do.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from vemgr.core.errors import VemgrError
from vemgr.core.links import Link, Publication, parse_links, parse_publications, show_links, show_publications
from vemgr.kernel.elements import Element, own_elements, published_elements, share_elements
from vemgr.runtime.store import storage_errors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attachment:
    """`links` have their MAC addresses; `ports` are the host ends' names, one for each link. `target`: the link that
    published ports lead to. `classid`: its class on the uplink (`kernel.uplink`), 0 for none of its own."""

    ve: str
    links: tuple[Link, ...]
    ports: tuple[str, ...]
    publish: tuple[Publication, ...] = ()
    target: int = 0
    classid: int = 0

    def own(self) -> list[Element]:
        """What lets the VE send."""
        return [element for port, link in zip(self.ports, self.links, strict=True)
                for element in own_elements(port, link.mac, link.addresses)]

    def published(self) -> list[Element]:
        """What leads to it from outside."""
        if not self.links:
            return []
        target = self.links[self.target]
        return [element for publication in self.publish
                for element in published_elements(publication, target.address, target.address6)]

    def share(self) -> list[Element]:
        """What gives its packets their class."""
        if not self.classid:
            return []
        return [element for link in self.links for element in share_elements(self.classid, link.addresses)]

    def elements(self) -> list[Element]:
        return self.own() + self.published() + self.share()


class Attachments:
    """Those of all running VEs, by name; `directory` holds their files."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._by_ve: dict[str, Attachment] = {}

    def __iter__(self) -> Iterator[Attachment]:
        return iter(list(self._by_ve.values()))

    def get(self, ve: str) -> Attachment | None:
        return self._by_ve.get(ve)

    def put(self, attachment: Attachment) -> None:
        """Raises `SystemFailure` or `NoSpace` when the file cannot be written; then nothing has changed."""
        path = self._path(attachment.ve)
        text = json.dumps({"links": show_links(attachment.links), "ports": attachment.ports,
                           "publish": show_publications(attachment.publish), "target": attachment.target,
                           "classid": attachment.classid})
        with storage_errors(f"note the links of VE {attachment.ve}"):
            try:
                _write(path, text)
            except FileNotFoundError:
                os.makedirs(self._directory, mode=0o700, exist_ok=True)
                _write(path, text)
        self._by_ve[attachment.ve] = attachment

    def publish(self, ve: str, publications: tuple[Publication, ...]) -> None:
        self.put(replace(self._by_ve[ve], publish=publications))

    def drop(self, ve: str) -> None:
        self._by_ve.pop(ve, None)
        with contextlib.suppress(OSError):
            os.unlink(self._path(ve))

    def load(self, running: list[str]) -> None:
        """Take up what an earlier daemon has left of VEs that run still, and remove what it left of others."""
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self._directory):
                if entry.name not in running:
                    with contextlib.suppress(OSError):
                        os.unlink(entry.path)
        for ve in running:
            try:
                with open(self._path(ve), encoding="utf-8") as file:
                    self._by_ve[ve] = _parse(ve, file.read())
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError, VemgrError) as error:
                log.warning("VE %s: what it has of the network is not known any more: %s", ve, error)

    def _path(self, ve: str) -> str:
        return f"{self._directory}/{ve}"


def _parse(ve: str, text: str) -> Attachment:
    found = json.loads(text)
    attachment = Attachment(ve, parse_links("links", found["links"]), tuple(map(str, found["ports"])),
                            parse_publications("publish", found["publish"]), int(found["target"]),
                            int(found.get("classid", 0)))
    if len(attachment.ports) != len(attachment.links) or not 0 <= attachment.target <= len(attachment.links):
        raise ValueError("links and ports do not match")
    return attachment


def _write(path: str, text: str) -> None:
    """Replace a file in /run as a whole. Without fsync: it is of no use after a crash of the host."""
    new = f"{path}.new"
    try:
        with open(new, "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(new, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
