# SPDX-License-Identifier: GPL-2.0-or-later
"""The definition of a guest for libvirt (libvirt.org/formatdomain.html).

Both kinds are the same machine with the same processor; they differ in the devices and in what the guest's kernel is
told of the hypervisor. `kvm-virtio` knows that it is a guest: virtio devices, a balloon, the hypervisor's clock.
`kvm-emulated` does not: an IDE disk, an e1000 card, no paravirtual features of the processor.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from pathlib import Path

from vemgr.compare.driver import Resources


@dataclass(frozen=True)
class Devices:
    """`modules`: what the guest's kernel needs for them, and for the file system."""

    disk: str
    disk_name: str
    card: str
    balloon: str
    modules: tuple[str, ...]
    paravirtual: bool


_FILE_SYSTEM = ("crc32c_generic", "ext4")
VIRTIO = Devices("virtio", "vda", "virtio", "virtio",
                 ("virtio_pci", "virtio_blk", "virtio_net", "virtio_balloon", *_FILE_SYSTEM), paravirtual=True)
#: With what a host of VEs needs of its kernel, since nothing there loads a module that is not there yet.
HOSTING = replace(VIRTIO, modules=(
    *VIRTIO.modules, "virtio_console", "overlay", "bridge", "veth", "nf_tables", "nft_chain_nat", "nft_ct", "nft_masq",
    "nft_nat", "nft_fib_inet", "nft_redir", "nft_meta_bridge", "nft_reject_inet"))
EMULATED = Devices("ide", "sda", "e1000", "none", ("ata_piix", "sd_mod", "e1000", *_FILE_SYSTEM), paravirtual=False)
SECOND_DISK = "vdb"
#: The name of a guest's port for its VEs.
CHANNEL = "org.vemgr.compare"


@dataclass(frozen=True)
class Definition:
    """`accelerator`: kvm or tcg. `port`: path of the socket behind the runner's serial port. `cache`: QEMU's word for
    how it writes to the disk. `address`, `gateway`: of eth0, with the prefix's length; empty for no card.

    For guests that have VEs in them: `template` is the image of a second disk that is only read, `channel` the path of
    the socket behind a port of virtio's, and `subnet` the VEs'."""

    name: str
    devices: Devices
    accelerator: str
    resources: Resources
    kernel: Path
    initrd: Path
    disk: Path
    cache: str
    port: Path
    console: Path
    bridge: str = ""
    address: str = ""
    gateway: str = ""
    template: Path | None = None
    channel: Path | None = None
    subnet: str = ""


def command_line(guest: Definition) -> str:
    """The kernel's. Emulated time is slower than the kernel's checks of it expect."""
    words = ["console=ttyS0", "quiet", "panic=-1", "net.ifnames=0", "random.trust_cpu=on"]
    if guest.accelerator == "tcg":
        words += ["tsc=reliable", "no_timer_check"]
    values = {"name": guest.name, "disk": guest.devices.disk_name, "address": guest.address, "gateway": guest.gateway,
              "template": SECOND_DISK if guest.template else "", "subnet": guest.subnet}
    return " ".join([*words, *(f"vemgr.{key}={value}" for key, value in values.items() if value)])


def xml(guest: Definition) -> str:
    kvm = guest.accelerator == "kvm"
    domain = ET.Element("domain", type="kvm" if kvm else "qemu")
    _add(domain, "name", guest.name)
    _add(domain, "memory", str(guest.resources.memory), unit="bytes")
    _add(domain, "vcpu", str(guest.resources.cpus))
    os = _add(domain, "os")
    _add(os, "type", "hvm", arch="x86_64", machine="pc")
    _add(os, "kernel", str(guest.kernel))
    _add(os, "initrd", str(guest.initrd))
    _add(os, "cmdline", command_line(guest))
    features = _add(domain, "features")
    for each in ("acpi", "apic"):
        _add(features, each)
    _add(domain, "cpu", mode="host-passthrough" if kvm else "maximum")
    clock = _add(domain, "clock", offset="utc")
    if kvm:
        if not guest.devices.paravirtual:
            _add(_add(features, "kvm"), "hidden", state="on")
        _add(clock, "timer", name="kvmclock", present="yes" if guest.devices.paravirtual else "no")
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        _add(domain, event, "destroy")
    _devices(_add(domain, "devices"), guest)
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"


def _devices(parent: ET.Element, guest: Definition) -> None:
    disk = _add(parent, "disk", type="file", device="disk")
    _add(disk, "driver", name="qemu", type="qcow2", cache=guest.cache)
    _add(disk, "source", file=str(guest.disk))
    # libvirt's name for the first IDE disk; the guest's driver calls it sda.
    _add(disk, "target", dev="hda" if guest.devices.disk == "ide" else guest.devices.disk_name, bus=guest.devices.disk)
    if guest.template:
        template = _add(parent, "disk", type="file", device="disk")
        _add(template, "driver", name="qemu", type="raw", cache=guest.cache)
        _add(template, "source", file=str(guest.template))
        _add(template, "target", dev=SECOND_DISK, bus="virtio")
        _add(template, "readonly")
    if guest.bridge:
        card = _add(parent, "interface", type="bridge")
        _add(card, "source", bridge=guest.bridge)
        _add(card, "model", type=guest.devices.card)
    console = _add(parent, "serial", type="file")
    _add(console, "source", path=str(guest.console))
    _add(console, "target", port="0")
    port = _add(parent, "serial", type="unix")
    _add(port, "source", mode="bind", path=str(guest.port))
    _add(port, "target", port="1")
    if guest.channel:
        channel = _add(parent, "channel", type="unix")
        _add(channel, "source", mode="bind", path=str(guest.channel))
        _add(channel, "target", type="virtio", name=CHANNEL)
    _add(parent, "memballoon", model=guest.devices.balloon)


def _add(parent: ET.Element, tag: str, text: str = "", **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text or None
    return element
