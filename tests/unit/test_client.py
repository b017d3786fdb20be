# SPDX-License-Identifier: GPL-2.0-or-later
"""The blocking client against servers that answer well, in pieces, or not at all."""

import json
import os
import socket
import threading

import pytest

from vemgr.api.client import Client, RemoteError, exit_code_of
from vemgr.core.errors import PermissionDenied, Unreachable


@pytest.fixture
def serve(tmp_path):
    """Run `answer(connection)` for one connection; returns the path."""
    threads = []
    path = str(tmp_path / "sock")

    def start(answer):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()

        def run():
            with listener, listener.accept()[0] as connection:
                answer(connection)

        threads.append(threading.Thread(target=run))
        threads[0].start()
        return path

    yield start
    for thread in threads:
        thread.join(10)


def request_of(connection):
    data = b""
    while not data.endswith(b"\0"):
        data += connection.recv(4096)
    return json.loads(data[:-1])


@pytest.fixture
def call(serve):
    def one(answer, *arguments):
        client = Client(serve(answer))
        try:
            return client.call(*arguments)
        finally:
            client.close()
    return one


def test_a_call(call):
    seen = []

    def answer(connection):
        seen.append(request_of(connection))
        connection.sendall(b'{"parameters": {"ves": []}}\0')

    assert call(answer, "List") == {"ves": []}
    assert seen == [{"method": "org.vemgr.Manager.List", "parameters": {}}]


def test_a_torn_reply(call):
    text = json.dumps({"parameters": {"text": "ü" * 50}}, ensure_ascii=False).encode() + b"\0"

    def answer(connection):
        request_of(connection)
        for position in range(len(text)):  # a byte at a time, in the middle of letters too
            connection.send(text[position:position + 1])

    assert call(answer, "Show", {"name": "x"}) == {"text": "ü" * 50}


@pytest.mark.parametrize("text", [b"", b'{"param', b'{"parameters": {}}'])
def test_a_server_that_dies(call, text):
    def answer(connection):
        request_of(connection)
        connection.sendall(text)

    with pytest.raises(Unreachable, match="connection to the daemon was lost") as lost:
        call(answer, "Start", {"name": "x"})
    assert "look whether" in lost.value.remedy


def test_an_error(call):
    def answer(connection):
        request_of(connection)
        connection.sendall(json.dumps({"error": "org.vemgr.Manager.NoSuchVE", "parameters": {
            "message": "no such VE: x", "remedy": "look", "exitCode": 14, "facts": {"ve": "x"}}}).encode() + b"\0")

    with pytest.raises(RemoteError) as error:
        call(answer, "Start", {"name": "x"})
    assert (error.value.identifier, exit_code_of(error.value), error.value.facts) == ("NoSuchVE", 14, {"ve": "x"})
    assert str(error.value) == "no such VE: x; look"


def test_an_error_of_varlink_itself(call):
    def answer(connection):
        request_of(connection)
        connection.sendall(b'{"error": "org.varlink.service.MethodNotFound", "parameters": null}\0')

    with pytest.raises(RemoteError, match="MethodNotFound") as error:
        call(answer, "Nonsense")
    assert exit_code_of(error.value) == 3


def test_descriptors_travel_both_ways(call):
    reader, writer = os.pipe()

    def answer(connection):
        data, fds = b"", []
        while not data.endswith(b"\0"):  # a stream: the request may come in parts
            part, more, _, _ = socket.recv_fds(connection, 65536, 4)
            data, fds = data + part, fds + more
        assert len(fds) == 1
        socket.send_fds(connection, [b'{"parameters"'], fds)
        connection.sendall(b': {"status": 0}}\0')
        os.close(fds[0])

    answered = call(answer, "Exec", {"stdio": [0]}, [reader])
    os.write(writer, b"x")
    (copy,) = answered["descriptors"]
    assert answered["status"] == 0 and os.read(copy, 1) == b"x"
    for fd in (reader, writer, copy):
        os.close(fd)


def test_a_large_request_and_reply(call):
    def answer(connection):
        size = len(request_of(connection)["parameters"]["x"])
        connection.sendall(json.dumps({"parameters": {"x": "y" * size}}).encode() + b"\0")

    assert call(answer, "Set", {"x": "x" * 2_000_000}) == {"x": "y" * 2_000_000}


def test_nobody_there(tmp_path, monkeypatch):
    with pytest.raises(Unreachable, match="does not answer"):
        Client(str(tmp_path / "missing"))

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(PermissionDenied, match="only root") as denied:
        Client(str(tmp_path / "missing"))
    assert "sudo" in denied.value.remedy and exit_code_of(denied.value) == 12
