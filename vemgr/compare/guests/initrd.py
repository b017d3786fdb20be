# SPDX-License-Identifier: GPL-2.0-or-later
"""The first file system of a guest: modules, what mounts the disk, and the runner of commands.

The runner stays in this file system when process 1 goes to that of the disk, so nothing of it is in the tree that is
compared. It reads a serial port, which every kernel has before any module is loaded and which both kinds of guests have
alike. Its half of the conversation is told in `serial.py`.
"""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from vemgr.compare.driver import DriverFailed
from vemgr.compare.tree import FIRST, first_program

PORT = "/dev/ttyS1"
_BUSYBOXES = ("/bin/busybox", "/usr/bin/busybox", "/bin/busybox.static")

# `vemgr.x=` on the kernel's command line are variables here.
_INIT = f"""#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
for word in $($b cat /proc/cmdline); do
    case $word in vemgr.*) eval "${{word#vemgr.}}" ;; esac
done
while read -r module; do $b insmod "/modules/$module"; done </modules/order
while ! [ -b "/dev/$disk" ]; do $b usleep 5000; done
$b mount -t ext4 "/dev/$disk" /new || exec $b sh
$b hostname "$name"
$b ip link set lo up
if [ -n "$address" ]; then
    while ! [ -e /sys/class/net/eth0 ]; do $b usleep 5000; done
    $b ip addr add "$address" dev eth0
    $b ip link set eth0 up
    $b ip route add default via "$gateway"
fi
for each in dev proc sys run tmp; do [ -d /new/$each ] || $b mkdir /new/$each; done
$b mount -t devtmpfs dev /new/dev
$b mkdir -p /new/dev/pts /new/dev/shm
$b mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /new/dev/pts
$b mount -t tmpfs shm /new/dev/shm
$b mount -t proc proc /new/proc
$b mount -t sysfs sys /new/sys
$b mount -t tmpfs -o mode=755 run /new/run
$b cp /first /new{FIRST}
$b stty -F {PORT} raw -echo
$b sh /runner &
cd /new
$b mount --move . /
exec $b chroot . {FIRST} {PORT}
"""

# Replies hold the lock: the end of a command and the answer to another request must not mix.
_RUNNER = f"""b=/bin/busybox
$b mkdir -p /t
exec 3<>{PORT}
lock() {{ while ! $b mkdir /t/lock 2>/dev/null; do $b usleep 1000; done; }}
unlock() {{ $b rmdir /t/lock; }}
say() {{ lock; echo "$@" >&3; unlock; }}
# SESSION PROCESS: servers write over their environment, to show their state in the list of processes.
in_session() {{
    read -r line 2>/dev/null <"$2/stat" || return 1
    set -- "$1" ${{line##*) }}
    [ "$2" != Z ] && [ "$5" = "$1" ]
}}
# MARK COMMAND
marked() {{
    session=$($b cat "/t/$2.sid" 2>/dev/null)
    for each in /proc/[0-9]*; do
        if in_session "$session" "$each" ||
            $b tr '\\0' '\\n' <$each/environ 2>/dev/null | $b grep -q "^VEMGR_COMPARE=$1"; then
            echo "${{each#/proc/}}"
        fi
    done
}}
[ ! -e /before ] || $b sh /before
say ready
while read -r verb one two three <&3; do
    case $verb in
    put)
        $b dd bs="$two" count=1 iflag=fullblock <&3 >>"/t/$one" 2>/dev/null
        say ok
        ;;
    run)
        (
            : >>"/t/$one.in"
            $b setsid $b sh "/t/$one" <"/t/$one.in" >"/t/$one.out" 2>"/t/$one.err" 3>&-
            code=$?
            out=$($b wc -c <"/t/$one.out")
            err=$($b wc -c <"/t/$one.err")
            {{ echo "end $one $code $out $err"; $b cat "/t/$one.out" "/t/$one.err"; }} >"/t/$one.reply"
            lock
            $b cat "/t/$one.reply" >&3
            unlock
            $b rm -f "/t/$one" "/t/$one".*
        ) &
        ;;
    spawn)
        $b setsid $b sh "/t/$one" </dev/null >/dev/null 2>&1 3>&- &
        say ok
        ;;
    kill)
        count=0
        for pid in $(marked "$two" "$three"); do
            $b kill -"$one" "$pid" 2>/dev/null && count=$((count + 1))
        done
        say "killed $count"
        ;;
    off)
        $b sync
        $b mount -o remount,ro /proc/1/root
        $b poweroff -f
        ;;
    esac
done
"""

#: For the trial of an accelerator: it has booted when this is on the console.
BOOTED = "vemgr-guest-has-booted"
_TRIAL = f"""#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox echo {BOOTED} >/dev/console
/bin/busybox poweroff -f
"""


def busybox() -> Path | None:
    """A static one of the host; one that needs libraries is of no use in a guest."""
    for path in (*_BUSYBOXES, shutil.which("busybox") or ""):
        if path and Path(path).is_file() and b"ld-linux" not in Path(path).read_bytes()[:8192]:
            return Path(path)
    return None


def guest(modules: Iterable[tuple[str, bytes]], before: str = "") -> bytes:
    """Of a guest. `modules`: in the order in which they are loaded. `before`: a script to be run by the runner, before
    it says that it is ready."""
    loaded = [*modules]
    files = {f"modules/{name}": content for name, content in loaded}
    if before:
        files["before"] = before.encode()
    order = "".join(f"{name}\n" for name, _ in loaded)
    return archive({**_common(_INIT), "runner": _RUNNER.encode(), "first": first_program().read_bytes(), **files,
                    "modules/order": order.encode()}, executable={"init", "bin/busybox", "first"})


def trial() -> bytes:
    return archive(_common(_TRIAL), executable={"init", "bin/busybox"})


def _common(init: str) -> dict[str, bytes]:
    program = busybox()
    if program is None:
        raise DriverFailed("there is no static busybox for the guests", remedy="install the package busybox-static")
    return {"bin/busybox": program.read_bytes(), "init": init.encode()}


def archive(files: Mapping[str, bytes], *, executable: set[str]) -> bytes:
    """In the format that the kernel unpacks (initramfs-buffer-format.rst, "newc"), with the directories it needs."""
    directories = {"dev", "proc", "sys", "new", *(name.rpartition("/")[0] for name in files if "/" in name)}
    entries = [(name, stat.S_IFDIR | 0o755, b"") for name in sorted(directories)]
    entries += [(name, stat.S_IFREG | (0o755 if name in executable else 0o644), content)
                for name, content in files.items()]
    entries.append(("TRAILER!!!", 0, b""))
    return b"".join(_entry(number, *entry) for number, entry in enumerate(entries, 1))


def _entry(number: int, name: str, mode: int, content: bytes) -> bytes:
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
