# SPDX-License-Identifier: GPL-2.0-or-later
"""What it takes to keep several instances up to date: an update of a few megabytes for each of them.

The update is the probe's: files of the tree are written anew, synced and renamed over the old ones, as dpkg does. It is
applied in each instance; and, where instances can be made anew from a template that has it, once for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vemgr.compare.driver import HasSystemsBelow, Instance, SharesTemplate
from vemgr.compare.schema import Figure
from vemgr.compare.workloads.lifecycle import NO_INSTANCE
from vemgr.compare.workloads.workload import LONG, Stage, WorkFailed

COUNT = 4
_MEGABYTES = "16"
_BOOT = "/proc/sys/kernel/random/boot_id"  # of each kernel its own (random(4))
_MIB = 1 << 20


@dataclass(frozen=True)
class Update:
    name: str = "update"
    title: str = f"update of {COUNT} instances"
    group: str = "manageability"
    figures: Sequence[Figure] = (
        Figure(name="update.kernels", title=f"kernels, with {COUNT} instances", unit="", better="lower"),
        Figure(name="update.systems", title="systems that are to be updated", unit="", better="lower"),
        Figure(name="update.each", title=f"{_MEGABYTES} MiB updated in each", unit="s", better="lower"),
        Figure(name="update.each-disk", title="disk that this takes in all", unit="MiB", better="lower"),
        Figure(name="update.shared", title="replaced by ones of a new template", unit="s", better="lower"),
        Figure(name="update.shared-disk", title="disk that the new template takes", unit="MiB", better="lower"),
    )
    needs: Sequence[str] = ()
    rounds: int = LONG
    quick: bool = False
    crowded: bool = True

    def missing(self, stage: Stage) -> str:
        return NO_INSTANCE if stage.on_host else ""

    def measure(self, stage: Stage) -> Mapping[str, float]:
        with stage.several(COUNT) as instances:
            found = {"update.kernels": float(_kernels(instances)), **_in_each(stage, instances)}
        driver = stage.driver
        below = driver.systems_below(COUNT) if isinstance(driver, HasSystemsBelow) else 0
        if not isinstance(driver, SharesTemplate):
            return {**found, "update.systems": float(COUNT + below)}
        return {**found, "update.systems": 1.0 + below, **_by_template(stage, driver)}


def _kernels(instances: Sequence[Instance]) -> int:
    """The host's is one of them."""
    said = {Path(_BOOT).read_bytes()}
    for instance in instances:
        done = instance.run(["cat", _BOOT], timeout=30)
        if done.code:
            raise WorkFailed(f"{instance.name} does not say which kernel it has", instance=instance.name)
        said.add(done.stdout)
    return len(said)


def _apply(stage: Stage, instance: Instance) -> float:
    """Seconds. Not of /etc: runtimes mount files of their own there."""
    top = stage.shell(instance, "[ -d /usr/lib ] && echo /usr || echo /bin").strip()
    return stage.probe(instance, "update", top, _MEGABYTES, timeout=300)["elapsed"] / 1e9


def _in_each(stage: Stage, instances: Sequence[Instance]) -> dict[str, float]:
    """One after the other: an update of all at once would be a test of the disk."""
    before = [instance.disk_bytes() for instance in instances]
    found = {"update.each": sum(_apply(stage, instance) for instance in instances)}
    after = [instance.disk_bytes() for instance in instances]
    taken = [new - old for old, new in zip(before, after, strict=True) if old is not None and new is not None]
    return {**found, "update.each-disk": sum(taken) / _MIB} if len(taken) == len(instances) else found


def _by_template(stage: Stage, driver: SharesTemplate) -> dict[str, float]:
    """One instance is updated and made a template, and instead of each old instance there is a new one of it."""
    new: list[Instance] = []
    template = stage.next_name()
    with stage.several(1) as (model,), stage.several(COUNT, bare=True) as old:
        seconds = model.up + _apply(stage, model)
        begin = time.monotonic()
        disk = driver.template_of(model, template)
        try:
            for instance in old:
                instance.stop()
                new.append(driver.start_from(template, stage.next_name(), stage.resources))
            seconds += time.monotonic() - begin
        finally:
            for instance in new:
                instance.stop()
            driver.remove_template(template)
    return {"update.shared": seconds, "update.shared-disk": disk / _MIB}


WORKS = (Update(),)
