# SPDX-License-Identifier: GPL-2.0-or-later
"""Network: rates to a VE and from it, with one TCP stream between two VEs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

from benchmark.limits.result import Result, spread
from benchmark.limits.stage import Stage

_TALK = """
import socket, sys, time
role, address = sys.argv[1:3]
if role == "take":
    with socket.create_server((address, 7000)) as listener:
        peer, total, told = listener.accept()[0], 0, 0
        while data := peer.recv(1 << 16):
            total += len(data)
            if time.monotonic() - told > 0.05:
                told = time.monotonic()
                print(told, total, flush=True)
while True:
    try:
        with socket.create_connection((address, 7000)) as peer:
            while True:
                peer.sendall(bytes(1 << 14))
    except ConnectionRefusedError:
        time.sleep(0.05)
"""


_SLOW_START = 3.0  # seconds until TCP has found the rate
_FRAME, _CONTENT = 1514, 1448  # bytes of a full frame, and of TCP's content in it, with time stamps


def rates(stage: Stage) -> Iterator[Result]:
    for megabits in (10, 100):
        limited = stage.ve(network="bridge", network_rate=f"{megabits}M")
        free = stage.ve(network="bridge")
        for name, sender, taker in (("to", free, limited), ("from", limited, free)):
            got = _stream(stage, sender, taker)
            off = max(abs(value / megabits - 1) for value in got)
            yield Result(f"network rate {megabits}M, {name} the VE", "within 2 %", f"{spread(got)} Mbit/s", got,
                         off <= 0.02)
        stage.clear()


def _stream(stage: Stage, sender: str, taker: str) -> list[float]:
    """Mbit/s of whole frames: what arrives of TCP's content, with the headers that it had."""
    address = stage.vemgr.call("Show", name=taker)["address"]
    took, sent = (_talk(stage, ve, role, address) for ve, role in ((taker, "take"), (sender, "send")))
    try:
        time.sleep(_SLOW_START + 2 * stage.seconds * stage.repeat + 1)
    finally:
        for talker in (sent, took):
            talker.kill()
    words = [line.split() for line in took.communicate()[0].splitlines()]
    looks = [(float(when), int(total)) for when, total in words]
    sent.wait()
    windows = [[look for look in looks if 0 <= look[0] - looks[0][0] - _SLOW_START - number * 2 * stage.seconds
                < 2 * stage.seconds] for number in range(stage.repeat)]
    return [(window[-1][1] - window[0][1]) * _FRAME / _CONTENT * 8 / 1e6 / (window[-1][0] - window[0][0])
            for window in windows]


def _talk(stage: Stage, ve: str, role: str, address: str) -> subprocess.Popen[str]:
    pid = stage.vemgr.call("Show", name=ve)["pid"]
    return subprocess.Popen(["nsenter", "-t", str(pid), "-n", sys.executable, "-c", _TALK, role, address],
                            stdout=subprocess.PIPE, text=True)
