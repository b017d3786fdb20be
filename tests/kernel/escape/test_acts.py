# SPDX-License-Identifier: GPL-2.0-or-later
"""Every act of `acts.py`: refused to the root of a VE, and, as positive control, done by root on the bare host.

A control has a mount, UTS and IPC namespace of the test's, and changes nothing there that was not so before.
"""

import importlib.util
import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

ACTS_FILE = Path(__file__).with_name("acts.py")
PYTHON = "/usr/bin/python3"  # the same inside, where the template is the host's /usr

spec = importlib.util.spec_from_file_location("acts", ACTS_FILE)
acts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(acts)


def results_of(text):
    return {name: (verdict, words) for name, verdict, words in map(json.loads, text.splitlines())}


def disks():
    """Devices of this host that a disk may be behind, the likeliest last: its refusal is the one that is told."""
    numbers = [tuple(map(int, name.split(":"))) for name in os.listdir("/sys/dev/block")]
    return sorted(numbers, key=lambda number: number[0] in (8, 253, 254, 259)) or [(7, 0)]


@pytest.fixture(scope="module")
def parameters(vemgr, attacker):
    """What the acts aim at. `victim`: a process of the host that is there to be attacked, in place of a VE's init."""
    victim = subprocess.Popen(["sleep", "600"])
    outside = Path(f"{vemgr.cgroup}-outside")
    outside.mkdir()
    yield {
        "disks": disks(), "marker": str(vemgr.config), "host-pid": victim.pid,
        "cgroup": f"{vemgr.cgroup}/ve/{attacker}", "outside": f"/{outside.name}",
        "api-socket": f"{vemgr.run}/vemgr.sock", "keeper-socket": f"{vemgr.run}/keeper.sock",
    }
    victim.kill()
    victim.wait()
    outside.rmdir()


@pytest.fixture(scope="module")
def attacker(vemgr):
    name = vemgr.create(template="host")
    vemgr("start", name)
    yield name
    vemgr("destroy", "--force", name)


@pytest.fixture(scope="module")
def inside(vemgr, attacker, parameters):
    vemgr("exec", attacker, "--", "sh", "-c", "cat > /root/acts.py", input=ACTS_FILE.read_text())
    parameters = {"control": False, "tmp": "/tmp", **parameters}
    told = vemgr.out("exec", attacker, "--", PYTHON, "/root/acts.py", json.dumps(parameters))
    return results_of(told)


@pytest.fixture(scope="module")
def outside(parameters):
    with tempfile.TemporaryDirectory() as tmp:
        parameters = {"control": True, "tmp": tmp, "victim": parameters["host-pid"], **parameters}
        command = ["unshare", "--mount", "--propagation", "private", "--uts", "--ipc", PYTHON, str(ACTS_FILE),
                   json.dumps(parameters)]
        told = subprocess.run(command, capture_output=True, text=True, timeout=200, start_new_session=True)
    assert told.returncode == 0, told.stderr
    return results_of(told.stdout)


@pytest.mark.parametrize("name", acts.ACTS)
def test_an_act_that_the_host_may_do_is_refused_to_a_ve(name, inside, outside):
    verdict, words = inside[name]
    control, control_words = outside[name]
    assert control in ("through", "absent"), f"the control does not work: {control_words}"
    if control == "absent":  # then there is nothing to be refused either, as long as nothing gets through
        assert verdict != "through", words
    else:
        assert verdict == "refused", words


def test_the_controls_work(outside, inside, capsys):
    """The table, and that this kernel has most of what is tried: an act that the host cannot do shows nothing."""
    with capsys.disabled():
        print()
        for name, (_function, source, _refusals) in acts.ACTS.items():
            print(f"{name:45} {outside[name][0]:8} {inside[name][0]:8} {inside[name][1].split()[0]:13} {source}")
    assert sum(verdict == "through" for verdict, _ in outside.values()) >= 70


def test_the_victim_lives(parameters, inside, outside):
    """Nothing above has ended the host's process, though it was in sight of the control."""
    os.kill(parameters["host-pid"], 0)
    assert inside["signal-host-processes"][0] == "refused"
    assert outside["trace-process-1"][0] == "through"
    os.kill(parameters["host-pid"], signal.SIGCONT)
