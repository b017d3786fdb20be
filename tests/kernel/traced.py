# SPDX-License-Identifier: GPL-2.0-or-later
"""Which paths of a VE's tree the host's side looks up, as strace(1) sees it.

A process counts as inside a VE from when it enters the VE's mount namespace until it executes a program of the VE.
Until then it acts for the host, and every path that it looks up is one that the VE decides about.
"""

import contextlib
import os
import posixpath
import re
import signal
import subprocess
import time

_CALLS = "%file,openat2,open_tree,move_mount,fspick,clone,clone3,fork,vfork,setns,unshare,pivot_root,fchdir,chdir"
_LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+|\?)(.*)")
_ARGUMENT = re.compile(r"(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?\"((?:[^\"\\]|\\.)*)\"")


@contextlib.contextmanager
def traced(pids, log):
    """All system calls with paths of these processes and of what they fork go to the file `log`."""
    tracer = subprocess.Popen(["strace", "-f", "-y", "-s", "4096", "-o", log, "-e", f"trace={_CALLS}",
                               *(word for pid in pids for word in ("-p", str(pid)))], stderr=subprocess.PIPE, text=True)
    try:
        waiting = {str(pid) for pid in pids}
        while waiting:
            line = tracer.stderr.readline()
            assert line, "strace has ended"
            waiting.discard(line.split()[2] if " attached" in line else "")
        yield
        time.sleep(0.2)  # the last calls of processes that nobody waits for
    finally:
        tracer.send_signal(signal.SIGTERM)
        tracer.communicate(timeout=20)


def descendants(pid):
    found = [pid]
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", errors="replace") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == pid:
                    found += descendants(int(entry))
    return found


class Trace:
    """`inside`: paths looked up in a VE, absolute. `outside`: those that were looked up on the host."""

    def __init__(self, log):
        self.inside = set()
        self.outside = set()
        self._entered = set()
        self._theirs = set()  # processes that run a program of the VE
        self._cwd = {}
        for line in _whole_lines(log):
            match = _LINE.fullmatch(line.rstrip())
            if match:
                self._call(int(match[1]), match[2], match[3], match[4])

    def _call(self, pid, name, arguments, result):
        if pid in self._theirs:
            if name in ("clone", "clone3", "fork", "vfork") and result.isdigit():
                self._theirs.add(int(result))
            return
        if name in ("clone", "clone3", "fork", "vfork"):
            self._forked(pid, arguments, int(result) if result.isdigit() else 0)
            return
        ok = result == "0"
        if ok and (name == "pivot_root" or (name in ("setns", "unshare") and "CLONE_NEWNS" in arguments)):
            self._entered.add(pid)
            self._cwd[pid] = "/"
        # The others of execve are the program's arguments.
        for directory, path in _ARGUMENT.findall(arguments)[:1 if name == "execve" else None]:
            self._path(pid, posixpath.join(directory or self._cwd.get(pid, "?"), path))
        if ok and name == "chdir":
            self._cwd[pid] = posixpath.join(self._cwd.get(pid, "?"), _ARGUMENT.search(arguments)[2])
        if ok and name == "fchdir":
            self._cwd[pid] = re.search("<(.*)>", arguments)[1]
        if ok and name == "execve" and pid in self._entered:
            self._theirs.add(pid)

    def _forked(self, pid, arguments, child):
        # A process of the same mount namespace and root; CLONE_NEWNS gives it a copy of where its parent is.
        if pid in self._entered:
            self._entered.add(child)
        self._cwd[child] = self._cwd.get(pid, "?")

    def _path(self, pid, path):
        (self.inside if pid in self._entered else self.outside).add(path)


def _whole_lines(log):
    """A call during which another process was scheduled comes in two parts."""
    begun = {}
    with open(log, errors="replace") as file:
        for line in file:
            pid = line.split()[0]
            if line.rstrip().endswith("<unfinished ...>"):
                begun[pid] = line.rstrip().removesuffix("<unfinished ...>")
            elif "resumed>" in line and pid in begun:
                yield begun.pop(pid) + line.partition("resumed>")[2]
            else:
                yield line
