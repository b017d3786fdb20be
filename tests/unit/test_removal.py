# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vemgr.kernel.removal import remove_tree


def deep(top: Path, levels: int) -> None:
    fd = os.open(top, os.O_RDONLY)
    for level in range(levels):
        os.mkdir("d", dir_fd=fd)
        os.close(os.open(f"f{level}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_depth_beyond_recursion_and_descriptors(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    deep(top, 3000)
    before = len(os.listdir("/proc/self/fd"))
    remove_tree(str(top))
    assert os.listdir(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_width_and_odd_names(tmp_path: Path) -> None:
    top = tmp_path / "top"
    for number in range(60):
        (top / f"{number}").mkdir(parents=True)
        for inner in range(60):
            (top / f"{number}" / f"{inner}").mkdir()
    for name in (b"\xff\xfe", b"\n", b"-rf", b"x" * 255, b".vemgr-removed-0", b".vemgr-removed-0-0"):
        (Path(os.fsdecode(os.fsencode(top) + b"/" + name)) / "below").mkdir(parents=True)
    remove_tree(str(top))
    assert os.listdir(tmp_path) == []


def test_symlinks_are_not_followed(tmp_path: Path) -> None:
    top, out = tmp_path / "top", tmp_path / "out"
    (top / "a").mkdir(parents=True)
    (out / "kept").mkdir(parents=True)
    (top / "link").symlink_to(out)
    (top / "a/link").symlink_to("../../out")
    (top / "a/itself").symlink_to("itself")
    os.mkfifo(top / "a/fifo")
    remove_tree(str(top))
    assert os.listdir(tmp_path) == ["out"] and os.listdir(out) == ["kept"]
    (tmp_path / "top").symlink_to(out)
    with pytest.raises(NotADirectoryError):
        remove_tree(str(top))
    assert os.listdir(out) == ["kept"]


def test_what_an_interrupted_removal_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = tmp_path / "top"
    (top / "a/b/c").mkdir(parents=True)
    removed: list[str] = []
    rmdir = os.rmdir

    def fail_at_second(path: str, *, dir_fd: int | None = None) -> None:
        removed.append(path)
        if len(removed) == 2:
            raise OSError(5, "Input/output error", path)
        rmdir(path, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", fail_at_second)
        with pytest.raises(OSError, match="Input/output"):
            remove_tree(str(top))
    assert top.exists()
    remove_tree(str(top))
    assert os.listdir(tmp_path) == []


def test_without_space_for_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: str, **_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", source)

    monkeypatch.setattr(os, "rename", full)
    top = tmp_path / "top"
    (top / "one/two/three").mkdir(parents=True)
    (top / "one/two/file").touch()
    (top / "other").mkdir()
    remove_tree(str(top))
    assert os.listdir(tmp_path) == []
    top.mkdir()
    deep(top, 200)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="No space left"):
        remove_tree(str(top))
    assert len(os.listdir("/proc/self/fd")) == before
    monkeypatch.undo()
    remove_tree(str(top))
    assert os.listdir(tmp_path) == []
