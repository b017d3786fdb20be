# SPDX-License-Identifier: GPL-2.0-or-later
"""The fuzzer of the API, for a short time, on a daemon of its own (tests/unit/test_fuzz.py has the others), and what it
has found."""

import os

import pytest

from tests.chance import seed
from tests.fuzz.engine import fuzz
from tests.fuzz.targets import TARGETS
from tests.kernel.conftest import eventually
from tests.unit.test_fuzz import SECONDS
from vemgr.api.client import RemoteError

COMMAND = {"argv": ["true"], "env": {}, "cwd": "/", "user": "root", "tty": False}


def test_fuzz_the_api(can_run_ves):
    done, seen = fuzz(TARGETS["api"](), SECONDS, seed("fuzz"), out=None)
    assert done > 5 * SECONDS and len(seen) > 20, (done, seen)


@pytest.mark.parametrize(("method", "parameters", "path", "error"), [
    ("ImportTemplate", {"name": "t", "description": "", "archive": 0}, "/", "BadValue"),
    ("Attach", {"stream": 0}, "/dev/null", "BadValue"),
    ("Attach", {"stream": 0}, "/", "BadValue"),
    ("Set", {"settings": {"init": "\ud800"}}, "/dev/null", "BadValue"),
    ("Set", {"settings": {"init": "\udcff"}}, "/dev/null", "BadValue"),
    ("Exec", {"command": {**COMMAND, "argv": ["\ud800"]}, "stdio": [0, 0, 0]}, "/dev/null", "BadValue"),
])
def test_what_it_has_found(vemgr, running, method, parameters, path, error):
    """Refused with a reason, as nothing of it is a defect of the daemon, and no descriptor stays."""
    fd = os.open(path, os.O_RDONLY)
    with vemgr.client() as client:
        daemon = vemgr.daemon_pid()
        vemgr("list")  # the connection of the question above is gone when this one is answered
        before = sorted(vemgr.descriptors(daemon))
        for _ in range(5):
            with pytest.raises(RemoteError) as refused:
                client.call(method, {"name": running, **parameters}, [fd])
            assert refused.value.identifier == error, refused.value
        eventually(lambda: sorted(vemgr.descriptors(daemon)) == before, lambda: vemgr.descriptors(daemon))
    os.close(fd)
