# SPDX-License-Identifier: GPL-2.0-or-later
"""The compiled system call filters, ready to be handed to the keeper."""

from __future__ import annotations

import os

import vemgr
from vemgr.kernel import seccomp


class Filters:
    """One for each set of words that a VE's setting `allow` has; compiled once per boot and version, then read from
    `run_dir`."""

    def __init__(self, run_dir: str) -> None:
        self._run_dir = run_dir
        self._fds: dict[tuple[str, ...], int] = {}
        self.fd(())  # what nearly every VE has: not with the first start

    def fd(self, allow: tuple[str, ...]) -> int:
        """A memory file with the filter, which stays ours."""
        if allow not in self._fds:
            fd = os.memfd_create("vemgr-seccomp", os.MFD_CLOEXEC)
            os.write(fd, self._program(frozenset(allow)))
            self._fds[allow] = fd
        return self._fds[allow]

    def _program(self, allow: frozenset[str]) -> bytes:
        path = f"{self._run_dir}/seccomp-{vemgr.__version__}-{seccomp.digest(allow)}.bpf"
        try:
            with open(path, "rb") as file:
                return file.read()
        except FileNotFoundError:
            program = seccomp.compile_filter(allow)
        with open(f"{path}.new", "wb") as file:
            file.write(program)
        os.rename(f"{path}.new", path)
        return program
