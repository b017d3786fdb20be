# SPDX-License-Identifier: GPL-2.0-or-later
"""How much of what the kernel counts by number a VE gets. Apart from the plan: the command line needs these, and to
import all kinds of operations with them would take it a tenth of its time."""

from __future__ import annotations

ID_COUNT = 65536
NESTED_BASE = 0  # of VEs in a VE, which have the ids of that one: it has no more to give (docs/adr/0015)
USER_NAMESPACES = 128  # sandboxes of browsers and services need them, each one or two
