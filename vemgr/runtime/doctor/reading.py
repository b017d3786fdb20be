# SPDX-License-Identifier: GPL-2.0-or-later
"""This host, as probes read it."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import time

from vemgr.core.errors import VemgrError
from vemgr.kernel import mountinfo, quota
from vemgr.kernel.firewall import Firewall
from vemgr.runtime.doctor.findings import Chain, Clock, Space
from vemgr.runtime.limits import Disks

_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_STA_UNSYNC = 0x40  # linux/timex.h
_STATUS_OFFSET = 40  # of `status` in struct timex, where long has 8 bytes
_WEIGHTS = {"io.bfq.weight": "bfq", "io.weight": "io.cost"}
_PATIENCE = 1.0  # seconds for a socket to take us


class ThisHost:
    def text(self, path: str) -> str | None:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                return file.read()
        except OSError:
            return None

    def names(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(path))
        except OSError:
            return []

    def has(self, path: str) -> bool:
        return os.path.exists(path)

    def tool(self, name: str) -> bool:
        return shutil.which(name, path=_PATH) is not None

    def release(self) -> str:
        return os.uname().release

    def clock(self) -> Clock:
        """adjtimex(2), which is allowed to everybody who sets nothing."""
        timex = ctypes.create_string_buffer(512)  # struct timex is smaller
        known = ctypes.CDLL(None, use_errno=True).adjtimex(timex) >= 0
        status = ctypes.c_int.from_buffer(timex, _STATUS_OFFSET).value
        return Clock(time.time(), not known or not status & _STA_UNSYNC)

    def space(self, path: str) -> Space | None:
        try:
            found = os.statvfs(path)
        except OSError:
            return None
        return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, found.f_files, found.f_favail)

    def filesystem(self, path: str) -> str:
        """The type of what `path` is on, "" where there is no such path."""
        if not os.path.exists(path):
            return ""
        real = os.path.realpath(path)
        best = ""
        found = ""
        for mount in mountinfo.of_process("self"):
            inside = real == mount.point or real.startswith(mount.point.rstrip("/") + "/")
            if inside and len(mount.point) >= len(best):
                best, found = mount.point, mount.fstype
        return found

    def chains(self) -> list[Chain] | None:
        try:
            text = Firewall().run_json("list chains")
        except VemgrError:
            return None
        entries = [entry["chain"] for entry in json.loads(text)["nftables"] if "chain" in entry]
        return [Chain(str(each["family"]), str(each["table"]), str(each["name"]), str(each.get("hook", "")),
                      str(each.get("policy", ""))) for each in entries]

    def answers(self, path: str) -> bool:
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            with socket.socket(socket.AF_UNIX, kind) as probe:
                probe.settimeout(_PATIENCE)
                try:
                    probe.connect(path)
                except OSError:
                    continue
                return True
        return False

    def quotas(self, path: str) -> bool:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return quota.enforced(fd)
        finally:
            os.close(fd)

    def disk_scheduler(self, path: str) -> str:
        try:
            return _WEIGHTS.get(Disks.behind(path).weight_file, "")
        except OSError:
            return ""
