# SPDX-License-Identifier: GPL-2.0-or-later
from pathlib import Path

import pytest

from vemgr.core import errors
from vemgr.core.errors import FailedError, RefusedError, VemgrError, all_errors

DESIGNED = {3, 5, 6, 7, 9, 12, 14, 20, 21, 29, 31, 32, 33, 36, 44, 46, 47, 48, 78, 79, 91, 92, 126, 127, 133, 213}


def test_identifiers_are_unique_and_families_are_two():
    found = all_errors()
    assert len({error.__name__ for error in found}) == len(found) > 15
    for error in found:
        assert issubclass(error, RefusedError) != issubclass(error, FailedError), error
        assert error.exit_code in DESIGNED, error


def test_no_error_is_forgotten():
    defined = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, VemgrError)}
    assert defined - set(all_errors()) == {VemgrError, RefusedError, FailedError}


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: error.__name__)
def test_exit_codes_are_documented(error):
    pages = "\n".join(path.read_text() for path in (Path(__file__).parents[2] / "docs").rglob("*") if path.is_file()
                      and path.suffix in (".md", ".1", ".7", ".8", ".5"))
    assert f"{error.exit_code}" in pages.split()


@pytest.mark.parametrize("error", [
    errors.BadValue("memory", "1X", "not a size", remedy="write 1M"), errors.NoSuchVE("web1"), errors.VEExists("web1"),
    errors.NotRunning("web1"), errors.AlreadyRunning("web1"), errors.StillRunning("web1", "running"),
    errors.Locked("VE web1", "stop"), errors.TemplateNotFound("x"), errors.TemplateNotFound("x", "gone"),
    errors.TemplateExists("x"), errors.TemplateInUse("x", ["a", "b"]), errors.NotEnforceable("cpus", "why", "remedy"),
], ids=lambda error: error.identifier)
def test_the_form_of_messages(error):
    """Lower case (names apart), no full stop, the remedy after a semicolon."""
    assert not error.message.endswith(".") and "\n" not in error.message
    assert error.message[0].islower() or error.message.startswith("VE ")
    assert str(error) == (f"{error.message}; {error.remedy}" if error.remedy else error.message)
    assert all(isinstance(value, str) for value in error.facts.values()) and error.facts
