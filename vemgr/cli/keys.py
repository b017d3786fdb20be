# SPDX-License-Identifier: GPL-2.0-or-later
"""The keys that leave a console, found in what is typed."""

from __future__ import annotations

from vemgr.core.errors import BadValue

DEFAULT = "ctrl-],ctrl-],ctrl-]"


class DetachKeys:
    """`held`: what may be the beginning of the keys; it is the VE's if they do not go on soon."""

    def __init__(self, text: str) -> None:
        """`text`: keys with commas between, each a character or ctrl- and one. Raises `BadValue`."""
        self._keys = b"".join(_key(part, text) for part in text.split(","))
        self.held = b""

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """What the VE gets, and whether the keys were complete; what is typed behind them is dropped."""
        out = bytearray()
        for position in range(len(typed)):
            self.held += typed[position:position + 1]
            if self.held == self._keys:
                return bytes(out), True
            while not self._keys.startswith(self.held):
                out += self.held[:1]
                self.held = self.held[1:]
        return bytes(out), False

    def give_up(self) -> bytes:
        held, self.held = self.held, b""
        return held


def _key(part: str, text: str) -> bytes:
    name = part.lower().removeprefix("ctrl-")
    if len(name) == 1 and name.isascii() and name.isprintable():
        if name == part:
            return name.encode()
        if "a" <= name <= "z" or name in "@[\\]^_":
            return bytes([ord(name.upper()) ^ 0x40])
    raise BadValue("--detach-keys", text, "not a list of keys", remedy="write them like 'ctrl-a,q'")
