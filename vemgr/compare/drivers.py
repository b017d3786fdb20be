# SPDX-License-Identifier: GPL-2.0-or-later
"""All drivers by name. Each is imported when it is asked for: libvirt's is not for those who compare with crun."""

from __future__ import annotations

from collections.abc import Callable

from vemgr.compare.driver import Context, Driver
from vemgr.core.errors import BadValue


def _ve(context: Context) -> Driver:
    from vemgr.compare.ve import VEDriver  # noqa: PLC0415

    return VEDriver(context)


def _guest(name: str) -> Callable[[Context], Driver]:
    def make(context: Context) -> Driver:
        from vemgr.compare.guests.domain import EMULATED, VIRTIO  # noqa: PLC0415
        from vemgr.compare.guests.driver import GuestDriver  # noqa: PLC0415

        if name == "kvm-virtio":
            return GuestDriver(context, name, "paravirtual devices (virtio)", VIRTIO)
        return GuestDriver(context, name, "emulated devices", EMULATED)
    return make


def _xen(context: Context) -> Driver:
    from vemgr.compare.guests.xen import XenDriver  # noqa: PLC0415

    return XenDriver(context)


def _ve_in_guest(context: Context) -> Driver:
    from vemgr.compare.blends.driver import VEInGuestDriver  # noqa: PLC0415

    return VEInGuestDriver(context)


def _ves_in_guest(context: Context) -> Driver:
    from vemgr.compare.blends.driver import VEsInGuestDriver  # noqa: PLC0415

    return VEsInGuestDriver(context)


def _local(name: str) -> Callable[[Context], Driver]:
    def make(context: Context) -> Driver:
        from vemgr.compare.host import Host  # noqa: PLC0415
        from vemgr.compare.local import LocalDriver  # noqa: PLC0415
        from vemgr.compare.peers.lxc import LXC  # noqa: PLC0415
        from vemgr.compare.peers.nspawn import Nspawn  # noqa: PLC0415
        from vemgr.compare.peers.oci import OCI  # noqa: PLC0415
        from vemgr.compare.peers.podman import Podman  # noqa: PLC0415

        runtimes = (Host(), OCI("crun"), OCI("runc"), Podman(), LXC(), Nspawn())
        return LocalDriver(context, next(runtime for runtime in runtimes if runtime.name == name))
    return make


_MAKERS: dict[str, Callable[[Context], Driver]] = {
    "host": _local("host"), "ve": _ve,
    "kvm-virtio": _guest("kvm-virtio"), "kvm-emulated": _guest("kvm-emulated"), "xen-pv": _xen,
    "ve-in-guest": _ve_in_guest, "ves-in-guest": _ves_in_guest,
    **{name: _local(name) for name in ("crun", "runc", "podman", "lxc", "systemd-nspawn")},
}
NAMES = tuple(_MAKERS)
#: Their guests take a good part of five minutes only to boot, where they are emulated.
NOT_QUICK = ("ve-in-guest", "ves-in-guest")


def driver(name: str, context: Context) -> Driver:
    """Raises `BadValue` for a name that there is none of."""
    if name not in _MAKERS:
        raise BadValue("driver", name, "there is no such driver", remedy=f"one of {', '.join(NAMES)}")
    return _MAKERS[name](context)
