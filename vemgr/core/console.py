# SPDX-License-Identifier: GPL-2.0-or-later
"""The console of a VE as both sides of the API know it: the stream of an attached client, and the files of the log.

The stream is a SOCK_SEQPACKET socket between the client and the keeper. The first byte of a message says what it is.
"""

from __future__ import annotations

import struct

# Both ways: what is typed or printed.
DATA = b"d"
# From the client: a struct winsize, as TIOCGWINSZ gives it.
SIZE = b"w"
# From the keeper: the VE runs, what follows is its console's; it has ended, with the wait status as a native int;
# that many bytes (a decimal number) were left out, since the client did not read; it is sent away, with the reason.
RUNS, ENDED, LOST, GONE = b"r", b"e", b"l", b"x"

MOST_DATA = 3500  # bytes after the first one: with what the kernel adds it is just below a page
SCROLLBACK = 16384  # bytes of what the VE has printed since its start that a client gets first
MOST_CLIENTS = 16  # of one VE

# The log of a VE is a directory with these: each of at most LOG_BOUND bytes, the second continues the first.
LOG_OLDER, LOG = "console.old.log", "console.log"
LOG_BOUND = 131072
# When it was printed: a file for each. First the inode number of the log that it belongs to, then, for each second in
# which something was printed, where that begins and the second. A log with so many of them is full too.
TIMES_OLDER, TIMES = "console.old.times.log", "console.times.log"
TIMES_HEAD = struct.Struct("=Q")
TIME = struct.Struct("=II")  # offset in bytes, seconds since 1970
TIMES_BOUND = TIMES_HEAD.size + 4096 * TIME.size


def log_directory(run_dir: str) -> str:
    """Holds a directory for each VE that has printed something."""
    return f"{run_dir}/log"
