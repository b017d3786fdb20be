# SPDX-License-Identifier: GPL-2.0-or-later
"""The varlink interface org.vemgr.Manager (varlink.org). Its description is generated from these annotations, so
`varlinkctl introspect` or any varlink client shows exactly what is served."""

# No `from __future__ import annotations`: asyncvarlink reads the annotations as types, not as text.

from collections.abc import AsyncIterator

from asyncvarlink import (
    FileDescriptor,
    TypedVarlinkErrorReply,
    VarlinkErrorReply,
    VarlinkInterface,
    varlinkmethod,
)
from asyncvarlink.interface import AnnotatedResult

from vemgr.api.service import Service
from vemgr.api.types import (
    VE,
    CapacityInfo,
    Command,
    Demand,
    Events,
    Explanation,
    Finding,
    Fitting,
    GroupInfo,
    HostInfo,
    Imported,
    Outcomes,
    PolicyInfo,
    Preview,
    Profile,
    Pulled,
    Started,
    Statistics,
    TemplateInfo,
    VEDetails,
    VolumeInfo,
)
from vemgr.core import errors
from vemgr.core.errors import VemgrError

NAME = "org.vemgr.Manager"


def _error_class(source: type[VemgrError]) -> type[TypedVarlinkErrorReply]:
    class Parameters:
        message: str
        remedy: str
        exitCode: int
        facts: dict[str, str]

    return type(source.__name__, (TypedVarlinkErrorReply,),
                {"Parameters": Parameters, "__doc__": source.__doc__, "name": f"{NAME}.{source.__name__}"})


_ERRORS = {source.__name__: _error_class(source) for source in errors.all_errors()}
_GENERIC = _ERRORS["SystemFailure"]


def error_reply(error: VemgrError) -> VarlinkErrorReply:
    """The error as it goes over the wire: its identifier is the varlink error's name."""
    kind = _ERRORS.get(error.identifier, _GENERIC)
    return kind(message=error.message, remedy=error.remedy, exitCode=error.exit_code, facts=dict(error.facts))


class ManagerInterface(VarlinkInterface, name=NAME):
    """Virtual environments of one host. Settings are text, as on the command line: cpus "1.5", memory "512M"."""

    errors = tuple(_ERRORS.values())

    def __init__(self, service: Service) -> None:
        self._service = service

    @varlinkmethod(return_parameter="ves")
    def List(self) -> list[VE]:
        """All VEs, by name."""
        return self._service.ves()  # type: ignore[return-value]

    @varlinkmethod
    async def Show(self, *, name: str) -> VEDetails:
        """One VE: settings, limits in force as read back from the kernel, usage, end of its console."""
        return await self._service.show(name)  # type: ignore[return-value]

    @varlinkmethod
    async def Create(self, *, name: str, template: str, settings: dict[str, str]) -> None:
        """Define a VE; it is not started."""
        await self._service.create(name, template, settings)

    @varlinkmethod(return_parameter="steps")
    async def Plan(self, *, name: str) -> list[str]:
        """What a start would do, step by step, without doing it."""
        return await self._service.plan(name)

    @varlinkmethod
    async def Start(self, *, name: str, wait: int | None = None) -> None:
        """Start a VE; returns when its init runs, or with `wait` when the init has said that the VE is up, for which it
        has so many seconds. Inits that cannot say it, all but systemd, are up when they run."""
        await self._service.start(name, wait)

    @varlinkmethod(return_parameter="step")
    async def Stop(self, *, name: str, timeout: int | None = None, kill: bool | None = None) -> str:
        """Stop a VE within timeout seconds; returns the step that ended it, "clean" or "killed: why"."""
        return await self._service.stop(name, timeout, bool(kill))

    @varlinkmethod(delay_generator=False, return_type=Outcomes)
    async def StartAll(self) -> AsyncIterator[AnnotatedResult]:
        """Start all VEs that are stopped, in the order of their priorities, each when those that it comes after are up,
        and a bounded number at once; tells of each as soon as it is up (step "up") or has failed."""
        async for outcome in self._service.start_all():
            yield AnnotatedResult({"outcomes": [outcome]}, continues=True)
        yield AnnotatedResult({"outcomes": []})

    @varlinkmethod(delay_generator=False, return_type=Outcomes)
    async def StopAll(self, *, timeout: int | None = None, kill: bool | None = None) -> AsyncIterator[AnnotatedResult]:
        """Stop all VEs that run, in the reverse order, in the time that the host's configuration gives them together;
        tells of each the step that has ended it, or why it could not be stopped."""
        async for outcome in self._service.stop_all(timeout, bool(kill)):
            yield AnnotatedResult({"outcomes": [outcome]}, continues=True)
        yield AnnotatedResult({"outcomes": []})

    @varlinkmethod(return_parameter="step")
    async def Restart(self, *, name: str, timeout: int | None = None) -> str:
        """Stop and start, with no other verb in between."""
        return await self._service.restart(name, timeout)

    @varlinkmethod
    async def Suspend(self, *, name: str) -> None:
        """Freeze all processes."""
        await self._service.suspend(name)

    @varlinkmethod
    async def Resume(self, *, name: str) -> None:
        """Thaw them."""
        await self._service.resume(name)

    @varlinkmethod
    async def Destroy(self, *, name: str, force: bool | None = None) -> None:
        """Remove a VE with all its data; with force also a running one."""
        await self._service.destroy(name, bool(force))

    @varlinkmethod(return_parameter="pending")
    async def Set(self, *, name: str, settings: dict[str, str]) -> list[str]:
        """Change settings, live where possible; returns those that wait for the next start."""
        return await self._service.set(name, settings)

    @varlinkmethod
    async def PreviewSet(self, *, name: str, settings: dict[str, str]) -> Preview:
        """What `Set` would write to the VE's cgroup and, as weights are relative, to those of others, and what would
        wait for the next start. Refused as that is for want of resources or controllers; nothing is changed."""
        return await self._service.preview(name, settings)  # type: ignore[return-value]

    @varlinkmethod
    async def Exec(self, *, name: str, command: Command, stdio: list[FileDescriptor]) -> Started:
        """Run a command in a VE with the caller's descriptors: stdin, stdout, stderr; or with tty one socket, over
        which the terminal's master comes. From the descriptor `status` its wait status can be read when it ends, as
        a native int; end of file without one means that the keeper is gone."""
        pid, status = await self._service.exec(name, command, [fd.fileno() for fd in stdio])
        return {"name": name, "pid": pid, "status": FileDescriptor(status, should_close=True)}

    @varlinkmethod
    async def Run(self, *, name: str, template: str, settings: dict[str, str], command: Command,
                  stdio: list[FileDescriptor]) -> Started:
        """Exec in a new VE that goes away with the command; an empty name lets vemgr choose one."""
        chosen, pid, status = await self._service.run(name, template, settings, command,
                                                      [fd.fileno() for fd in stdio])
        return {"name": chosen, "pid": pid, "status": FileDescriptor(status, should_close=True)}

    @varlinkmethod
    async def Push(self, *, name: str, path: str, kind: str, stream: FileDescriptor, hold: FileDescriptor,
                   fileName: str | None = None, uid: int | None = None, gid: int | None = None,  # noqa: N803
                   mode: int | None = None, mtime: int | None = None) -> None:
        """Put what can be read from `stream` at `path` in a VE, running or stopped: a "file" with its mode and its time
        in nanoseconds, in the place of one that is there; or a "directory" that `stream` is open on, or the content of
        an "archive" (tar), where there is nothing yet. Where `path` is a directory, it goes there as `fileName`. It
        belongs to uid and gid of the VE, 0 by default; what is in an archive, to who it says. It appears as a whole.
        `hold` is an end of a socket pair; when the other one is closed, all is taken back. At last a byte comes out of
        that, and one is to be written back to confirm. Of a directory, only files,
        directories and symlinks are taken."""
        source = {"kind": kind, "name": fileName or "", "uid": uid or 0, "gid": gid or 0,
                  "mode": 0o644 if mode is None else mode, "mtime": mtime}
        await self._service.push(name, path, source, stream.fileno(), hold.fileno())

    @varlinkmethod
    async def Pull(self, *, name: str, path: str, kind: str, stream: FileDescriptor, hold: FileDescriptor) -> Pulled:
        """Write to `stream` what is at `path` in a VE: the content of a "file"; or a directory as an "archive" (tar) or
        below the "directory" that `stream` is open on, where all belongs to root and has no set-user-ID bits. Returns
        mode and time of a file, and what was left out, being no file, directory or symlink."""
        return await self._service.pull(name, path, kind, stream.fileno(), hold.fileno())  # type: ignore[return-value]

    @varlinkmethod
    async def Clone(self, *, name: str, new: str, hold: FileDescriptor) -> None:
        """Make another VE of a stopped one: its settings and data, but ids, addresses and a host name of its own,
        and no published ports. `hold` as for Push, without the confirmation."""
        await self._service.clone(name, new, hold.fileno())

    @varlinkmethod(return_parameter="skipped")
    async def Export(self, *, name: str, stream: FileDescriptor, hold: FileDescriptor,
                     withTemplate: bool | None = None) -> list[str]:  # noqa: N803
        """Write a stopped VE to `stream`: its definition, its own files, and its template or what identifies that.
        Returns what was left out. `hold` as for Push, without the confirmation."""
        return await self._service.export(name, bool(withTemplate), stream.fileno(), hold.fileno())

    @varlinkmethod
    async def Import(self, *, name: str, template: str, settings: dict[str, str], stream: FileDescriptor,
                     hold: FileDescriptor, trusted: bool | None = None) -> Imported:
        """Make a VE of what Export has written. An empty name or template is the file's; settings are instead of the
        file's. What opens something of this host is taken from the file only if that is trusted. It is there when all
        has been read and its checksum fits, or not at all. `hold` as for Push, without the confirmation."""
        made, notes = await self._service.import_(name, template, settings, bool(trusted), stream.fileno(),
                                                  hold.fileno())
        return {"name": made, "notes": notes}

    @varlinkmethod
    async def Rename(self, *, name: str, new: str) -> None:
        """Give a stopped VE another name."""
        await self._service.rename(name, new)

    @varlinkmethod
    async def CreateTemplate(self, *, name: str, ve: str, description: str, hold: FileDescriptor) -> None:
        """Make a template of what a stopped VE sees. `hold` as for Push, without the confirmation."""
        await self._service.create_template(name, ve, description, hold.fileno())

    @varlinkmethod(return_parameter="state")
    async def Attach(self, *, name: str, stream: FileDescriptor, readOnly: bool | None = None,  # noqa: N803
                     force: bool | None = None) -> str:
        """Connect `stream`, one end of a SOCK_SEQPACKET socket pair, to the console of a VE, also before it runs, until
        the other end is closed. Returns the VE's state. The first byte of a message is its kind. To the VE: "d" and
        what is typed, at most 3,500 bytes; "w" and a struct winsize. From it: "r", it runs, and its latest output
        follows; "d" and output; "e" and the wait status of its init as a native int, it has ended; "l" and the number
        of bytes that were left out as they were not read in time; "x" and why the stream ends. One client at a time
        may type; with force it takes the place of another."""
        return await self._service.attach(name, bool(readOnly), bool(force), stream.fileno())

    @varlinkmethod(return_parameter="directory")
    def OpenLog(self, *, name: str) -> FileDescriptor:
        """The directory with the console's log, bytes as they were printed: console.old.log and, going on where that
        ends, console.log. When this is full it becomes the old one. console.times.log and console.old.times.log tell
        when: the inode number of the log as a native 64-bit number, then pairs of native 32-bit numbers, an offset
        in that log and the second since 1970 in which the text from there on was printed."""
        return FileDescriptor(self._service.open_log(name), should_close=True)

    @varlinkmethod(return_parameter="templates")
    async def ListTemplates(self) -> list[TemplateInfo]:
        """All templates, by name."""
        return await self._service.templates()  # type: ignore[return-value]

    @varlinkmethod
    async def ShowTemplate(self, *, name: str) -> TemplateInfo:
        """One template, and the VEs that use it."""
        return await self._service.template(name)  # type: ignore[return-value]

    @varlinkmethod
    async def ImportTemplate(self, *, name: str, description: str, archive: FileDescriptor) -> TemplateInfo:
        """Make a template from a tar stream (plain, gzip, xz or zstd)."""
        return await self._service.import_template(name, description, archive.fileno())  # type: ignore[return-value]

    @varlinkmethod
    async def RemoveTemplate(self, *, name: str) -> None:
        """Remove a template that no VE uses."""
        await self._service.remove_template(name)

    @varlinkmethod
    async def RefreshHostTemplate(self) -> None:
        """Make the built-in template anew, after the host's packages have changed."""
        await self._service.refresh_host_template()

    @varlinkmethod(delay_generator=False, return_type=Events)
    async def WatchEvents(self, *, name: str | None = None, since: float | None = None,
                          follow: bool | None = None, after: int | None = None) -> AsyncIterator[AnnotatedResult]:
        """What has happened, to one VE if `name` is given, since a Unix time; with follow also what will happen, as
        soon as it does, until vemgr is shut down. Numbers rise, from one daemon to the next too: a client that has lost
        its connection goes on `after` the last number that it has seen. Kinds: created, started, stopped, crashed,
        rebooted, restarting, gave-up, suspended, resumed, set, destroyed; from the kernel's counters oom, oom-kill,
        memory-high, memory-max, pids-max, where count says how often since the last such event; cpu-pressure, memory-
        pressure, io-pressure, disk-full; from the scheduler reclaimed, restored, unmet, policy; and gap: this reader
        was too slow, and count events are left out."""
        async for events in self._service.events(name or "", since or 0.0, bool(follow), after or 0):
            yield AnnotatedResult({"events": events}, continues=True)
        yield AnnotatedResult({"events": []})

    @varlinkmethod
    async def GetHost(self) -> HostInfo:
        """What this host can enforce, and where things are."""
        return await self._service.host()  # type: ignore[return-value]

    @varlinkmethod
    async def GetCapacity(self) -> CapacityInfo:
        """What the host has, keeps for itself, has promised to whom and can still promise, and what is used of it now:
        "cpus" in thousandths of a CPU, "memory" in bytes, and "network", the uplink where its rate is known, in
        bit/s."""
        return await self._service.capacity()  # type: ignore[return-value]

    @varlinkmethod
    def CountFitting(self, *, cpus: str | None = None, memory: str | None = None,
                     network: str | None = None, group: str | None = None) -> Fitting:
        """How many more VEs with these guarantees could be started, in a group if one is given, and which resource ends
        first."""
        return self._service.fitting(  # type: ignore[return-value]
            cpus or "", memory or "", network or "", group or "")

    @varlinkmethod(return_parameter="groups")
    def ListGroups(self) -> list[GroupInfo]:
        """All groups of VEs, by name. Of each resource `claimed` is what the group takes up of what it is in,
        `promised` what of that VEs and groups in it have been promised, and `free` what they still can be."""
        return self._service.groups()  # type: ignore[return-value]

    @varlinkmethod
    def ShowGroup(self, *, name: str) -> GroupInfo:
        """One group."""
        return self._service.group(name)  # type: ignore[return-value]

    @varlinkmethod
    async def CreateGroup(self, *, name: str, settings: dict[str, str], parent: str | None = None) -> None:
        """Define a group of VEs, in another one if `parent` is given: limits, guarantees and weights that they have
        together. What is guaranteed to it is promised from now on, whether or not a VE of it runs."""
        await self._service.create_group(name, parent or "", settings)

    @varlinkmethod
    async def SetGroup(self, *, name: str, settings: dict[str, str]) -> None:
        """Change a group, live: also for the VEs that run in it."""
        await self._service.set_group(name, settings)

    @varlinkmethod
    async def RemoveGroup(self, *, name: str) -> None:
        """Remove a group that nothing is in."""
        await self._service.remove_group(name)

    @varlinkmethod
    async def Explain(self, *, name: str) -> Explanation:
        """What a VE has been promised, is entitled to when all VEs want all they can get, and uses; and for each file
        of its cgroup the value, what it should be, and why; and what
        the scheduler did to it last. A VE that does not run as if it had just been started."""
        return await self._service.explain(name)  # type: ignore[return-value]

    @varlinkmethod(return_parameter="findings")
    async def Examine(self, *, installed: str) -> list[Finding]:
        """Check the host: of each fact whether it is "ok", or "warn" or "fail", what that means for VEs, and a command
        or something else that helps. `installed`: the version that the daemon should have."""
        return await self._service.examine(installed)  # type: ignore[return-value]

    @varlinkmethod(return_parameter="ves")
    async def GetStatistics(self, *, names: list[str] | None = None) -> list[Statistics]:
        """What VEs, those named or all, hold of each resource, held at most since their start, may have (`limit`, none
        where `unlimited`), can count on, and how often a limit stood in their way. What is null is not available on
        this host, or there is no such thing. Of "cpus" (in us), "io-", "iops-" and "net-", `held` is what was used so
        far, and limit and guarantee are per second. A VE that does not run has no counters."""
        return await self._service.statistics(names or [])  # type: ignore[return-value]

    @varlinkmethod(return_parameter="ves")
    async def GetDemand(self) -> list[Demand]:
        """What the VEs that run have used and waited for so far: CPU in us (`cpuWaited`: some thread waited for one),
        bytes read and written on disks and through links; bytes of memory now, and those of them that are not idle.
        With the settings that the scheduler goes by. What is null this host does not tell."""
        return await self._service.demand()  # type: ignore[return-value]

    @varlinkmethod
    def GetPolicy(self) -> PolicyInfo:
        """What counts as promised, and what vemgr.toml says to that."""
        return self._service.policy()  # type: ignore[return-value]

    @varlinkmethod
    async def SetPolicy(self, *, policy: str) -> None:
        """Switch the policy, "guaranteed", "balanced" or "dense", until the host is started again. Refused where what
        runs does not fit the host by it."""
        await self._service.set_policy(policy)

    @varlinkmethod(return_parameter="profiles")
    async def ListProfiles(self) -> list[Profile]:
        """The administrator's profiles: settings that Create, Set and Run copy where the setting "profile" names them.
        One that cannot be used has an error instead."""
        return await self._service.profiles()  # type: ignore[return-value]

    @varlinkmethod(return_parameter="volumes")
    async def ListVolumes(self) -> list[VolumeInfo]:
        """Directories that VEs mount and that outlive them: what all in each may take and takes, in bytes and in files,
        null where there is no limit or nothing is counted, and the VEs whose setting "mount" names it."""
        return await self._service.volumes()  # type: ignore[return-value]

    @varlinkmethod
    async def ShowVolume(self, *, name: str) -> VolumeInfo:
        """As ListVolumes, of one."""
        return await self._service.volume(name)  # type: ignore[return-value]

    @varlinkmethod
    async def CreateVolume(self, *, name: str, size: str | None = None, inodes: str | None = None) -> None:
        """Make a volume. `size` as "10G"; a limit needs project quotas in the file system of the state directory."""
        await self._service.create_volume(name, size, inodes)

    @varlinkmethod
    async def SetVolume(self, *, name: str, size: str | None = None, inodes: str | None = None) -> None:
        """Change what a volume may take, "unlimited" for no limit; what is not given stays. At once."""
        await self._service.set_volume(name, size, inodes)

    @varlinkmethod
    async def RemoveVolume(self, *, name: str) -> None:
        """Remove a volume that no VE has, with all that is in it."""
        await self._service.remove_volume(name)

    @varlinkmethod
    async def RestoreNetwork(self) -> None:
        """Make bridges, ports and firewall tables again what they should be, whoever has changed them."""
        await self._service.restore_network()

    @varlinkmethod
    async def Shutdown(self) -> None:
        """Stop all VEs, take the network back, end keeper and daemon."""
        await self._service.shutdown()
