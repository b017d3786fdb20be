# SPDX-License-Identifier: GPL-2.0-or-later
"""What one entry of an archive may say of itself: its name, owner, time and attributes."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from decimal import Decimal

from vemgr.templates.tree_writer import EntryError, EntryPath, Metadata

_COMPONENT_BOUND = 255  # NAME_MAX
_TARGET_BOUND = 4095  # PATH_MAX without the terminating null
_ID_BOUND = 65535  # a VE has 65,536 ids; an owner beyond them would be nobody there
_TIME_BOUND = 2**34 - 1  # the last second that ext4 can store

_XATTR = "SCHILY.xattr."
_ACL = "SCHILY.acl."
# What a layer of an overlay may have beside what a template may: ACLs, and what overlayfs notes of the layers below.
LAYER_NOTES = ("system.posix_acl_access", "system.posix_acl_default", "trusted.overlay.opaque",
               "trusted.overlay.redirect", "trusted.overlay.metacopy")


def checked_path(name: str, path_bytes: int, depth: int) -> EntryPath:
    """The components of a name in the archive: "/a", "./a" and "a//" are all ("a",), "." is ().

    Raises EntryError for '..' and for names that are too long or too deep.
    """
    raw = _raw(name)
    if len(raw) > path_bytes:
        raise EntryError(f"its path is longer than {path_bytes} bytes")
    path = tuple(part for part in raw.split(b"/") if part not in (b"", b"."))
    if b".." in path:
        raise EntryError("its path contains '..'")
    if any(len(part) > _COMPONENT_BOUND for part in path):
        raise EntryError(f"a part of its path is longer than {_COMPONENT_BOUND} bytes")
    if len(path) > depth:
        raise EntryError(f"it is more than {depth} directories deep")
    return path


def checked_target(target: str) -> bytes:
    """The target of a symlink, which may be anything that the kernel takes. Raises EntryError."""
    raw = _raw(target)
    if not 0 < len(raw) <= _TARGET_BOUND:
        raise EntryError("its target is empty or too long")
    return raw


def metadata(member: tarfile.TarInfo) -> tuple[Metadata, int]:
    """Owner, mode, time and attributes, and how many attributes were dropped. Raises EntryError."""
    for kind, number in (("uid", member.uid), ("gid", member.gid)):
        if not 0 <= number <= _ID_BOUND:
            raise EntryError(f"its {kind} {number} is not between 0 and {_ID_BOUND}")
    xattrs, dropped = _xattrs(member)
    return Metadata(member.mode & 0o7777, member.uid, member.gid, _nanoseconds(member), xattrs), dropped


def layer_metadata(member: tarfile.TarInfo) -> tuple[Metadata, int]:
    """The same of an entry of an overlay's own layer, which says more. Raises EntryError."""
    notes: dict[str, bytes] = {}
    headers = dict(member.pax_headers)
    for name in LAYER_NOTES:
        if (text := headers.pop(_XATTR + name, None)) is not None:
            notes[name] = text.encode("utf-8", "surrogateescape")
    member.pax_headers = headers
    redirect = notes.get("trusted.overlay.redirect")
    if redirect is not None and (b"\0" in redirect or any(
            part in (b"", b".", b"..") or len(part) > _COMPONENT_BOUND
            for part in redirect.removeprefix(b"/").split(b"/"))):
        raise EntryError("it is redirected to something that is not a path of a layer")
    meta, dropped = metadata(member)
    return replace(meta, xattrs={**meta.xattrs, **notes}), dropped


def shown(name: str) -> str:
    """A name as it may go into a message: quoted, on one line, without escape sequences, not endless."""
    text = ascii(name)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _raw(name: str) -> bytes:
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise EntryError("a name in it cannot be encoded") from None
    if b"\0" in raw:  # the kernel would see the part before it only
        raise EntryError("a name in it contains a null byte")
    return raw


def _nanoseconds(member: tarfile.TarInfo) -> int:
    # tarfile makes a float of it, which has no room for nanoseconds; a pax header brings them as text.
    try:
        seconds = Decimal(member.pax_headers.get("mtime", member.mtime))
    except ArithmeticError:
        return 0
    if not seconds.is_finite():  # "nan" and "inf" are numbers to Decimal
        return 0
    return int(min(max(seconds, Decimal(0)), Decimal(_TIME_BOUND)) * 1_000_000_000)


def _xattrs(member: tarfile.TarInfo) -> tuple[dict[str, bytes], int]:
    kept: dict[str, bytes] = {}
    dropped = 0
    for key, value in member.pax_headers.items():
        if key.startswith(_ACL):
            dropped += 1
        if not key.startswith(_XATTR):
            continue
        name = key.removeprefix(_XATTR)
        # overlayfs keeps its own notes here (and in user.overlay. when mounted so): "opaque" or "redirect" would let
        # the archive reach into the layers below it.
        if name.startswith(("trusted.", "user.overlay.")):
            raise EntryError(f"it has the attribute {shown(name)}")
        # The kernel allows user attributes on files and directories only.
        allowed = (member.isreg() and name == "security.capability") or name.startswith("user.")
        if allowed and (member.isreg() or member.isdir()):
            kept[_raw(name).decode("utf-8", "surrogateescape")] = value.encode("utf-8", "surrogateescape")
        else:
            dropped += 1
    return kept, dropped
