# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the one program of vemgr that is not Python; all the rest is in pyproject.toml."""

import os

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Freestanding: neither a C library nor its start code. Fixed addresses and no unwind tables: fewer pages to a process
# that every VE without an init of its own keeps.
_COMPILE = ["-std=c11", "-O2", "-Wall", "-Wextra", "-ffreestanding", "-fno-stack-protector", "-fno-pie",
            "-fno-asynchronous-unwind-tables"]
_LINK = ["-static", "-nostdlib", "-nostartfiles", "-no-pie", "-s", "-Wl,--build-id=none", "-Wl,-z,noexecstack"]


class BuildProgram(build_ext):
    """An executable beside the modules instead of an extension module."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split("."))

    def build_extension(self, ext: Extension) -> None:
        objects = self.compiler.compile(ext.sources, output_dir=self.build_temp, extra_postargs=_COMPILE)
        target = self.get_ext_fullpath(ext.name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        self.compiler.link_executable(objects, target, extra_postargs=_LINK)

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []


setup(ext_modules=[Extension("vemgr.keeper.vemgr-spawner", ["vemgr/keeper/spawner.c"]),
                   Extension("vemgr.compare.vemgr-first", ["vemgr/compare/first.c"])],
      cmdclass={"build_ext": BuildProgram})
