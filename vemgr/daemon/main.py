# SPDX-License-Identifier: GPL-2.0-or-later
"""The composition root: joins adapters to use cases, brings the world up to date, and serves the API."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import gc
import json
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from asyncvarlink import GenericVarlinkErrorReply, VarlinkErrorReply, VarlinkInterfaceRegistry
from asyncvarlink.serviceinterface import VarlinkServiceInterface

import vemgr
from vemgr.api.interface import ManagerInterface, error_reply
from vemgr.api.location import DEFAULT_PATH, load_config
from vemgr.api.server import Server
from vemgr.core.errors import KernelLacks, SystemFailure, Unreachable, VemgrError
from vemgr.core.host import HostConfig
from vemgr.core.metrics import MetricsConfig
from vemgr.daemon.scraping import Scraping
from vemgr.daemon.service import DaemonService
from vemgr.kernel.cgroups import CgroupTree, find_top
from vemgr.kernel.devices import DevicePolicy, InheritedPolicy
from vemgr.kernel.durable import remove_unfinished
from vemgr.kernel.mountinfo import of_process
from vemgr.kernel.namespaces import nested
from vemgr.kernel.process import is_zombie, start_time
from vemgr.kernel.service import listening_socket, notify
from vemgr.runtime.counters import Counters
from vemgr.runtime.disks import Disks
from vemgr.runtime.file_jobs import FileJobs
from vemgr.runtime.filters import Filters
from vemgr.runtime.hooks import Hooks
from vemgr.runtime.instances import Parts
from vemgr.runtime.journal import Journal
from vemgr.runtime.launcher import Child, Launcher
from vemgr.runtime.limits import Limits
from vemgr.runtime.logs import Logs
from vemgr.runtime.manager import Manager
from vemgr.runtime.network.networking import Networking
from vemgr.runtime.observing.statistics import Statistics
from vemgr.runtime.observing.strain import Strain
from vemgr.runtime.profiles import Profiles
from vemgr.runtime.reconcile import (
    keep_host_template_tight,
    load_definitions,
    reconcile,
    start_on_boot,
    sweep,
)
from vemgr.runtime.scheduling.placements import Placements
from vemgr.runtime.scheduling.policy import in_force
from vemgr.runtime.scheduling.promises import Promises, host_resources
from vemgr.runtime.store import Store, storage_errors
from vemgr.runtime.views import Views
from vemgr.runtime.volumes import Volumes
from vemgr.runtime.workers import started_pool
from vemgr.templates.store import Templates

log = logging.getLogger("vemgr")
_DRAIN = 5.0  # seconds for what is being done in the background when the daemon ends
_WORKERS, _IMPORTS, _PURGES = 8, 4, 2  # threads, see `Parts`
_KEEPER_PATIENCE = 100  # tenths of a second to wait for the keeper at start


class Daemon:
    """One daemon's life. `run` returns when it is told to end; VEs and the keeper stay, unless it was a shutdown."""

    def __init__(self, config: HostConfig) -> None:
        self._config = config
        self._ending = asyncio.Event()
        self._keeper_pid = 0
        self._keeper: tuple[int, int] = (0, 0)
        self._keeper_ends = False
        self._activated = False  # whether systemd made the socket, and keeps it
        self._early: list[Child] = []  # what ended while we were coming up
        self._early_ready: list[Child] = []  # and what got ready
        self._reconnecting: asyncio.Task[None] | None = None
        self._launcher = Launcher(f"{config.run_dir}/keeper.sock", self._on_exit, self._on_keeper_lost,
                                  self._on_ready)
        self._manager: Manager | None = None
        self._strain: Strain | None = None

    async def run(self) -> None:
        config = self._config
        for path in (config.state_dir, config.run_dir):
            with storage_errors(f"make {path}"):
                os.makedirs(path, mode=0o700, exist_ok=True)
        lock = _lock(config)
        for path in (config.state_dir, config.run_dir):
            with storage_errors(f"tidy {path}"):
                remove_unfinished(path)
        asyncio.get_running_loop().set_default_executor(started_pool(_WORKERS, "work"))
        children = await self._connect_keeper()
        parts = join(config, self._keeper_pid)
        await parts.file_jobs.wait_for_earlier()
        manager = self._manager = Manager(parts, self._launcher)
        parts.counters.open()
        load_definitions(manager, parts)
        await reconcile(manager, parts, children)
        await manager.views.open()
        for child in self._early:
            manager.on_exit(child)
        for child in self._early_ready:
            manager.on_ready(child)
        statistics = Statistics(parts, manager.instances)
        strain = self._watch_strain(parts, manager)
        server = self._serve(manager, parts, statistics)
        gc.freeze()  # the modules and definitions stay: to go through all of them would hold up a start by 20 ms
        notify("READY=1")
        sweep(manager, parts)
        manager.loop.open(manager.in_background)
        manager.in_background(keep_host_template_tight(manager, parts))
        limits = ", ".join(sorted(parts.tree.controllers)) or "none"
        log.info("ready, version %s; limits: %s", vemgr.__version__, limits)
        scraping = await _offer_figures(config.metrics, statistics)
        watching = asyncio.get_running_loop().create_task(statistics.watch())
        manager.in_background(start_on_boot(manager, config.run_dir))
        await self._ending.wait()
        watching.cancel()
        scraping.close()
        notify("STOPPING=1")
        server.close()
        manager.loop.close()
        manager.end()
        await manager.drain(_DRAIN)
        if self._keeper_ends:
            with contextlib.suppress(FileNotFoundError):
                if not self._activated:
                    os.unlink(f"{config.run_dir}/vemgr.sock")
            await self._launcher.shutdown()
            parts.tree.destroy()
        self._launcher.close()
        parts.views.close()
        parts.journal.flush()
        statistics.save()
        for watcher in (parts.counters, strain, parts.networking):
            watcher.close()
        os.close(lock)

    def end(self) -> None:
        self._ending.set()

    def _end_all(self) -> None:
        self._keeper_ends = True
        # The reply to the request that asked for it still has to go out.
        asyncio.get_running_loop().call_later(0.1, self.end)

    async def _connect_keeper(self) -> list[Child]:
        """Connect and ask what runs; the keeper may be starting at the same time as we are."""
        for attempt in range(_KEEPER_PATIENCE):
            try:
                await self._launcher.connect()
                break
            except Unreachable:
                if attempt == _KEEPER_PATIENCE - 1:
                    raise
                await asyncio.sleep(0.1)
        self._keeper_pid, children = await self._launcher.children()
        self._keeper = _identity(self._keeper_pid)
        return children

    def _on_exit(self, child: Child) -> None:
        if self._manager is None:
            self._early.append(child)
        else:
            self._manager.on_exit(child)

    def _on_ready(self, child: Child) -> None:
        if self._manager is None:
            self._early_ready.append(child)
        else:
            self._manager.on_ready(child)

    def _on_keeper_lost(self) -> None:
        if self._manager is None or self._keeper_ends:
            return
        if self._reconnecting is None or self._reconnecting.done():  # otherwise that one goes on trying
            self._reconnecting = asyncio.get_running_loop().create_task(self._reconnect())

    async def _reconnect(self) -> None:
        """The connection to the keeper is gone: take it up again, or clean up after a keeper that is gone itself."""
        assert self._manager is not None
        lost = False
        while not self._ending.is_set():
            try:
                if not lost and _identity(self._keeper_pid) != self._keeper:
                    lost = await self._give_up_keeper()
                await self._launcher.connect()
                self._keeper_pid, children = await self._launcher.children()
                before, self._keeper = self._keeper, _identity(self._keeper_pid)
                if not lost and self._keeper != before:  # it ended, and another began, between two looks
                    lost = await self._give_up_keeper()
                if lost:
                    tree = CgroupTree(find_top(self._keeper_pid, self._config.cgroup))
                    self._manager.use_tree(tree)
                    if self._strain is not None:
                        self._strain.open(tree.base)
                log.warning("connected to the keeper again, process %d", self._keeper_pid)
                for child in children:
                    if child.status is not None:
                        self._manager.on_exit(child)
                    elif child.ready:
                        self._manager.on_ready(child)
                self._launcher.resume()
                return
            except (OSError, VemgrError) as error:
                log.debug("the keeper is not back yet: %s", error)
                await asyncio.sleep(0.2)

    async def _give_up_keeper(self) -> bool:
        assert self._manager is not None
        log.error("the keeper has ended, and its VEs with it")
        await self._manager.on_keeper_lost()
        return True

    def _watch_strain(self, parts: Parts, manager: Manager) -> Strain:
        strain = self._strain = Strain(parts.journal, lambda: {
            ve.name: parts.tree.path(ve.name) for ve in manager.instances if ve.running})
        strain.open(parts.tree.base)
        return strain

    def _serve(self, manager: Manager, parts: Parts, statistics: Statistics) -> Server:
        registry = VarlinkInterfaceRegistry()
        registry.register_interface(ManagerInterface(
            DaemonService(manager, parts, statistics, self._launcher, self._end_all)))
        registry.register_interface(VarlinkServiceInterface(
            "vemgr", "vemgr", vemgr.__version__, "", registry))
        handed_over = listening_socket()
        self._activated = handed_over is not None
        listener = handed_over or _listen(f"{self._config.run_dir}/vemgr.sock")
        server = Server(listener, registry, _failure)
        server.start()
        return server


async def _offer_figures(config: MetricsConfig, statistics: Statistics) -> Scraping:
    """To Prometheus, where vemgr.toml says so; its library is imported for the first who asks."""
    def written(ves: list[dict[str, Any]]) -> tuple[str, bytes]:
        from vemgr.runtime.observing import metrics  # noqa: PLC0415

        return metrics.CONTENT_TYPE, metrics.exposition(ves, vemgr.__version__)

    async def answer() -> tuple[str, bytes]:
        return await asyncio.to_thread(written, await statistics.collect())

    scraping = Scraping(config, answer)
    await scraping.open()
    return scraping


def _failure(error: Exception) -> VarlinkErrorReply:
    """Our errors as the interface's; anything else is a defect of ours, logged here, once."""
    if isinstance(error, VemgrError):
        return error_reply(error)
    log.error("a call failed unexpectedly", exc_info=error)
    return GenericVarlinkErrorReply(
        error_reply(SystemFailure("x")).name,
        {"message": f"the daemon has a defect: {type(error).__name__}: {error}", "remedy": "its log tells more",
         "exitCode": SystemFailure.exit_code, "facts": {}})


def _identity(pid: int) -> tuple[int, int]:
    """A process by pid and start time; (pid, 0) when it is gone. A zombie, which nobody may reap, counts as gone."""
    try:
        return pid, 0 if is_zombie(pid) else start_time(pid)
    except ProcessLookupError:
        return pid, 0


def join(config: HostConfig, keeper_pid: int) -> Parts:
    """Make the adapters. Raises `KernelLacks` where the host lacks what no VE can do without."""
    try:
        tree = CgroupTree(find_top(keeper_pid, config.cgroup))
    except OSError as error:
        raise KernelLacks(f"no place for the VEs' cgroups: {error.strerror} ({error.filename})",
                          remedy="mount cgroup2 on /sys/fs/cgroup") from error
    data = f"{config.state_dir}/ve"
    store = Store(data)
    _check_place(config.state_dir)
    journal = Journal(config.run_dir)
    scheduler = in_force(config)
    promises, networking = Promises(scheduler, *host_resources()), Networking(config)
    networking.uplink.on_found = promises.offer_network
    return Parts(
        config=config, store=store, templates=Templates(Path(config.state_dir) / "templates"), tree=tree,
        disks=Disks(data), promises=promises, networking=networking,
        limits=Limits(tree, data, scheduler, Placements(promises.running)),
        devices=InheritedPolicy() if nested() else DevicePolicy(),
        profiles=Profiles(config.profiles_dir), volumes=Volumes(f"{config.state_dir}/volumes"),
        hooks=Hooks(config.hooks_dir, config.hook_timeout, store), logs=Logs(config.run_dir),
        filters=Filters(config.run_dir), file_jobs=FileJobs(config.run_dir), imports=started_pool(_IMPORTS, "import"),
        journal=journal, counters=Counters(journal),
        views=Views(config.lxcfs, config.lxcfs_dir, config.run_dir),
        purges=started_pool(_PURGES, "purge"),
    )


def _check_place(directory: str) -> None:
    """Raises `KernelLacks` where the VEs' own files would be on an overlay, as the root of a VE or container is."""
    device = os.stat(directory).st_dev
    where = f"{os.major(device)}:{os.minor(device)}"
    if any(mount.fstype == "overlay" and mount.device == where for mount in of_process("self")):
        raise KernelLacks(f"state-dir {directory} is on an overlay, and VEs could not write to their files there: an "
                          "overlay cannot stand on another's", path=directory,
                          remedy="mount a directory of the host there; in a VE: '--mount VOLUME:/var/lib/vemgr'")


def _lock(config: HostConfig) -> int:
    """One daemon per state directory."""
    path = f"{config.run_dir}/daemon.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemFailure("a vemgr daemon runs already", path=path) from None
    return fd


def _listen(path: str) -> socket.socket:
    """The API socket, root's alone. Bound beside and renamed, so that a client never meets a socket nobody serves."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{path}.new")
    previous = os.umask(0o177)
    try:
        listener.bind(f"{path}.new")
    finally:
        os.umask(previous)
    listener.listen(128)
    os.rename(f"{path}.new", path)
    return listener


def main() -> None:
    parser = argparse.ArgumentParser(prog="vemgrd", description="The vemgr daemon.")
    parser.add_argument("--config", default=DEFAULT_PATH, help="host configuration (default: %(default)s)")
    parser.add_argument("--doctor", action="store_true", help="check the host, print JSON, and do nothing else")
    options = parser.parse_args()
    # Howto of the standard library, "Optimization": what our format does not show is not looked for, line by line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        config = load_config(options.config)
        if options.doctor:
            from vemgr.runtime.doctor.examination import examine_without_daemon  # noqa: PLC0415  (not for a daemon)

            print(json.dumps(examine_without_daemon(config)))
            return
        asyncio.run(_main(config))
    except VemgrError as error:
        print(f"vemgrd: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


async def _main(config: HostConfig) -> None:
    daemon = Daemon(config)
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, daemon.end)
    await daemon.run()
    # Not by way of the interpreter's own end: it would wait for a thread that unpacks an archive which never ends.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
