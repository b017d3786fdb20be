# SPDX-License-Identifier: GPL-2.0-or-later
"""The drivers of guests: `kvm-virtio` with paravirtual devices, `kvm-emulated` with emulated ones.

The clock of a start runs from the request to libvirt, until process 1 of the guest's disk writes its first line to the
serial port, and the host's clock is read when it comes: firmware, the guest's kernel and its first file system are
parts of a guest's start. A guest's own time of its first instruction would be of another clock.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vemgr.compare import journal, marked
from vemgr.compare.driver import Context, DriverFailed, Finished, Resources
from vemgr.compare.guests import accelerator, connection, image, initrd, network
from vemgr.compare.guests.domain import Definition, Devices, xml
from vemgr.compare.guests.kernel import Kernel, find, load_order
from vemgr.compare.guests.serial import Port, Runner, SpawnedInGuest
from vemgr.compare.memory import pss
from vemgr.core.errors import VemgrError

if TYPE_CHECKING:
    import libvirt

_KIND = "guest"
_BOOT = {"kvm": 60.0, "tcg": 240.0}  # seconds
_OFF = 30.0  # seconds for a guest to power off
_TCG = "TCG: software emulation, not hardware virtualization"
_TOOLS = {"qemu-img": "qemu-utils", accelerator.QEMU: "qemu-system-x86", "mke2fs": "e2fsprogs", "ip": "iproute2"}


class GuestDriver:
    prefix = network.PREFIX  # of the bridge's subnet
    before = ""  # a script, see `initrd.guest`

    def __init__(self, context: Context, name: str, what: str, devices: Devices) -> None:
        self.name, self.devices = name, devices
        self._what, self._context = what, context
        self.journal = journal.Journal(context.directory, name)
        self.uri = ""
        self.verdict: accelerator.Verdict | None = None
        self._kernel: Kernel | None = None
        self._instances: list[Guest] = []
        self._connection: libvirt.virConnect | None = None
        self._bridge: network.Bridge | None = None
        self.image, self.initrd, self.kernel, self.cache = Path(), Path(), Path(), "none"
        self._disk: int | None = None

    @property
    def label(self) -> str:
        if self.verdict is None:
            return f"guest with {self._what}"
        return f"guest with {self._what}, {'KVM' if self.verdict.accelerator == 'kvm' else _TCG}"

    def probe(self) -> str:
        if why := _missing():
            return why
        kernel = find(self._context.directory, self.devices.modules)
        if kernel is None:
            return "there is no kernel with the modules for such guests; 'vemgr compare kernel' fetches one"
        try:
            self.uri = connection.choose(self._context.uri)
            self.connect()
        except VemgrError as error:
            return str(error)
        self._kernel = kernel
        self.verdict = accelerator.decide(
            self._context.directory, accelerator.state_of_host(kernel), "/dev/kvm",
            lambda: accelerator.boot(kernel, self._context.directory, self.journal))
        self.journal.close()
        return ""

    def connect(self) -> libvirt.virConnect:
        if self._connection is None:
            self._connection = connection.connect(self.uri, self._context.directory)
        return self._connection

    def prepare(self, root: Path, resources: Resources, directory: Path) -> None:
        del resources, directory
        if self.verdict is None and (why := self.probe()):
            raise DriverFailed(why)
        assert self._kernel
        self._context.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        files = connection.files(self.uri, self._context.directory) / "guests"
        files.mkdir(mode=0o711 if self.uri else 0o700, parents=True, exist_ok=True)
        self.image = image.build(root, files)
        self.initrd = files / f"{self.name}.initrd"
        self.initrd.write_bytes(initrd.guest(load_order(self._kernel, self.devices.modules), self.before))
        # The daemon's guests do not get to where kernels are kept.
        self.kernel = files / "vmlinuz"
        shutil.copy(self._kernel.image, self.kernel)
        self.cache = image.cache_mode(files)

    def definition(self, name: str, resources: Resources) -> Definition:
        assert self.verdict
        bridge = self.bridge()
        ports = connection.ports(self.uri, self._context.directory)
        ports.mkdir(mode=0o711, parents=True, exist_ok=True)
        return Definition(
            name, self.devices, self.verdict.accelerator, resources, self.kernel, self.initrd,
            self.initrd.with_name(f"{name}.qcow2"), self.cache, ports / f"{name}.port",
            self.initrd.with_name(f"{name}.log"), bridge.name, bridge.next_address(), bridge.gateway)

    def bridge(self) -> network.Bridge:
        if self._bridge is None:
            self._bridge = network.Bridge(self.journal, self.prefix)
        return self._bridge

    def start(self, name: str, resources: Resources) -> Guest:
        instance = Guest(self, name, resources)
        self._instances.append(instance)
        self._disk = instance.disk
        return instance

    def forget(self, instance: Guest) -> None:
        if instance in self._instances:
            self._instances.remove(instance)

    def disk_bytes(self) -> int | None:
        return self._disk

    def clean(self) -> list[str]:
        removed = journal.clean(self._context.directory, self.name, self._undo)
        connection.clean()
        return removed

    def _undo(self, entry: journal.Entry) -> str | None:
        if entry["kind"] == network.KIND:
            return network.undo(entry)
        if entry["kind"] == accelerator.KIND:
            return "trial guest" if marked.end(entry["mark"], grace=0) else None
        return f"guest {entry['name']}" if remove(entry) else None

    def close(self) -> None:
        for instance in [*self._instances]:
            instance.stop()
        if self._bridge is not None:
            self._bridge.remove()
            self._bridge = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self.journal.close()


def _missing() -> str:
    """What the host lacks for guests of any kind, and what to do about it; empty if nothing."""
    if platform.machine() != "x86_64":
        return f"guests are made for x86_64 only, and this is {platform.machine()}"
    if os.geteuid() != 0:
        return "only root may make bridges and guests; run vemgr with sudo"
    lacking = [f"{tool} is not installed; install the package {package}" for tool, package in _TOOLS.items()
               if shutil.which(tool) is None]
    if not lacking and initrd.busybox() is None:
        return "there is no static busybox for the guests; install the package busybox-static"
    return lacking[0] if lacking else ""


class Guest:
    """A guest; made running."""

    def __init__(self, driver: GuestDriver, name: str, resources: Resources) -> None:
        self.name, self._driver = name, driver
        self.first_instruction: float | None = None
        self._definition = definition = driver.definition(name, resources)
        self.address: str | None = definition.address.partition("/")[0]
        self._domain: libvirt.virDomain | None = None
        self._port: Port | None = None
        self._stopped = False
        self._entry = {"name": name, "uri": driver.uri, "disk": str(definition.disk), "port": str(definition.port),
                       "console": str(definition.console)}
        if definition.channel:
            self._entry["channel"] = str(definition.channel)
        self._number = driver.journal.add(_KIND, **self._entry)
        try:
            image.overlay(driver.image, definition.disk)
            self._start()
        except BaseException:
            self.stop()
            raise

    @property
    def channel(self) -> Path | None:
        return self._definition.channel

    def _start(self) -> None:
        libvirt = connection.module()
        text = xml(self._definition)
        begin = time.monotonic()
        try:
            # Paused until somebody listens: what a port sends to nobody is lost.
            self._domain = self._driver.connect().createXML(text, libvirt.VIR_DOMAIN_START_PAUSED)
            channel = socket.socket(socket.AF_UNIX)
            channel.connect(str(self._definition.port))
            self._port = Port(channel, self.name)
            self._domain.resume()
        except (libvirt.libvirtError, OSError) as error:
            raise DriverFailed(f"guest {self.name} cannot be started: {error}", instance=self.name) from error
        self._await_boot(begin)
        self._runner = Runner(self._port, self.name)
        self.up = time.monotonic() - begin
        self.disk = self.disk_bytes()

    def _await_boot(self, begin: float) -> None:
        assert self._port
        deadline = begin + _BOOT[self._definition.accelerator]
        awaited = {"ready", "first"}
        try:
            while awaited:
                words = self._port.line(deadline)
                if words[:1] == ["first"]:
                    self.first_instruction = time.monotonic() - begin
                awaited -= set(words[:1])
        except (TimeoutError, DriverFailed) as error:
            raise DriverFailed(f"guest {self.name} has not booted: {self._last_words()}", instance=self.name) from error

    def _last_words(self) -> str:
        try:
            lines = self._definition.console.read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return f"its console says last: {lines[-1].strip()}" if lines else "its console says nothing"

    def run(self, argv: Sequence[str], *, timeout: float, input: bytes = b"") -> Finished:
        return self._runner.run(argv, timeout=timeout, input=input)

    def spawn(self, argv: Sequence[str]) -> SpawnedInGuest:
        return self._runner.spawn(argv)

    def memory(self) -> int | None:
        """PSS of its QEMU: what the guest has touched of its memory, and the emulator. What the host's cache holds of
        its disk, and what KVM keeps in the host's kernel, is not in it."""
        return pss(processes_of(self.name))

    def disk_bytes(self) -> int:
        return self._definition.disk.stat().st_blocks * 512

    def stop(self) -> float:
        if self._stopped:
            return 0.0
        pids = processes_of(self.name)
        begin = time.monotonic()
        if self._port is not None:
            with contextlib.suppress(DriverFailed):
                self._port.send(b"off\n")
                for pid in pids:
                    marked.await_end(pid, begin + _OFF - time.monotonic())
            self._port.close()
        seconds = time.monotonic() - begin
        if self._domain is not None:
            with contextlib.suppress(connection.module().libvirtError):  # it has powered off and is known no more
                self._domain.destroy()
        remove(self._entry)
        self._stopped = True
        self._driver.journal.done(self._number)
        self._driver.forget(self)
        return seconds


def processes_of(name: str) -> list[int]:
    """The QEMUs of a guest; by the name that libvirt gives them on their command line."""
    wanted = f"guest={name},".encode()
    found = []
    for pid in marked.processes():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
            if any(word.startswith(wanted) for word in words) and words[0].rpartition(b"/")[2].startswith(b"qemu"):
                found.append(pid)
    return [pid for pid in found if marked.alive(pid)]


def remove(entry: journal.Entry) -> bool:
    """What there is of a guest, whoever knows of it; whether there was anything. The daemon removes what it keeps of a
    guest when its QEMU is gone."""
    there_was = bool(processes_of(entry["name"]))
    while pids := processes_of(entry["name"]):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for path in (entry[key] for key in ("disk", "port", "console", "channel") if key in entry):
        there_was |= os.path.exists(path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    return there_was
