# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes every system call of a machine's table, each in a child, with arguments that no call can do anything with.

    python3 calls.py FIRST LAST

On standard output comes a JSON object: number to the name of the error, "" for success, "signal N", or "waits". The
arguments are all -1: an address that is not mapped, a descriptor that is not open, flags that do not exist. Calls that
would end or hold up the child (exit, pause, rt_sigreturn, vfork) were at least made.
"""

import ctypes
import errno
import json
import os
import signal
import sys

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def outcome(number):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        minus = [ctypes.c_long(-1)] * 6
        result = libc.syscall(ctypes.c_long(number), *minus)
        code = ctypes.get_errno()
        os.write(writer, b"" if result >= 0 else errno.errorcode.get(code, str(code)).encode())
        os._exit(7)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        told = file.read().decode()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return "waits" if os.WTERMSIG(status) == signal.SIGALRM else f"signal {os.WTERMSIG(status)}"
    return told


def main():
    first, last = map(int, sys.argv[1:3])
    print(json.dumps({number: outcome(number) for number in range(first, last + 1)}))


if __name__ == "__main__":
    main()
