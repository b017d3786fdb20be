# SPDX-License-Identifier: GPL-2.0-or-later
"""Every limit: changed while the VE runs, read back from the kernel, kept in the definition, there after a restart."""

import json

MIB = 1 << 20

# Setting: value, its cgroup file, and what stands there.
LIMITS = {
    "cpus": ("0.5", "cpu.max", "50000 100000"),
    "cpu-weight": ("250", "cpu.weight", "250"),
    "cpu-mask": ("0", "cpuset.cpus", "0"),
    "memory": ("128M", "memory.max", str(128 * MIB)),
    "swap": ("64M", "memory.swap.max", str(64 * MIB)),
    "pids": ("77", "pids.max", "77"),
    "io-read": ("3M/s", "io.max", f"rbps={3 * MIB}"),
    "io-write": ("5M/s", "io.max", f"wbps={5 * MIB}"),
    "iops-read": ("150", "io.max", "riops=150"),
    "iops-write": ("170", "io.max", "wiops=170"),
}


def agrees(ve, limits):
    shown, definition = ve.show(), ve.definition()["settings"]
    for key, (value, file, text) in limits.items():
        assert shown["inForce"][key] == shown["settings"][key] == value
        assert str(definition[key]) == value
        found = ve.read(file)
        assert text in found.split() if file == "io.max" else found == text


def test_each_by_itself_and_all_together(make_ve):
    ve = make_ve("live")
    unlimited = {file: ve.read(file) for _, file, _ in LIMITS.values()}
    pid = ve.show()["pid"]
    done = {}
    for key, row in LIMITS.items():  # in this order: a swap limit needs a memory limit
        ve.set(**{key: row[0]})
        done[key] = row
        agrees(ve, done)
    assert ve.show()["pid"] == pid

    # The same limits, from the definition, in a new cgroup.
    ve.vemgr("restart", ve.name)
    assert ve.show()["pid"] != pid
    agrees(ve, LIMITS)
    assert json.loads(ve.vemgr("show", "--json", ve.name).stdout)["inForce"] == ve.show()["inForce"]

    ve.set(**dict.fromkeys(LIMITS, "default"))
    assert not set(ve.definition().get("settings", {})) & set(LIMITS)
    del unlimited["cpuset.cpus"]  # the kernel takes no empty one back while something runs
    assert {file: ve.read(file) for file in unlimited} == unlimited
    assert ve.exec("grep", "-c", "^processor", "/proc/cpuinfo").stdout == ve.exec("nproc").stdout


BAD = [
    ({"cpu_mask": "4095"}, "this host has no CPU 4095"),
    ({"memory": "1K"}, "bad value '1K' for memory"),
    ({"pids": "0"}, "bad value '0' for pids"),
    ({"swap": "1M"}, "a swap limit needs a memory limit"),
    ({"cpus": "0.4", "io_write": "fast"}, "bad value 'fast' for io-write"),
]


def test_a_bad_value_changes_nothing(make_ve):
    ve = make_ve("careful", cpus="0.5")
    before = ve.show()["inForce"], ve.definition()
    for settings, why in BAD:
        assert why in ve.set(status=21, **settings).stderr
    assert (ve.show()["inForce"], ve.definition()) == before
