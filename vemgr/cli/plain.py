# SPDX-License-Identifier: GPL-2.0-or-later
"""Text of a VE made harmless for a terminal: it is hostile until proven otherwise.

Escape sequences can set a title that some terminals type back, change keys, print what is not there and hide what is.
Those of the usual forms, colours mostly, are left out. All else that is not printable is shown as what it is.
"""

from __future__ import annotations

import codecs
import re

_LONGEST = 1024  # characters of an escape sequence; a longer one is none, so that nothing can hide behind it
# ECMA-48: control sequences; strings up to their end, ST or (xterm) BEL; all others have two or three characters.
_SEQUENCE = re.compile(
    rf"\x1b(?:\[[0-?]{{0,{_LONGEST}}}[ -/]{{0,8}}[@-~]"
    rf"|[\]PX^_][^\x07\x1b\r\n]{{0,{_LONGEST}}}(?:\x07|\x1b\\)"
    r"|[ -/]{1,2}[0-~]|[0-OQ-WYZ\\`-~])")
# What may go on in the next piece: the beginning of a sequence, or a return that may be a whole line end.
_OPEN_END = re.compile(
    rf"(?:\x1b(?:\[[0-?]{{0,{_LONGEST}}}[ -/]{{0,8}}|[\]PX^_][^\x07\x1b\r\n]{{0,{_LONGEST}}}\x1b?|[ -/]{{0,2}})?"
    r"|\r+)\Z")
_LINE_END = re.compile(r"\r+\n?")  # also a lone return, behind which a line could be overwritten
_SAFE = frozenset("\n\t")


class Plain:
    """Bytes come in pieces, cut anywhere."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._held = ""

    def feed(self, data: bytes, *, final: bool = False) -> str:
        text = self._held + self._decoder.decode(data, final)
        self._held = ""
        if not final and (found := _OPEN_END.search(text, max(0, len(text) - _LONGEST))):
            self._held = found[0]
            text = text[:found.start()]
        text = _LINE_END.sub("\n", _SEQUENCE.sub("", text))
        if text.isprintable():
            return text
        return "".join(c if c in _SAFE or c.isprintable() else _shown(c) for c in text)


def _shown(character: str) -> str:
    code = ord(character)
    if code < 0x20 or code == 0x7F:
        return f"^{chr(code ^ 0x40)}"
    return character.encode("unicode_escape").decode()
