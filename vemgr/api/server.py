# SPDX-License-Identifier: GPL-2.0-or-later
"""Serving varlink interfaces on a unix socket.

asyncvarlink describes an interface and converts its types; what goes over the socket is ours. Its own server takes some
20 turns of the event loop for a call and its connection, more than all else the daemon does for a start; lets one
client wait in its queue, not 128; and stops for good when it is short of descriptors once.

Of many replies to one call the next is made when the last has been sent: nothing is kept for a slow reader.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

from asyncvarlink import (
    FileDescriptorArray,
    VarlinkErrorReply,
    VarlinkInterfaceRegistry,
    VarlinkMethodCall,
    VarlinkMethodReply,
)
from asyncvarlink.conversion import ConversionError, FileDescriptorVarlinkType
from asyncvarlink.interface import VarlinkMethodSignature
from asyncvarlink.serviceerrors import ExpectedMore, InvalidParameter

from vemgr.core.errors import SystemFailure

log = logging.getLogger(__name__)

_BACKLOG = 128
_NAP = 0.1  # seconds
_CHUNK = 65536
_MOST_DESCRIPTORS = 16  # in one message; the interface's own have three
_MESSAGE_BOUND = 1 << 20  # bytes; a command is bounded at 64,000

_encode = json.JSONEncoder(separators=(",", ":")).encode


class Server:
    """`failure` turns what a method has raised into the error that the client gets."""

    def __init__(self, listener: socket.socket, registry: VarlinkInterfaceRegistry,
                 failure: Callable[[Exception], VarlinkErrorReply]) -> None:
        self.registry = registry
        self.failure = failure
        self.connections: set[Connection] = set()
        self._listener = listener
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        self._listener.setblocking(False)
        self._listener.listen(_BACKLOG)
        self._resume()

    def _resume(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """No new connections; those that there are stay."""
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()

    def _accept(self) -> None:
        try:
            connected, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Who wants to connect stays in the queue, and the listener readable: without a nap we would spin.
            log.error("a connection cannot be accepted: %s", error.strerror)
            self._loop.remove_reader(self._listener.fileno())
            self._loop.call_later(_NAP, self._resume)
            return
        connected.setblocking(False)
        self.connections.add(Connection(self, connected))


class Connection:
    """One client. Its calls are answered in order; the next one is read when the reply to the last has been sent."""

    def __init__(self, server: Server, connected: socket.socket) -> None:
        self._server = server
        self._socket = connected
        # By number: asyncio would print the socket into an error text each time it looks for it in vain.
        self._fd = connected.fileno()
        self._loop = asyncio.get_running_loop()
        self._message = bytearray()  # as much of the next call as has come
        self._descriptors: list[int] = []  # that have come with it
        self._damaged = False
        self._work: asyncio.Task[None] | None = None
        self._streaming = False  # replies to a call go out until there are no more, or nobody listens
        self._reading = True
        self._loop.add_reader(self._fd, self._read)

    def _read(self) -> None:
        if self._work is not None:  # few clients say more before they have a reply, so only now do we stop to listen
            self._loop.remove_reader(self._fd)
            self._reading = False
            if self._streaming and self._gone():
                self._work.cancel()
            return
        try:
            # Descriptors belong to the message that they come with: nothing may be read beyond its end.
            seen = self._socket.recv(_CHUNK, socket.MSG_PEEK)
            data, fds, flags, _ = socket.recv_fds(self._socket, seen.find(0) + 1 or len(seen) or 1, _MOST_DESCRIPTORS,
                                                  socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            self._close()
            return
        self._message += data
        self._descriptors += fds
        # The kernel drops descriptors when we have no number free for them.
        self._damaged = self._damaged or bool(flags & socket.MSG_CTRUNC) or len(self._descriptors) > _MOST_DESCRIPTORS
        if self._damaged:
            self._drop_descriptors()  # or a message in a million parts could bring all that we may have
        if not data or len(self._message) > _MESSAGE_BOUND:
            self._close()
        elif data.endswith(b"\0"):
            self._work = self._loop.create_task(self._serve())

    def _gone(self) -> bool:
        try:
            return not self._socket.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    async def _serve(self) -> None:
        """Answer the call that has come."""
        received = FileDescriptorArray(self, self._descriptors)
        self._descriptors = []
        try:
            with FileDescriptorArray.new_managed() as returned:
                call = _parse(self._message)
                if call.more and self._has_many(call):
                    await self._stream(call, received)
                    return
                reply = await self._reply(call, received, returned)
                if not call.oneway:
                    await self._send(_encoded(reply), [fd.fileno() for fd in returned])
        except asyncio.CancelledError:  # `_read` has seen that nobody listens any more
            self._close()
            raise
        except (OSError, _NoCallError) as error:
            log.debug("a connection is given up: %s", error)
            self._close()
        except Exception:
            log.exception("a reply cannot be made")
            self._close()
        finally:
            received.release(self)
            self._next()

    async def _reply(self, call: VarlinkMethodCall, received: FileDescriptorArray,
                     returned: FileDescriptorArray) -> VarlinkMethodReply:
        try:
            method, signature = self._server.registry.lookup_method(call)
            if signature.more:
                raise ExpectedMore
            result = method(**self._parameters(call, signature, received))
            if signature.asynchronous:
                result = await result
            values = result.parameters
            if signature.return_type.contains_fds:
                values = signature.return_type.tojson(values, {FileDescriptorVarlinkType: returned})
            return VarlinkMethodReply(values)
        except VarlinkErrorReply as error:
            return error.toreply()
        except Exception as error:
            return self._server.failure(error).toreply()

    def _parameters(self, call: VarlinkMethodCall, signature: VarlinkMethodSignature,
                    received: FileDescriptorArray) -> dict[str, Any]:
        if self._damaged:
            raise SystemFailure("not all descriptors could be received", errno=errno.EMFILE,
                                remedy="pass fewer, or raise LimitNOFILE of vemgr.service")
        try:
            found: dict[str, Any] = signature.parameter_type.fromjson(
                call.parameters, {FileDescriptorVarlinkType: received})
        except ConversionError as error:
            raise InvalidParameter(parameter=".".join(map(str, error.location))) from error
        return found

    def _has_many(self, call: VarlinkMethodCall) -> bool:
        try:
            return self._server.registry.lookup_method(call)[1].more
        except VarlinkErrorReply:
            return False

    async def _stream(self, call: VarlinkMethodCall, received: FileDescriptorArray) -> None:
        """Answer with the replies that the method yields, none of which has descriptors. Raises `OSError`."""
        method, signature = self._server.registry.lookup_method(call)
        self._streaming = True
        try:
            if not self._reading and self._gone():  # seen before there was anything to give up
                raise ConnectionResetError
            async with contextlib.aclosing(method(**self._parameters(call, signature, received))) as results:
                async for result in results:
                    reply = VarlinkMethodReply(result.parameters, continues=result.continues)
                    await self._send(_encoded(reply), [])
        except OSError:
            raise
        except VarlinkErrorReply as error:
            await self._send(_encoded(error.toreply()), [])
        except Exception as error:
            await self._send(_encoded(self._server.failure(error).toreply()), [])
        finally:
            self._streaming = False

    async def _send(self, data: bytes, fds: list[int]) -> None:
        """Raises `OSError` when the client has gone."""
        while True:
            try:
                sent = socket.send_fds(self._socket, [data], fds) if fds else self._socket.send(data)
            except BlockingIOError:
                sent = 0
            if sent == len(data):
                return
            data, fds = data[sent:], [] if sent else fds
            await self._writable()

    async def _writable(self) -> None:
        ready = asyncio.Event()
        self._loop.add_writer(self._fd, ready.set)
        try:
            await ready.wait()
        finally:
            self._loop.remove_writer(self._fd)

    def _next(self) -> None:
        self._message.clear()
        self._damaged, self._work = False, None
        if not self._reading and self._socket.fileno() >= 0:
            self._reading = True
            self._loop.add_reader(self._fd, self._read)

    def _close(self) -> None:
        if self._reading:
            self._loop.remove_reader(self._fd)
        self._socket.close()
        self._drop_descriptors()
        self._reading = False
        self._server.connections.discard(self)

    def _drop_descriptors(self) -> None:
        for fd in self._descriptors:
            os.close(fd)
        self._descriptors = []


class _NoCallError(Exception):
    """What has come is no varlink call."""


def _encoded(reply: VarlinkMethodReply) -> bytes:
    return _encode(reply.tojson()).encode() + b"\0"


def _parse(message: bytearray) -> VarlinkMethodCall:
    try:
        return VarlinkMethodCall.fromjson(json.loads(message[:-1]))
    except (ValueError, TypeError, RecursionError) as error:
        raise _NoCallError(str(error)) from error
