# SPDX-License-Identifier: GPL-2.0-or-later
"""Published ports: held on the host for the VEs that run, and checked for those that are to."""

from __future__ import annotations

import socket

from vemgr.core.links import Publication
from vemgr.kernel import ports
from vemgr.runtime.network.attachments import Attachment


class Published:
    def __init__(self) -> None:
        self._held: dict[str, dict[Publication, list[socket.socket]]] = {}

    def hold(self, attachment: Attachment) -> None:
        """Hold exactly the ports of `attachment`. Raises `AddressInUse`, ...; then it holds no new one."""
        had = self._held.get(attachment.ve, {})
        # First what goes: it may be the same port in another form.
        for publication in set(had) - set(attachment.publish):
            ports.release(had.pop(publication))
        held = self._held[attachment.ve] = had
        ipv6 = bool(attachment.links and attachment.links[attachment.target].address6)
        new: list[Publication] = []
        try:
            for publication in attachment.publish:
                if publication not in held:
                    held[publication] = ports.hold(publication, ipv6=ipv6, anticipate=True)
                    new.append(publication)
        except BaseException:
            for publication in new:
                ports.release(held.pop(publication))
            raise

    def release(self, ve: str) -> None:
        for held in self._held.pop(ve, {}).values():
            ports.release(held)

    def check(self, ve: str, publications: tuple[Publication, ...], *, ipv6: bool) -> None:
        """Whether the host could give these ports to a VE, apart from those that it holds. Raises as `ports.hold`."""
        had = self._held.get(ve, {})
        for publication in publications:
            # One that it has in another form (on one address now, on all then) is in the way of itself only.
            if not any(publication.clashes(other) for other in had):
                ports.release(ports.hold(publication, ipv6=ipv6))
