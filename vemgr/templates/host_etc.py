# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of the host's /etc that the template `host` gets: an allowlist, since nobody can list all secrets.

What is on the list is copied only if every user of the host can read it, and not if it holds a private key or a
login. Never on the list: account files (made anew), ssh, machine-id, sudoers, cron, network and service settings.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat

from vemgr.kernel.openat2 import open_beneath
from vemgr.templates.tree_writer import Metadata, TreeWriter

# Paths below /etc, wildcards in any component. A directory means all that is in it.
ALLOWED = (
    "alternatives",  # most of what update-alternatives put into /usr/bin leads through here
    "ld.so.conf", "ld.so.conf.d", "ld.so.cache",
    "profile", "profile.d", "bash.bashrc", "bashrc", "inputrc", "login.defs", "shells", "skel",
    "services", "protocols", "rpc", "ethertypes", "networks", "host.conf", "gai.conf",
    "debian_version", "os-release", "lsb-release", "*-release", "issue", "issue.net",
    "mime.types", "magic", "magic.mime", "terminfo", "manpath.config", "fonts",
    "locale.*", "default/locale", "localtime", "timezone", "vconsole.conf",
    # Trust anchors and settings of TLS, without the private keys beside them (ssl/private, pki/tls/private).
    "ssl/certs", "ssl/openssl.cnf", "ssl/cert.pem", "ca-certificates", "ca-certificates.conf",
    "pki/ca-trust", "pki/tls/certs", "pki/tls/cert.pem", "pki/tls/openssl.cnf",
    "crypto-policies",  # openssl and gnutls of Fedora refuse to work without
    "pam.conf", "pam.d", "security",
    "python3*", "perl",
    "java-*-openjdk",  # the JVM below /usr/lib has links to its security policy here and stops without
    "adduser.conf", "deluser.conf", "debconf.conf",
    "dpkg/origins", "dpkg/dpkg.cfg", "dpkg/dpkg.cfg.d",
    # apt.conf.d, auth.conf* and preferences.d stay behind: proxies and logins. Sources only if they have no login.
    "apt/trusted.gpg.d", "apt/keyrings", "apt/sources.list", "apt/sources.list.d",
)
# On no account, even inside a directory of the list.
_DENIED = ("security/opasswd*", "*.dpkg-*", "*~", "*.bak")

_SECRET = re.compile(rb"PRIVATE KEY-----")
# A login in a URL (user:password@), or one in the query of a URL.
_LOGIN = re.compile(rb"://[^/\s]*@|://\S*\?\S*=")
_FILE_BOUND = 16 << 20
_PEOPLE_FROM = 1000


class EtcCopy:
    """Copies what is allowed from the host's root directory to a tree. `left_out`: paths that were refused."""

    def __init__(self, host_fd: int, writer: TreeWriter) -> None:
        self.bytes = 0
        self.left_out: list[str] = []
        self._host_fd, self._writer = host_fd, writer

    def run(self) -> None:
        """Raises OSError, EntryError."""
        for pattern in ALLOWED:
            self._expand("etc", pattern.split("/"))
        self.left_out.sort()

    def _expand(self, directory: str, pattern: list[str]) -> None:
        first, *rest = pattern
        for name in self._names(directory):
            if not fnmatch.fnmatchcase(name, first):
                continue
            path = f"{directory}/{name}"
            if not rest:
                self._copy(path)
            elif self._enters(path):
                self._expand(path, rest)

    def _names(self, directory: str) -> list[str]:
        try:
            fd = open_beneath(self._host_fd, directory, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return []
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def _enters(self, path: str) -> bool:
        """Goes into a directory on the way to something allowed: makes it, if every user may enter it."""
        found = self._stat(path)
        if not stat.S_ISDIR(found.st_mode):
            return False
        if found.st_mode & 0o001 == 0:
            self.left_out.append(f"/{path}")
            return False
        self._writer.directory(_split(path), _metadata(found))
        return True

    def _copy(self, path: str) -> None:
        found = self._stat(path)
        kind = stat.S_IFMT(found.st_mode)
        if any(fnmatch.fnmatchcase(path.removeprefix("etc/"), pattern) for pattern in _DENIED):
            self.left_out.append(f"/{path}")
        elif kind == stat.S_IFLNK:
            self._writer.symlink(_split(path), os.readlink(os.fsencode(path), dir_fd=self._host_fd), _metadata(found))
        elif kind == stat.S_IFREG and found.st_mode & 0o004:
            self._copy_file(path, found)
        elif kind == stat.S_IFDIR and found.st_mode & 0o005 == 0o005:
            self._writer.directory(_split(path), _metadata(found))
            for name in self._names(path):
                self._copy(f"{path}/{name}")
        else:
            self.left_out.append(f"/{path}")

    def _copy_file(self, path: str, found: os.stat_result) -> None:
        # O_NONBLOCK: should it have become a fifo meanwhile.
        fd = open_beneath(self._host_fd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        with open(fd, "rb") as file:
            content = file.read(_FILE_BOUND + 1)
        if len(content) > _FILE_BOUND or _SECRET.search(content) or (
            path.startswith("etc/apt/sources.") and _LOGIN.search(content)
        ):
            self.left_out.append(f"/{path}")
            return
        self._writer.file(_split(path), _metadata(found), [content])
        self.bytes += len(content)

    def _stat(self, path: str) -> os.stat_result:
        # /etc is root's: nobody plants symlinks in its path. What counts is not to follow the last component.
        return os.stat(path, dir_fd=self._host_fd, follow_symlinks=False)


def _split(path: str) -> tuple[bytes, ...]:
    return tuple(os.fsencode(part) for part in path.split("/"))


def _metadata(found: os.stat_result) -> Metadata:
    """As on the host, but without setuid bits, and nothing belongs to a person."""
    uid = found.st_uid if found.st_uid < _PEOPLE_FROM else os.geteuid()
    gid = found.st_gid if found.st_gid < _PEOPLE_FROM else os.getegid()
    return Metadata(found.st_mode & 0o777, uid, gid, found.st_mtime_ns)
