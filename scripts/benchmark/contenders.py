# SPDX-License-Identifier: GPL-2.0-or-later
"""The others: crun, podman and systemd-nspawn, with the same root file system, each as it is used.

Making one raises `Failed` when it is missing or does not run here; so a contender that there is has worked once.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmark.measure import Failed
from benchmark.process import run, timed
from benchmark.tree import make_tree
from vemgr.compare.peers.controllers import controllers
from vemgr.compare.peers.podman import ulimits
from vemgr.core import resources, syscalls
from vemgr.core.ids import ID_COUNT
from vemgr.core.plan import Mask, ReadOnly, kernel_operations
from vemgr.core.privileges import CAPABILITIES
from vemgr.kernel import seccomp

_ID_BASE = 0x6FFF0000  # below those that vemgr gives out
_CAPABILITY_SETS = ("bounding", "effective", "permitted")


class Crun:
    """`crun run` of a static program. `what`: how the configuration differs from that of `crun spec`."""

    def __init__(self, base: Path, what: str, config: dict[str, Any]) -> None:
        base.mkdir()
        self._base, self.what = base, what
        self._log = str(base / "log")
        self._crun = ["crun", "--cgroup-manager=cgroupfs", f"--root={base}/state"]
        self._prefix = f"{base.parent.name}-{base.name}"
        self._names = (f"{self._prefix}-{number}" for number in itertools.count())
        self._configure(config)

    def _configure(self, config: dict[str, Any]) -> None:
        """Without what crun cannot do here: limits need a capability and controllers that a container may lack."""
        refusal: Failed | None = None
        for left_out in ((), ("resources",), ("resources", "time namespace")):
            _leave_out(config, left_out)
            (self._base / "config.json").write_text(json.dumps(config))
            try:
                self.run()
            except Failed as error:
                refusal = error
                self._remove_cgroups()
                continue
            self.what += f"; without {' and '.join(left_out)}, which crun refuses here" if left_out else ""
            return
        assert refusal
        raise refusal

    def _remove_cgroups(self) -> None:
        """A crun that gives up leaves the cgroup that it has made."""
        for directory in Path("/sys/fs/cgroup").glob(f"{self._prefix}-*"):
            with contextlib.suppress(OSError):
                directory.rmdir()

    def run(self) -> float:
        return timed([*self._crun, "run", f"--bundle={self._base}", next(self._names)], self._log)

    def burst(self, count: int, at_once: int) -> float:
        """Many, each with an exit code that xargs looks at; nothing of Python's is in between."""
        names = self._base / "names"
        names.write_text("".join(f"{next(self._names)}\n" for _ in range(count)))
        return timed(["xargs", f"--max-procs={at_once}", "--replace=NAME", f"--arg-file={names}",
                      *self._crun, "run", f"--bundle={self._base}", "NAME"], self._log)

    @contextlib.contextmanager
    def running(self) -> Iterator[Callable[[], float]]:
        """A container that runs; yields what times a command in it."""
        name = next(self._names)
        config = json.loads((self._base / "config.json").read_text())
        config["process"]["args"] = ["/sbin/init"]
        (self._base / "init.json").write_text(json.dumps(config))
        # Not with captured output: the container keeps the descriptors.
        timed([*self._crun, "run", "--detach", f"--bundle={self._base}", f"--config={self._base}/init.json", name],
              self._log)
        try:
            yield lambda: timed([*self._crun, "exec", name, "/bin/true"], self._log)
        finally:
            run([*self._crun, "delete", "--force", name])


def _leave_out(config: dict[str, Any], parts: tuple[str, ...]) -> None:
    if "resources" in parts:
        config["linux"].pop("resources", None)
    if "time namespace" in parts:
        _drop_namespace(config, "time")


def _drop_namespace(config: dict[str, Any], kind: str) -> None:
    config["linux"]["namespaces"] = [each for each in config["linux"]["namespaces"] if each["type"] != kind]


def plain_crun(base: Path, tree: Path) -> Crun:
    """crun's own default, except that it shares the network: the fastest that it is commonly run."""
    config = _spec(base, tree)
    _drop_namespace(config, "network")
    return Crun(base / "plain", "`crun spec`, without network; no user, cgroup and time namespace, seccomp, limits",
                config)


def isolated_crun(base: Path, settings: Mapping[str, str]) -> Crun:
    """crun with what a VE has, as far as its configuration can say it; the network namespace stays empty."""
    config = _spec(base, make_tree(base / "shifted", owner=_ID_BASE))
    linux = config["linux"]
    linux["namespaces"] += [{"type": kind} for kind in ("user", "cgroup", "time")]
    mapping = [{"containerID": 0, "hostID": _ID_BASE, "size": ID_COUNT}]
    linux["uidMappings"] = linux["gidMappings"] = mapping
    linux["maskedPaths"] = [f"/{op.under}/{name}" for op in kernel_operations() if isinstance(op, Mask)
                            for name in op.names]
    linux["readonlyPaths"] = [f"/{op.under}/{name}" for op in kernel_operations() if isinstance(op, ReadOnly)
                              for name in op.names]
    linux["seccomp"] = _seccomp()
    if settings:
        linux["resources"] |= _limits(settings)
    capabilities = [f"CAP_{name.upper()}" for name in CAPABILITIES]
    config["process"]["capabilities"] = dict.fromkeys(_CAPABILITY_SETS, capabilities)
    return Crun(base / "isolated", "a VE's namespaces, filter, masks, capabilities and limits; network without link",
                config)


def _spec(base: Path, tree: Path) -> dict[str, Any]:
    bundle = base / "spec"
    bundle.mkdir(exist_ok=True)
    (bundle / "config.json").unlink(missing_ok=True)
    run(["crun", "spec", f"--bundle={bundle}"])
    config: dict[str, Any] = json.loads((bundle / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": ["/bin/true"]}
    config["root"] = {"path": str(tree), "readonly": False}
    return config


def _seccomp() -> dict[str, Any]:
    """vemgr's filter in the words of the OCI runtime specification ("config-linux.md", Seccomp)."""
    refused = syscalls.refusals(frozenset())
    known = {name for table in seccomp.tables().values() for name in table.values()}
    # Of arguments it knows lists of what is good; a list of what is bad, as for ioctl, it cannot be told.
    listed = {name: conditions[0] for name, conditions in syscalls.CONDITIONS.items() if not conditions[0].inverted}
    rules: list[dict[str, Any]] = [
        {"names": sorted(known - set(refused) - set(listed)), "action": "SCMP_ACT_ALLOW"},
        *({"names": sorted(name for name in refused if refused[name] == errno), "action": "SCMP_ACT_ERRNO",
           "errnoRet": errno} for errno in sorted(set(refused.values()))),
    ]
    rules += [{"names": [name], "action": "SCMP_ACT_ALLOW",
               "args": [{"index": condition.position, "value": value, "op": "SCMP_CMP_EQ"}]}
              for name, condition in listed.items() for value in condition.values]
    return {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": rules,
            "architectures": ["SCMP_ARCH_X86_64"] if os.uname().machine == "x86_64" else []}


def _limits(settings: Mapping[str, str]) -> dict[str, Any]:
    """The VE's limits in crun's words, without those on disks."""
    found: dict[str, Any] = {}
    if "cpus" in settings:
        found["cpu"] = {"quota": int(float(settings["cpus"]) * 100_000), "period": 100_000}
    if "cpu-mask" in settings:
        found.setdefault("cpu", {})["cpus"] = settings["cpu-mask"]
    if "memory" in settings:
        found["memory"] = {"limit": resources.parse_size("memory", settings["memory"])}
    if "pids" in settings:
        found["pids"] = {"limit": int(settings["pids"])}
    return found


class Podman:
    """`podman start` of a container made before, without a network or on podman's bridge."""

    def __init__(self, base: Path, tree: Path, network: str) -> None:
        base.mkdir(exist_ok=True)
        self._log = str(base / "log")
        # Its storage on the same file system, and apart from what the host has.
        self._podman = ["podman", f"--root={base}/storage", f"--runroot={base}/run", "--cgroup-manager=cgroupfs"]
        self._name = f"bench-{network}"
        if "bench" not in run([*self._podman, "images", "--noheading"]):
            archive = base / "image.tar"
            run(["tar", "-C", str(tree), "-cf", str(archive), "."])
            run([*self._podman, "import", str(archive), "localhost/bench"])
        try:
            # Where there are none for it podman is faster without, and could not set its device policy.
            cgroups = [] if {"cpu", "memory"} <= controllers() else ["--cgroups=disabled"]
            run([*self._podman, "create", f"--name={self._name}", f"--network={network}", *ulimits(), *cgroups,
                 "localhost/bench", "/sbin/init"])
            self.run()
        except BaseException:
            self.close()
            raise

    def run(self) -> float:
        try:
            return timed([*self._podman, "start", self._name], self._log)
        finally:
            run([*self._podman, "stop", "--time=0", self._name])

    def close(self) -> None:
        run([*self._podman, "rm", "--force", "--time=0", self._name])


class Nspawn:
    """`systemd-nspawn` of a static program that exits at once, in the same tree, without its other services."""

    def __init__(self, base: Path, tree: Path) -> None:
        self._log = str(base / "nspawn.log")
        self._tree = tree
        self.run()

    def run(self) -> float:
        return timed(["systemd-nspawn", "--quiet", f"--directory={self._tree}", "--register=no", "--keep-unit",
                      "/bin/true"], self._log)


def unmount_below(base: Path) -> None:
    """podman keeps its storage mounted."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounted = [line.split()[4] for line in file]
    for path in reversed(mounted):
        if path.startswith(f"{base}/"):
            subprocess.run(["umount", "--lazy", path], check=False)
