# SPDX-License-Identifier: GPL-2.0-or-later
"""States of a VE, and which verb is allowed in which: one table.

The verb in progress is not a state. It is kept apart, so that a state is always what the kernel would say.
"""

from __future__ import annotations

from enum import StrEnum

from vemgr.core.errors import AlreadyRunning, NotRunning, StillRunning


class State(StrEnum):
    STOPPED = "stopped"
    RUNNING = "running"
    SUSPENDED = "suspended"


class Verb(StrEnum):
    CREATE = "create"
    START = "start"
    STOP = "stop"
    SUSPEND = "suspend"
    RESUME = "resume"
    SET = "set"
    EXEC = "exec"
    DESTROY = "destroy"
    PUSH = "push"
    PULL = "pull"
    CLONE = "clone"
    RENAME = "rename"
    TEMPLATE = "template create"
    EXPORT = "export"


# Where each verb leads; a pair that is missing is refused.
TRANSITIONS: dict[tuple[State, Verb], State] = {
    (State.STOPPED, Verb.START): State.RUNNING,
    (State.STOPPED, Verb.SET): State.STOPPED,
    (State.STOPPED, Verb.DESTROY): State.STOPPED,
    (State.STOPPED, Verb.CLONE): State.STOPPED,
    (State.STOPPED, Verb.RENAME): State.STOPPED,
    (State.STOPPED, Verb.TEMPLATE): State.STOPPED,
    (State.STOPPED, Verb.EXPORT): State.STOPPED,
    (State.RUNNING, Verb.STOP): State.STOPPED,
    (State.RUNNING, Verb.SUSPEND): State.SUSPENDED,
    (State.RUNNING, Verb.SET): State.RUNNING,
    (State.RUNNING, Verb.EXEC): State.RUNNING,
    (State.SUSPENDED, Verb.RESUME): State.RUNNING,
    (State.SUSPENDED, Verb.STOP): State.STOPPED,
    (State.SUSPENDED, Verb.SET): State.SUSPENDED,
    **{(state, verb): state for state in State for verb in (Verb.PUSH, Verb.PULL)},
}


def check(name: str, state: State, verb: Verb) -> State:
    """The state that `verb` leads to. Raises the error that fits where it is not allowed."""
    after = TRANSITIONS.get((state, verb))
    if after is not None:
        return after
    if verb == Verb.START or (verb == Verb.RESUME and state == State.RUNNING):
        raise AlreadyRunning(name, state)
    if verb == Verb.DESTROY:
        raise StillRunning(name, state)
    if verb == Verb.EXPORT:
        raise StillRunning(name, state, "stop it first, or use --stop")
    if verb in (Verb.CLONE, Verb.RENAME, Verb.TEMPLATE):
        raise StillRunning(name, state, "stop it first")
    raise NotRunning(name, state)
