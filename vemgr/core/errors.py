# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors that carry facts, each class with a stable identifier and an exit code.

The identifier travels over the API (as the varlink error's name) and the exit code is what the command line
returns; both follow vzctl where it has a number for the case. There are two families: after a `RefusedError`
nothing had happened yet, after a `FailedError` something had been begun and was undone.
"""

from __future__ import annotations

import errno
from typing import ClassVar

#: What a machine runs short of for a while. A file that cannot be read for such a reason is neither bad nor missing.
SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class VemgrError(Exception):
    """Base of all errors that a user can meet.

    `message`: lower case, no full stop: what failed, on what, why. `remedy`: what to do about it, may be empty.
    `facts`: the values a program would want (names, paths, sums), as strings.
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, message: str, *, remedy: str = "", **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.facts = {key: str(value) for key, value in facts.items()}

    @property
    def identifier(self) -> str:
        return type(self).__name__

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class RefusedError(VemgrError):
    """The request was refused; nothing has changed."""


class FailedError(VemgrError):
    """The request failed on the way; what it had begun was undone."""


class BadParameter(RefusedError):
    """No setting, option or method argument has this name."""

    exit_code = 20


class BadValue(RefusedError):
    """A value is malformed or out of range."""

    exit_code = 21

    def __init__(self, field: str, value: object, why: str, *, remedy: str = "") -> None:
        super().__init__(f"bad value '{value}' for {field}: {why}", remedy=remedy, field=field, value=value)


class NoSuchVE(RefusedError):
    exit_code = 14

    def __init__(self, name: str) -> None:
        super().__init__(f"no such VE: {name}", remedy="'vemgr list' shows those there are", ve=name)


class VEExists(RefusedError):
    exit_code = 44

    def __init__(self, name: str) -> None:
        super().__init__(f"VE {name} exists already", remedy="choose another name or destroy it first", ve=name)


class NoSuchGroup(RefusedError):
    exit_code = 14

    def __init__(self, name: str) -> None:
        super().__init__(f"no such group: {name}", remedy="'vemgr group list' shows those there are", group=name)


class GroupExists(RefusedError):
    exit_code = 44

    def __init__(self, name: str) -> None:
        super().__init__(f"group {name} exists already", remedy="'vemgr group set' changes it", group=name)


class GroupInUse(RefusedError):
    exit_code = 9

    def __init__(self, name: str, users: list[str]) -> None:
        super().__init__(f"group {name} has {', '.join(users)} in it", remedy="give them another group first",
                         group=name)


class NotRunning(RefusedError):
    exit_code = 31

    def __init__(self, name: str, state: str = "stopped") -> None:
        super().__init__(f"VE {name} is not running but {state}", ve=name, state=state)


class AlreadyRunning(RefusedError):
    exit_code = 32

    def __init__(self, name: str, state: str = "running") -> None:
        super().__init__(f"VE {name} is {state} already", ve=name, state=state)


class StillRunning(RefusedError):
    """The VE must be stopped for this."""

    exit_code = 32

    def __init__(self, name: str, state: str, remedy: str = "stop it first, or use --force") -> None:
        super().__init__(f"VE {name} is {state}", remedy=remedy, ve=name, state=state)


class Locked(RefusedError):
    """Another verb is at work on the same VE or template."""

    exit_code = 9

    def __init__(self, what: str, verb: str) -> None:
        super().__init__(f"{what} is busy: '{verb}' is in progress", remedy="try again when it has ended", verb=verb)


class ConsoleInUse(RefusedError):
    """Another client types on the VE's console, or too many are attached to it."""

    exit_code = 9

    def __init__(self, name: str, why: str) -> None:
        if why == "writer":
            super().__init__(f"the console of VE {name} is in use by another client",
                             remedy="--force takes it over, --read-only looks on", ve=name)
        else:
            super().__init__(f"too many clients are attached to the console of VE {name}", ve=name)


class NoTemplate(RefusedError):
    """A VE was to be created without naming a template."""

    exit_code = 29


class TemplateNotFound(RefusedError):
    exit_code = 91

    def __init__(self, name: str, why: str = "") -> None:
        super().__init__(
            f"template {name} not found" + (f": {why}" if why else ""),
            remedy="'vemgr template list' shows those there are, 'vemgr template build' makes one",
            template=name,
        )


class TemplateExists(RefusedError):
    exit_code = 44

    def __init__(self, name: str) -> None:
        super().__init__(f"template {name} exists already", remedy="remove it first", template=name)


class TemplateInUse(RefusedError):
    exit_code = 9

    def __init__(self, name: str, users: list[str]) -> None:
        super().__init__(
            f"template {name} is in use by {', '.join(users)}", remedy="destroy these VEs first", template=name
        )


class VolumeNotFound(RefusedError):
    exit_code = 92

    def __init__(self, name: str) -> None:
        super().__init__(f"volume {name} not found", remedy="'vemgr volume create' makes it", volume=name)


class VolumeExists(RefusedError):
    exit_code = 44

    def __init__(self, name: str) -> None:
        super().__init__(f"volume {name} exists already", remedy="choose another name", volume=name)


class VolumeInUse(RefusedError):
    exit_code = 9

    def __init__(self, name: str, users: list[str]) -> None:
        super().__init__(f"volume {name} is in use by {', '.join(users)}",
                         remedy="take it out of their setting 'mount', and stop those that run with it",
                         volume=name)


class TemplateUnusable(FailedError):
    """An archive was refused, or a template lacks what a VE needs; facts name the entry."""

    exit_code = 47


class ExportUnusable(FailedError):
    """A file that a VE was to be made of is damaged, cut off or breaks a rule; facts name the part or the entry."""

    exit_code = 47


class NotEnforceable(RefusedError):
    """This host cannot enforce a limit that was asked for."""

    exit_code = 5

    def __init__(self, field: str, why: str, remedy: str) -> None:
        super().__init__(f"{field} cannot be enforced on this host: {why}", remedy=remedy, field=field)


class KernelLacks(RefusedError):
    """The kernel, or what the host lets us do with it, lacks a feature that is needed."""

    exit_code = 5


class NotEnoughResources(RefusedError):
    exit_code = 6


class Overcommitted(RefusedError):
    """A guarantee would be more than this host has left to promise; facts carry the sums, and who holds what."""

    exit_code = 36


class AddressInUse(RefusedError):
    exit_code = 78


class PermissionDenied(RefusedError):
    exit_code = 12


class SystemFailure(FailedError):
    """A system call failed where none should; facts carry the call, the path and errno."""

    exit_code = 3


class NoSpace(FailedError):
    exit_code = 46


class StartFailed(FailedError):
    """A VE could not be started; facts name the operation of the setup plan, its path and errno."""

    exit_code = 7


class NotReady(FailedError):
    """A VE has been started and runs, but has not said in time that it is up."""

    exit_code = 133


class HookFailed(FailedError):
    """A program of the administrator's at a turn of a VE's life has failed, or not ended in time."""

    exit_code = 79


class ExecFailed(FailedError):
    """A command could not be started in a VE. `exit_code` is what a shell returns: 127 not found, 126 otherwise."""

    exit_code = 126


class TransferFailed(FailedError):
    """Files could not be copied into a VE, out of it, or from one to another; facts name the path and errno."""

    exit_code = 48


class CannotStop(FailedError):
    exit_code = 33


class LimitNotReached(FailedError):
    """A limit could not be lowered to what was asked; the old one is still in force."""

    exit_code = 6


class Unreachable(FailedError):
    """The daemon or the keeper does not answer."""

    exit_code = 3


def all_errors() -> list[type[VemgrError]]:
    """Every concrete error class, in the order of definition (for the API description and the man page)."""
    return [
        c for c in globals().values()
        if isinstance(c, type) and issubclass(c, VemgrError) and c not in (VemgrError, RefusedError, FailedError)
    ]
