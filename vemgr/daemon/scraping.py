# SPDX-License-Identifier: GPL-2.0-or-later
"""As much of HTTP as a Prometheus server needs: GET /metrics, one request for a connection (RFC 9112).

The server of `prometheus_client` has a thread for each client, and no unix sockets. Whoever can connect can read, and
that is all: nothing of a request but its first line is looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
from collections.abc import Awaitable, Callable

from vemgr.core.metrics import MetricsConfig

log = logging.getLogger(__name__)

_PATIENCE = 5.0  # seconds for a client to ask and to take the answer
_MOST = 8  # clients at a time
_LONGEST = 8192  # bytes of a request

Answer = Callable[[], Awaitable[tuple[str, bytes]]]


class Scraping:
    """`answer`: content type and body."""

    def __init__(self, config: MetricsConfig, answer: Answer) -> None:
        self._config = config
        self._answer = answer
        self._clients = 0
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """That somebody else has the port is said, and no reason for VEs to go without a daemon."""
        config = self._config
        try:
            if config.path:
                with contextlib.suppress(FileNotFoundError):
                    if stat.S_ISSOCK(os.lstat(config.path).st_mode):  # an earlier daemon's
                        os.unlink(config.path)
                before = os.umask(0o177)  # root's alone, as the API
                try:
                    self._server = await asyncio.start_unix_server(self._serve, config.path, limit=_LONGEST)
                finally:
                    os.umask(before)
            elif config.address is not None:
                host, port = config.address
                self._server = await asyncio.start_server(self._serve, host, port, limit=_LONGEST)
        except OSError as error:
            log.error("figures for Prometheus cannot be offered on %s: %s", config.listen, error.strerror)
            return
        if not config.local:
            log.warning("figures for Prometheus are offered on %s: whoever reaches that can read them", config.listen)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            if self._config.path:
                with contextlib.suppress(OSError):
                    os.unlink(self._config.path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            async with asyncio.timeout(_PATIENCE):
                writer.write(await self._reply(reader))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client's business
        except ImportError as error:
            log.error("figures for Prometheus cannot be offered: %s", error)
        finally:
            self._clients -= 1
            writer.close()

    async def _reply(self, reader: asyncio.StreamReader) -> bytes:
        if self._clients > _MOST:
            return _response("503 Service Unavailable", "text/plain", b"too many at once\n")
        request = await reader.readuntil(b"\r\n\r\n")
        method, _, rest = request.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", "text/plain", b"GET only\n")
        if path != b"/metrics":
            return _response("404 Not Found", "text/plain", b"there is /metrics\n")
        kind, body = await self._answer()
        return _response("200 OK", kind, body, head=method == b"HEAD")


def _response(status: str, kind: str, body: bytes, *, head: bool = False) -> bytes:
    lines = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return lines.encode() + (b"" if head else body)
