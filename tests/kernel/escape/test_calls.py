# SPDX-License-Identifier: GPL-2.0-or-later
"""Every system call of this machine's table, made in a VE and on the host: what the filter really does."""

import json
import subprocess
from pathlib import Path

import pytest

from vemgr.core import syscalls
from vemgr.kernel import seccomp

CALLS_FILE = Path(__file__).with_name("calls.py")
PYTHON = "/usr/bin/python3"
LAST = 500  # past the end of the table of any kernel there is
REFUSALS = {"EPERM", "ENOSYS"}
# An unknown operation of futex is ENOSYS everywhere.
ELSEWISE = {"futex"}


def tried_on_the_host():
    command = ["unshare", "--mount", "--propagation", "private", "--uts", "--ipc", "--pid", "--fork", "--kill-child",
               PYTHON, str(CALLS_FILE), "0", str(LAST)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=200, start_new_session=True)
    assert told.returncode == 0, told.stderr
    return {int(number): error for number, error in json.loads(told.stdout).items()}


def tried_in(vemgr, *settings):
    name = vemgr.create(*settings, template="host")
    vemgr("start", name)
    vemgr("exec", name, "--", "sh", "-c", "cat > /root/calls.py", input=CALLS_FILE.read_text())
    told = vemgr.out("exec", name, "--", PYTHON, "/root/calls.py", "0", str(LAST))
    vemgr("destroy", "--force", name)
    return {int(number): error for number, error in json.loads(told).items()}


@pytest.fixture(scope="module")
def names():
    (table,) = seccomp.tables().values()
    return table


@pytest.fixture(scope="module")
def host():
    return tried_on_the_host()


def test_over_a_hundred_of_the_table_are_refused(vemgr, fresh, names, host, capsys):
    inside = tried_in(vemgr)
    table = {number for number in inside if number in names or host[number] != "ENOSYS"}
    refused = {number for number in table if inside[number] in REFUSALS and names.get(number) not in ELSEWISE}
    there = {number for number in refused if host[number] not in REFUSALS}
    with capsys.disabled():
        print(f"\n{len(refused)} of {len(table)} system calls are refused; this kernel has {len(there)} of them")
    assert len(refused) >= 100
    assert len(there) >= 60
    # ... and they are those of the policy, and what is newer: nothing else, and none of these is let through.
    policy = syscalls.refusals(frozenset())
    wanted = {number for number in table if names.get(number) in policy or number > syscalls.NEWEST}
    own = {number for number in refused - wanted if host[number] == inside[number]}  # the kernel's word, not ours
    assert refused - own == wanted, sorted(names.get(number, number) for number in (refused - own) ^ wanted)
    for number in wanted:
        assert inside[number] == ("EPERM" if policy.get(names.get(number)) == syscalls.EPERM else "ENOSYS"), number


def test_what_else_is_refused_is_refused_by_the_kernel(vemgr, fresh, names, host):
    """What answers otherwise than on the host, beside the policy, are sockets; every other difference would be a gap
    in what SECURITY.md says."""
    inside = tried_in(vemgr, "--allow", ",".join(syscalls.ALLOWABLE))
    refused = syscalls.refusals(frozenset(syscalls.ALLOWABLE))
    differing = {names[number] for number in names if number <= syscalls.NEWEST and inside[number] != host[number]}
    assert differing - set(refused) <= {"socket", "socketpair"}
    opened = {name for refusal in syscalls.REFUSED if refusal.allow for name in refusal.names}
    by_name = {name: number for number, name in names.items()}
    for name in opened & set(by_name):
        assert inside[by_name[name]] == host[by_name[name]], name


I386 = r"""
#include <stdio.h>
int main(void)
{
	long result, x32;
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(20L) : "memory", "r8", "r9", "r10", "r11");
	__asm__ volatile("syscall" : "=a"(x32) : "a"(0x40000000L + 39) : "rcx", "r11", "memory");
	printf("%ld %ld\n", result > 0 ? 0 : result, x32 > 0 ? 0 : x32);
	return 0;
}
"""


def test_calls_of_other_abis(vemgr, fresh, tmp_path):
    """getpid of i386 by its interrupt, and of x32 by its bit, from a 64-bit program."""
    if subprocess.run(["uname", "-m"], capture_output=True, text=True).stdout.strip() != "x86_64":
        pytest.skip("only x86-64 has them")
    (tmp_path / "abi.c").write_text(I386)
    subprocess.run(["gcc", "-O1", "-static", "-o", tmp_path / "abi", tmp_path / "abi.c"], check=True, timeout=60)
    host = subprocess.run([tmp_path / "abi"], capture_output=True, text=True, timeout=20)
    assert host.stdout.split()[0] == "0", "this kernel has i386"
    for settings, wanted in (((), "-38 -38"), (("--allow", "i386"), "0 -38")):
        name = vemgr.create(*settings)
        vemgr("start", name)
        vemgr("exec", name, "--", "sh", "-c", "cat > /abi && chmod +x /abi", input=(tmp_path / "abi").read_bytes(),
              text=False)
        assert vemgr.out("exec", name, "--", "/abi").strip() == wanted
