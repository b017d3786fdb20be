# SPDX-License-Identifier: GPL-2.0-or-later
"""Which plan starts a VE: pure, so that it can be printed, compared and tested without root."""

from __future__ import annotations

import signal

from vemgr.core.config import Definition
from vemgr.core.layers import Template
from vemgr.core.plan import (
    DISK,
    Bind,
    Directory,
    Disk,
    Network,
    Notify,
    Operation,
    Plan,
    View,
    WriteFile,
    kernel_operations,
    nesting_operations,
    root_operations,
)
from vemgr.core.privileges import NESTING, effective


def choose_init(definition: Definition, template: Template) -> tuple[str, ...]:
    """What becomes process 1: the VE's own choice, the template's init, or () for the built-in one."""
    if definition.settings.init:
        return definition.settings.init
    if template.init_kind == "none" or definition.ephemeral:
        return ()
    return (template.init,)


def powers_off(definition: Definition, template: Template) -> bool:
    """Whether poweroff(8) in the VE ends it. These inits listen to a pipe of their own, which it writes to; what they
    do at a signal, if anything, is up to an inittab(5) that few write for containers."""
    init = choose_init(definition, template)
    return bool(init) and init[0] == template.init and template.init_kind in ("sysvinit", "openrc")


def stop_signal(definition: Definition, template: Template) -> signal.Signals | int:
    """How this init is asked to end the system: systemd(1) "SIGNALS", busybox init, sysvinit's power failure."""
    init = choose_init(definition, template)
    if init and init[0].rpartition("/")[2] == "systemd":
        return signal.SIGRTMIN + 3
    if not init or init[0] != template.init:
        return signal.SIGTERM
    return {"systemd": signal.SIGRTMIN + 3, "busybox": signal.SIGUSR2, "sysvinit": signal.SIGPWR,
            "openrc": signal.SIGPWR}.get(template.init_kind, signal.SIGTERM)


def says_that_it_is_up(definition: Definition, template: Template) -> bool:
    """systemd(1), "NOTIFY_SOCKET". Of other inits only their end can be seen."""
    init = choose_init(definition, template)
    return bool(init) and (init[0].rpartition("/")[2] == "systemd"
                           or (init[0] == template.init and template.init_kind == "systemd"))


def make_plan(definition: Definition, template: Template, *, data: str, stage: str, resolv_conf: str,
              image: str | None = None, binds: tuple[Bind, ...] = (),
              views: tuple[View, ...] = (), devices: tuple[Operation, ...] = ()) -> Plan:
    """`data`: the VE's own layers, unless they are in an image. `stage`: an empty directory of the host.
    `resolv_conf`: text for the VE."""
    own = definition.links[0].addresses if definition.links else ("127.0.1.1",)
    names = "".join(f"{address} {_names(definition)}\n" for address in own)
    hosts = f"127.0.0.1 localhost\n::1 localhost ip6-localhost\n{names}"
    root = root_operations(template, data) if image is None else [Disk(image), *root_operations(template, DISK)]
    operations = (
        *root,
        *kernel_operations(),
        *views,
        *(nesting_operations() if NESTING in definition.settings.feature else ()),
        *devices,
        *([Notify()] if says_that_it_is_up(definition, template) else []),
        Directory("etc"),
        WriteFile("etc/hostname", f"{definition.hostname}\n"),
        WriteFile("etc/hosts", hosts),
        *([WriteFile("etc/resolv.conf", resolv_conf, "managed")] if resolv_conf else []),
        *binds,  # after the files: what is written there must not end up in a directory of the host
        Network(),
    )
    return Plan(
        name=definition.name, hostname=definition.hostname, id_base=definition.id_base,
        init=choose_init(definition, template), stage=stage, first=not definition.started, operations=operations,
        capabilities=effective(definition.settings.capability), user_namespaces=definition.settings.user_namespaces,
    )


def _names(definition: Definition) -> str:
    short = definition.hostname.partition(".")[0]
    return definition.hostname if short == definition.hostname else f"{definition.hostname} {short}"
