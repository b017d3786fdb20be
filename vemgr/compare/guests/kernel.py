# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel of the guests: a distribution's full one, since those for clouds lack what is emulated.

Taken from the host, or fetched from its package sources and unpacked, not installed, below the comparison's directory.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vemgr.compare.driver import DriverFailed
from vemgr.compare.tree import command

_PACKAGE = "linux-image-amd64"  # Debian's name for the newest
_SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


@dataclass(frozen=True)
class Kernel:
    """`modules`: the directory of its modules, /lib/modules/VERSION of where it is installed."""

    image: Path
    version: str
    modules: Path

    def files(self) -> dict[str, Path]:
        """Its modules by name; '-' in the name of a file is '_' in that of a module."""
        found = {}
        for directory, _, names in os.walk(self.modules / "kernel"):
            for name in names:
                stem = next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), "")
                if stem:
                    found[stem.replace("-", "_")] = Path(directory) / name
        return found

    def built_in(self) -> set[str]:
        try:
            lines = (self.modules / "modules.builtin").read_text().split()
        except OSError:
            return set()
        return {os.path.basename(line).removesuffix(".ko").replace("-", "_") for line in lines}


def find(directory: Path, wanted: Iterable[str], host: Path = Path("/")) -> Kernel | None:
    """The kernel that was fetched to `directory`, or one of the host's, that has all the modules `wanted`."""
    for base in (directory / "kernel", host):
        for image in sorted((base / "boot").glob("vmlinuz-*"), reverse=True):
            version = image.name.removeprefix("vmlinuz-")
            for modules in (base / "lib/modules" / version, base / "usr/lib/modules" / version):
                found = Kernel(image, version, modules)
                if modules.is_dir() and not missing(found, wanted):
                    return found
    return None


def missing(kernel: Kernel, wanted: Iterable[str]) -> list[str]:
    there = kernel.files().keys() | kernel.built_in()
    return [name for name in wanted if name not in there]


def load_order(kernel: Kernel, wanted: Iterable[str]) -> list[tuple[str, bytes]]:
    """Names and contents of the modules to load for those `wanted`, what others need before them (modinfo(8), depends).
    Raises `DriverFailed`."""
    files, built_in = kernel.files(), kernel.built_in()
    order: dict[str, bytes] = {}

    def load(name: str) -> None:
        if name in order or name in built_in:
            return
        if name not in files:
            raise DriverFailed(f"kernel {kernel.version} has no module {name}", kernel=kernel.version, module=name)
        content = _content(files[name])
        found = _DEPENDS.search(content)
        for other in found[1].decode().split(",") if found and found[1] else []:
            load(other.replace("-", "_"))
        order[name] = content

    for name in wanted:
        load(name)
    return [*order.items()]


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        import lzma  # noqa: PLC0415

        return lzma.decompress(data)
    if path.suffix == ".zst":
        import zstandard  # noqa: PLC0415

        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    if path.suffix == ".gz":
        import gzip  # noqa: PLC0415

        return gzip.decompress(data)
    return data


def fetch(directory: Path) -> str:
    """Download Debian's kernel and unpack it; its version. Raises `DriverFailed`."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix="fetching-") as scratch:
        # apt gives the work of fetching to a user of its own, who must get there.
        os.chmod(scratch, 0o755)
        depends = command("apt-cache", "depends", "--important", _PACKAGE)
        packages = re.findall(r"Depends: (linux-image-\S+)", depends)
        if not packages:
            raise DriverFailed(f"{_PACKAGE} is not in this host's package sources",
                               remedy="install a full kernel with its modules, in /boot and /lib/modules")
        # apt-get download writes to the directory that it is called in.
        command("env", f"--chdir={scratch}", "apt-get", "download", "--quiet", packages[0], timeout=1200)
        (package,) = Path(scratch).glob("*.deb")
        command("dpkg", "--extract", str(package), f"{scratch}/root", timeout=600)
        shutil.rmtree(directory / "kernel", ignore_errors=True)
        os.rename(f"{scratch}/root", directory / "kernel")
    return str(packages[0]).removeprefix("linux-image-")
