# SPDX-License-Identifier: GPL-2.0-or-later
"""Process 1 of a VE as a program: waits for its set-up, enters its own mount namespace, becomes the VE's init.

Where a template has no init, the process stays and is one (`stay` of spawner.c): it reaps orphans and ends the VE in
good order when it is told to. It costs no exec, and it is out of the VE's reach: its memory belongs to the host's user
namespace and it is not dumpable, so /proc/1/exe, /proc/1/mem and ptrace(2) are closed to the VE's root (CVE-2016-9962,
CVE-2019-5736).
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import struct
import termios

from vemgr.core.plan import Plan
from vemgr.keeper.confine import OPEN_FILES, core_limits
from vemgr.keeper.program import CHANNEL, Program, Register, encoded
from vemgr.kernel import capabilities, libc, namespaces, seccomp

_AT_FDCWD = -100


def append_init(program: Program, plan: Plan, filter_: bytes, go: Register, network: Register) -> None:
    """`go`: a descriptor that gives one byte when the set-up is complete; its end alone means give up. `network`: the
    pipe that tells that the network namespace is there, to the set-up process and to two that it forks, and by its end
    that the mounts have been taken over. The channel is closed by exec, so its end without a report is success."""
    program.step("make the network namespace")
    program.call("unshare", namespaces.CLONE_NEWNET)
    program.call("write", network, b"nnn", 3)
    _bound(program, plan, filter_)
    program.step("wait for the set-up")
    count, ready = program.register(), program.room(8)
    program.call("read", go, ready, 1, into=count)
    ended = program.call("same", count, 0)
    program.call("exit", 1)
    program.expect(ended, errno.EINVAL)
    program.call("close", go)
    _enter_ve(program, network)
    _confine(program, plan)
    if plan.init:
        _execute(program, plan)
    else:
        program.call("close", CHANNEL)
        program.call("stay")


def _enter_ve(program: Program, network: Register) -> None:
    program.step("enter the VE")
    # The copy belongs to the VE's user namespace, which locks every mount in it together.
    program.call("unshare", namespaces.CLONE_NEWNS)
    program.call("close", network)
    program.call("chdir", b"/")
    program.call("setsid")
    console = program.register()
    program.call("openat", _AT_FDCWD, b"/dev/console", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC, into=console)
    program.call("ioctl", console, termios.TIOCSCTTY, 0)
    for target in (0, 1, 2):
        program.call("dup3", console, target, 0)
    program.call("close", console)


def _bound(program: Program, plan: Plan, filter_: bytes) -> None:
    """What a VE may never do, as far as it leaves us what is still to be done: while the set-up has us wait anyway.
    The filter needs CAP_SYS_ADMIN of the VE's user namespace, which may be among those that go later."""
    program.step("drop privileges")
    pointer = program.buffer(struct.pack("=H6xQ", len(filter_) // 8, 0))
    program.call("store64", pointer.plus(8), program.constant(filter_))
    program.call("seccomp", seccomp.SECCOMP_SET_MODE_FILTER, 0, pointer)
    allowed = _allowed(plan)
    for capability in range(capabilities.count()):
        if capability not in allowed:
            program.call("prctl", capabilities.PR_CAPBSET_DROP, capability)
    program.call("umask", 0o022)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limits = struct.pack("=QQ", *(min(limit, hard) for limit in OPEN_FILES))
    program.call("prlimit64", 0, resource.RLIMIT_NOFILE, program.constant(limits), 0)
    cores = program.parameter(16, lambda _: struct.pack("=qq", *core_limits()))
    program.call("prlimit64", 0, resource.RLIMIT_CORE, cores, 0)


def _allowed(plan: Plan) -> set[int]:
    return {capabilities.NAMES.index(name) for name in plan.capabilities}


def _confine(program: Program, plan: Plan) -> None:
    program.step("drop privileges")
    program.call("setgroups", 0, 0)
    program.call("setresgid", 0, 0, 0)
    program.call("setresuid", 0, 0, 0)
    _hide(program)
    program.call("prctl", capabilities.PR_CAP_AMBIENT, capabilities.PR_CAP_AMBIENT_CLEAR_ALL)
    header, data = capabilities.capset_arguments(_allowed(plan))
    program.call("capset", program.buffer(header), program.constant(data))
    # After the change of ids, which clears it: the VE ends with its keeper instead of running unwatched.
    program.call("prctl", libc.PR_SET_PDEATHSIG, signal.SIGKILL)


def _hide(program: Program) -> None:
    """To be repeated after each change of ids and of user namespace: see `confine.hide`."""
    program.call("prctl", libc.PR_SET_DUMPABLE, 0)


def _execute(program: Program, plan: Plan) -> None:
    """execve(2) along PATH of the VE's environment."""
    program.step("exec init")
    init, variables = plan.init, plan.environment
    arguments = program.pointers([encoded(word) for word in init])
    environment = program.pointers([encoded(f"{key}={value}") for key, value in variables.items()])
    places = [""] if "/" in init[0] else [f"{place}/" for place in variables["PATH"].split(":")]
    for place in places:
        call = program.call("execve", encoded(place + init[0]), arguments, environment)
        if place is not places[-1]:
            program.expect(call, errno.ENOENT)
            program.expect(call, errno.ENOTDIR)
