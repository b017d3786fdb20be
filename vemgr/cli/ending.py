# SPDX-License-Identifier: GPL-2.0-or-later
"""How a run of the command line ends: what it says about errors, and its exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable

import click

from vemgr.api.client import exit_code_of
from vemgr.core.errors import SystemFailure, VemgrError

_USAGE = 20  # as BadParameter of the API
_NOBODY_READS = 1  # click's own, when a reader such as `head` has seen enough


def exit_code(run: Callable[[], object]) -> int:
    """Run a command and tell what went wrong. A verb that ends by itself raises `SystemExit`, which passes through."""
    try:
        code = _outcome(run)
        if sys.stdout:  # None where it was closed
            sys.stdout.flush()
    except BrokenPipeError:
        return _NOBODY_READS
    except OSError as error:
        say(f"{error.strerror}{f': {error.filename}' if error.filename else ''}")
        return SystemFailure.exit_code
    else:
        return code
    finally:
        _settle()


def _outcome(run: Callable[[], object]) -> int:
    try:
        run()
    except click.exceptions.Exit as ending:
        return ending.exit_code
    except click.ClickException as error:
        with contextlib.suppress(OSError):
            error.show()
        return _USAGE
    except click.Abort:
        return 128 + signal.SIGINT
    except VemgrError as error:
        say(str(error))
        return exit_code_of(error)
    return 0


def say(text: str) -> None:
    """On standard error, or nowhere if that is not to be written to."""
    with contextlib.suppress(OSError):
        click.echo(f"vemgr: {_harmless(text)}", err=True)


def _harmless(text: str) -> str:
    """Errors name what a VE has in its files, such as the shell of a user."""
    if text.isprintable():
        return text
    from vemgr.cli.plain import Plain  # noqa: PLC0415  (seldom needed)

    return Plain().feed(text.encode("utf-8", "backslashreplace"), final=True)


def _settle() -> None:
    """What cannot be written goes nowhere; the interpreter would end with a code of its own for it."""
    for fd, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            if stream:
                stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, fd)
            os.close(null)
