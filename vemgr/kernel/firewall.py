# SPDX-License-Identifier: GPL-2.0-or-later
"""vemgr's own nftables tables, one of the inet and one of the bridge family.

Both are replaced as a whole in one transaction through libnftables(3), so that there is no moment without them, and the
result does not depend on what was there. Other tables are never touched. Note what that cannot do: a packet must be
accepted by every table, so a drop in somebody else's (docker sets the policy of FORWARD to drop, firewalld rejects)
still wins.
"""

from __future__ import annotations

import ctypes
import errno
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from vemgr.core.errors import BadValue, KernelLacks, SystemFailure
from vemgr.kernel import elements as messages
from vemgr.kernel.elements import Element
from vemgr.kernel.netlink import Requests
from vemgr.kernel.ruleset import MARKER, Rules, removal, ruleset

_MARKED = re.compile(rf'^\tcomment "{MARKER}"$', re.MULTILINE)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_FAMILIES = ("inet", "bridge")

NETLINK_NETFILTER = 12  # linux/netlink.h
NFT_CTX_DEFAULT = 0
NFT_CTX_OUTPUT_JSON = 1 << 4
NFT_CTX_OUTPUT_TERSE = 1 << 11


class Firewall:
    """Both tables of one name, in the network namespace of the calling thread. `ensure` takes a few ms.

    Raises BadValue for a name that is none, and KernelLacks where libnftables is not installed.
    """

    def __init__(self, table: str = "vemgr") -> None:
        if not _NAME.fullmatch(table):
            raise BadValue("table", table, "not a name of at most 32 letters, digits, _ and -")
        self.table = table
        self._library = _load()
        self._requests: Requests | None = None

    def close(self) -> None:
        if self._requests is not None:
            self._requests.close()
            self._requests = None

    def ensure(self, rules: Rules, elements: Iterable[Element] = ()) -> None:
        """Make the tables what `rules` say, in one transaction. Raises BadValue if a foreign table has their name."""
        self._refuse_foreign()
        self._run(ruleset(self.table, rules, elements))

    def add(self, elements: Sequence[Element]) -> bool:
        """Add elements, all or none; False when the tables are not as they should be: `ensure` puts that right."""
        return self._change(messages.additions(self.table, elements)) if elements else True

    def take(self, elements: Sequence[Element]) -> bool:
        """Take elements away, all or none; False as for `add`."""
        return self._change(messages.removals(self.table, elements)) if elements else True

    def _change(self, transaction: list[bytes]) -> bool:
        try:
            if self._requests is None:
                self._requests = Requests(NETLINK_NETFILTER)
            self._requests.send(transaction, acknowledged=-2)
        except OSError as error:
            # No table, set or element of the name, or one that says something else.
            if error.errno in (errno.ENOENT, errno.EEXIST, errno.EBUSY, errno.EINVAL):
                return False
            raise SystemFailure(f"nftables refused a change of table {self.table}: {error.strerror}", call="nft",
                                errno=error.errno) from error
        return True

    def remove(self) -> None:
        """Delete the tables; not an error when there are none. Raises BadValue if one is not ours."""
        self._refuse_foreign()
        self._run(removal(self.table))

    def present(self) -> bool:
        """Whether both of our tables exist."""
        existing = self._existing()
        return len(existing) == len(_FAMILIES) and all(map(self._marked, existing))

    def listing(self) -> str:
        """The tables as `nft list table` prints them, empty when there are none."""
        return "".join(self._run(f"list table {family} {self.table}") for family in self._existing())

    def run_json(self, command: str) -> str:
        """What nft prints for a command that changes nothing, as JSON (libnftables-json(5)). Raises SystemFailure."""
        return self._run(command, NFT_CTX_OUTPUT_JSON)

    def _refuse_foreign(self) -> None:
        for family in self._existing():
            if not self._marked(family):
                raise BadValue(
                    "table", self.table, f"there is an nftables table of this name ({family}) which is not vemgr's",
                    remedy="set table to another name",
                )

    def _existing(self) -> list[str]:
        tables = json.loads(self._run("list tables", NFT_CTX_OUTPUT_JSON))["nftables"]
        found = [(entry["table"]["family"], entry["table"]["name"]) for entry in tables if "table" in entry]
        return [family for family in _FAMILIES if (family, self.table) in found]

    def _marked(self, family: str) -> bool:
        # Without its elements, of which there are many: only what stands at the top says whose it is.
        return _MARKED.search(self._run(f"list table {family} {self.table}", NFT_CTX_OUTPUT_TERSE)) is not None

    def _run(self, commands: str, output: int = 0) -> str:
        """Run nft commands as one transaction and return what they print. Raises SystemFailure."""
        self._look_for_a_descriptor()
        # A context holds a socket of the namespace it was made in, and caches the ruleset: none outlives a call.
        context = self._library.nft_ctx_new(NFT_CTX_DEFAULT)
        if not context:
            raise SystemFailure("cannot use nftables: libnftables gives no context", call="nft_ctx_new")
        try:
            self._library.nft_ctx_buffer_output(context)
            self._library.nft_ctx_buffer_error(context)
            self._library.nft_ctx_output_set_flags(context, output)
            if self._library.nft_run_cmd_from_buffer(context, commands.encode()) != 0:
                why = self._library.nft_ctx_get_error_buffer(context).decode(errors="replace").strip()
                raise SystemFailure(f"nftables refused table {self.table}: {why}", call="nft", commands=commands)
            return str(self._library.nft_ctx_get_output_buffer(context).decode(errors="replace"))
        finally:
            self._library.nft_ctx_free(context)


    def _look_for_a_descriptor(self) -> None:
        """libnftables ends the whole process where it cannot open its socket (netlink_init_error in src/mnl.c)."""
        try:
            Requests(NETLINK_NETFILTER).close()
        except OSError as error:
            raise SystemFailure(f"cannot ask nftables for table {self.table}: {error.strerror}", call="socket",
                                errno=error.errno) from error


def _load() -> Any:
    try:
        library = ctypes.CDLL("libnftables.so.1")
    except OSError as error:
        raise KernelLacks(f"libnftables is missing: {error}", remedy="install libnftables1 (nftables)") from None
    library.nft_ctx_new.argtypes = (ctypes.c_uint32,)
    library.nft_ctx_new.restype = ctypes.c_void_p
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = (ctypes.c_void_p,)
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).argtypes = (ctypes.c_void_p,)
        getattr(library, name).restype = ctypes.c_char_p
    library.nft_ctx_output_set_flags.argtypes = (ctypes.c_void_p, ctypes.c_uint)
    library.nft_ctx_output_set_flags.restype = None
    library.nft_run_cmd_from_buffer.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
    library.nft_ctx_free.argtypes = (ctypes.c_void_p,)
    library.nft_ctx_free.restype = None
    return library
