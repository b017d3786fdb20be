# SPDX-License-Identifier: GPL-2.0-or-later
"""What others have published of the same kind of work, to stand beside our figures.

Felter et al. had one large server with two sockets, and other programs than ours. A ratio of theirs that differs from
ours is a question and no error.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = ("W. Felter, A. Ferreira, R. Rajamony, J. Rubio: An Updated Performance Comparison of Virtual Machines and "
          "Linux Containers, ISPASS 2015; ratios computed from the authors' logs, thewmf/kvm-docker-comparison, commit "
          "6820500")


@dataclass(frozen=True)
class Published:
    """Performance as a share of the bare machine's, above 1 is faster; None where it is not in the logs."""

    program: str
    container: float | None
    kvm: float | None


FELTER = {
    "triad": Published("STREAM triad", 45.6 / 45.6, 45.0 / 45.6),
    "random-access": Published("RandomAccess, one socket", 0.0124 / 0.0126, 0.0125 / 0.0126),
    "float": Published("Linpack, KVM tuned", 290.9 / 290.8, 284.2 / 290.8),
    "request.median": Published("netperf TCP_RR", None, 37.6 / 67.9),
    "stream": Published("nuttcp over 10 GbE, container with NAT", 9.33 / 9.35, 9.29 / 9.35),
    "sequential.read": Published("fio sequential read", 807 / 807, 802 / 807),
    "random-read.rate": Published("fio random read 4k, depth 128", 84092 / 84044, 46173 / 84044),
    "random-write.rate": Published("fio random write 4k, depth 128", 112048 / 112034, 59321 / 112034),
    "fio": Published("fio mixed 4k, depth 128", 104518 / 104553, 50737 / 104553),
    "redis": Published("Redis GET, 10 clients, container on a bridge", 73947 / 105435, 56887 / 105435),
}
