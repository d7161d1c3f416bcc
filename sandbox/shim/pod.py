"""A pod as the shim sees it: shared namespaces, a cgroup, volumes, containers."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from sandbox.linux import constants as c, syscalls
from sandbox.linux.cgroup import Cgroup, read, write
from sandbox.linux.errors import KernelError
from sandbox.linux.idmap import IdMap
from sandbox.runtime import hostimage, limits, rootfs as roots
from sandbox.runtime.failure import Failure
from sandbox.runtime.native import POD_NAMESPACES
from sandbox.runtime.process import Surroundings

from .container import Container
from .holders import Holder, Holders, reason_of
from .loop import Loop
from .spares import Reserve, Spares

#: Version 1 controllers that every container gets, for what they count.
_COUNTERS = frozenset({"memory", "pids"})
#: Members of ``linux.resources`` → version 1 controller.
_V1_OF = {"memory": "memory", "pids": "pids", "cpu": "cpu", "blockIO": "blkio"}


class World:
    """What all pods of a shim have in common."""

    def __init__(
        self, *, loop: Loop, space: str, idmap: IdMap, soft_files: int, privileged: bool, userns_fd: int,
        own_pidns_fd: int, own_netns_fd: int,
    ) -> None:  # fmt: skip
        self.loop = loop
        self.space = space
        self.idmap = idmap
        self.privileged = privileged
        self.userns_fd = userns_fd
        self.own_pidns_fd = own_pidns_fd
        self.own_netns_fd = own_netns_fd
        with open("/proc/self/setgroups") as file:
            may_set_groups = file.read().strip() == "allow"
        self.surroundings = Surroundings(may_set_groups, soft_files)
        self.spares = Spares(loop, space, idmap, userns_fd)
        self.holders = Holders(loop, self.spares.place)
        self._host_root: roots.Rootfs | None = None

    def rootfs(self, document: Mapping[str, Any]) -> roots.Rootfs:
        """The description in a request; the host's root is made the first time someone asks for it."""
        if document.get("kind") != "host":
            return roots.parse(document)
        if self._host_root is None:
            skeleton = f"{self.space}/host"
            os.mkdir(skeleton, 0o711)
            self._host_root = hostimage.build(skeleton, self.idmap.root)
        files = tuple((document.get("files") or {}).items())
        root = hostimage.with_layers(self._host_root, tuple(document.get("layers") or ()))
        return root._replace(size=document.get("size"), files=files)

    def refuse(self, grant: Mapping[str, Any]) -> None:
        """There will be no pod in the scope of this grant: it goes, and the spare in it."""
        scope = grant.get("v2")
        if self.holders.waits_in(scope):
            reserve = self.spares.take(grant, held=True)
            if reserve is not None:
                reserve.drop()
            self.holders.refuse(scope)

    def socket(self, netns_fd: int | None, family: int, kind: int, protocol: int) -> socket.socket:
        """A socket made in another network namespace."""
        if netns_fd is None:
            return socket.socket(family, kind, protocol)
        if not self.privileged:
            return _socket_by_child(netns_fd, family, kind, protocol)
        syscalls.setns(netns_fd, c.CLONE_NEWNET)
        try:
            return socket.socket(family, kind, protocol)
        finally:
            syscalls.setns(self.own_netns_fd, c.CLONE_NEWNET)


class Pod:
    """One pod."""

    def __init__(self, world: World, document: Mapping[str, Any]) -> None:
        self.id: str = document["id"]
        check_name(self.id)
        _check_grant(document.get("cgroup") or {})
        self.meta: dict[str, Any] = dict(document.get("meta") or {})
        self.created = time.time()
        self.containers: dict[str, Container] = {}
        self.namespaces: dict[str, int] | None = None
        self.best_effort = bool(document.get("best_effort"))
        self.unenforced: list[dict[str, Any]] = []
        self.removing = False
        self.when_gone: list[Callable[[], None]] = []
        self.helpers: list[tuple[int, int]] = []
        self._world = world
        self._volumes: list[str] = []
        #: Why it was ended by somebody else.
        self.revoked: str | None = None
        self._holder = self._take_holder(document.get("cgroup") or {})
        self.reserve: Reserve | None = world.spares.take(document.get("cgroup"), held=self._holder is not None)
        try:
            self.cgroup = self._make_cgroup(document.get("cgroup"), document.get("resources") or {})
        except BaseException:
            self._release_holder()
            raise
        try:
            for volume in document.get("volumes") or ():
                self._make_volume(volume)
        except BaseException:
            self.release()
            raise

    def _take_holder(self, grant: Mapping[str, Any]) -> Holder | None:
        holder = self._world.holders.take(grant.get("v2"))
        if holder is not None:
            holder.when_killed = self._revoke
        return holder

    def _release_holder(self) -> None:
        if self._holder is not None:
            self._holder.release()
            self._holder = None

    def _revoke(self, signal_number: int) -> None:
        """The scope goes with its holder, so everything in it has to go as well."""
        if not self.removing:
            oom = self.cgroup is not None and self.cgroup.oom_kills() > 0
            self.revoked = "out of memory at the limit of the pod" if oom else reason_of(signal_number)
            for container in self.containers.values():
                container.stopping = True
                container.kill()

    def _remove_cgroup(self) -> None:
        if self.cgroup is None:
            return
        if self.held:
            Cgroup(None, self.cgroup.v1).remove()
        elif not self.cgroup.remove_empty():
            self.cgroup.remove()

    def _leave_scope(self) -> None:
        """Systemd notices that a scope is empty by its cgroup.events, and removes it; it misses what goes too soon."""
        if self._holder is not None:
            self._holder.end()
            if self.cgroup is not None:
                self.cgroup.remove_children()
            self._release_holder()

    def _make_cgroup(self, grant: Mapping[str, Any] | None, resources: Mapping[str, Any]) -> Cgroup | None:
        self._controllers: set[str] = set()
        self._v1: dict[str, str] = {}
        if grant is None:
            self.apply(None, resources)
            return None
        self._controllers = set(grant.get("controllers") or ())
        self._v1 = dict(grant.get("v1") or {})
        limited = {controller: path for controller, path in self._v1.items() if controller in _limited(resources)}
        if (limited or limits.tight(resources)) and self.reserve is not None:
            # The container's version 1 directories have to lie in the pod's, and those of the spare do not. In version 2
            # the spare's memory counts already.
            self.reserve.drop()
            self.reserve = None
        scope = (self.reserve.scope if self.reserve else None) or grant.get("v2")
        cgroup = Cgroup(scope, limited)
        if self.reserve is None:
            cgroup.create()
        try:
            self.apply(cgroup, resources)
            if self.reserve is None:
                cgroup.enable(self._controllers)
        except BaseException:
            self.drop_reserve()
            cgroup.remove()
            raise
        return cgroup

    def apply(self, cgroup: Cgroup | None, resources: Mapping[str, Any]) -> None:
        """Set limits on a cgroup of this pod. What cannot be enforced is an error, or noted if best effort is enough."""
        v1 = set(cgroup.v1) if cgroup else set()
        v2 = self._controllers if cgroup else set()
        for member in resources:
            try:
                for setting in limits.settings({member: resources[member]}, v1, v2):
                    assert cgroup is not None
                    _write_setting(cgroup, setting)
            except Failure as failure:
                if not (self.best_effort and failure.facts["type"] == "LimitNotEnforceable"):
                    raise
                self.unenforced.append(failure.facts)

    def container_cgroup(self, name: str, resources: Mapping[str, Any]) -> Cgroup | None:
        """A cgroup for a container of this pod, limits set, with a leaf ``main`` for its init."""
        if self.cgroup is None:
            self.apply(None, resources)
            return None
        v1 = self._container_v1(name, resources)
        made = self.reserve.cgroup if self.reserve is not None else None
        if made is not None:
            v1 |= made.v1
        cgroup = Cgroup(f"{self.cgroup.v2}/{name}" if self.cgroup.v2 else None, v1)
        if made is None or v1 != made.v1:
            cgroup.create()
        try:
            self.apply(cgroup, resources)
        except BaseException:
            self.drop_reserve()
            cgroup.remove()
            raise
        return cgroup

    @property
    def plain_v1(self) -> dict[str, str]:
        """Where a pod without limits of its own has its version 1 directories: those that every container gets."""
        return {name: path for name, path in self._v1.items() if name in _COUNTERS}

    @property
    def held(self) -> bool:
        """True if its cgroup is a systemd scope."""
        return self._holder is not None

    @property
    def controllers(self) -> set[str]:
        """Version 2 controllers that its containers may use."""
        return self._controllers

    def drop_reserve(self) -> None:
        """The spare that came with its cgroup is of no use."""
        if self.reserve is not None:
            self.reserve.discard()
            self.reserve = None

    def adopt_namespaces(self, opened: Mapping[str, int]) -> None:
        """Keep the namespaces that the pod's first container made, for the others and for the pod's sockets."""
        if self.namespaces is None:
            self.namespaces = {kind: os.dup(fd) for kind, fd in opened.items() if kind in POD_NAMESPACES}

    def _container_v1(self, name: str, resources: Mapping[str, Any]) -> dict[str, str]:
        """Version 1 directories of a container: memory and pids always, for their counters; others only if limited.

        Each takes time to make and to remove, so where the pod as a whole has no limit it gets no directory, and the
        container's stands in its place.
        """
        assert self.cgroup is not None
        wanted = _COUNTERS | _limited(resources) | set(self.cgroup.v1)
        return {
            controller: f"{path}/{name}" if controller in self.cgroup.v1 else f"{path}:{name}"
            for controller, path in self._v1.items()
            if controller in wanted
        }

    @property
    def netns_fd(self) -> int | None:
        """The pod's network namespace; None if it is the host's."""
        if self.namespaces is None:
            raise Failure("PodStateError", operation="reach the network of pod", object=self.id,
                          detail="none of its containers was started yet")  # fmt: skip
        return self.namespaces.get("network")

    def socket(self, family: int, kind: int, protocol: int) -> socket.socket:
        """A socket in the pod's network."""
        return self._world.socket(self.netns_fd, family, kind, protocol)

    def _make_volume(self, volume: Mapping[str, Any]) -> None:
        """A tmpfs that its containers share, like Kubernetes' emptyDir: mode 0777 as a rule, gone with the pod."""
        check_name(volume["name"])
        path = f"{self._world.space}/pods/{self.id}/volumes/{volume['name']}"
        os.makedirs(path, 0o711)
        uid, gid = self._world.idmap.root
        size = f",size={volume['size']}" if volume.get("size") else ""
        options = f"mode={volume.get('mode', 0o777):o},uid={uid},gid={gid}{size}"
        syscalls.mount("volume", path, "tmpfs", c.MS_NOSUID | c.MS_NODEV, options)
        self._volumes.append(path)

    def release(self) -> None:
        """Give back everything; no process of the pod is left when this is called.

        What the kernel and systemd take their time for is done when nobody waits for it: the last descriptors of namespaces,
        and the end of the scope.
        """
        self.drop_reserve()
        for pid, pidfd in list(self.helpers):
            with contextlib.suppress(OSError):
                syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
            self.bury(pid, pidfd)
        self._remove_cgroup()
        self._world.loop.when_idle(self._forget)

    def bury(self, pid: int, pidfd: int) -> None:
        """Wait for a helper that has ended, or was killed, and forget it."""
        self.helpers.remove((pid, pidfd))
        self._world.loop.forget(pidfd)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        os.close(pidfd)

    def _forget(self) -> None:
        self._leave_scope()
        for fd in (self.namespaces or {}).values():
            os.close(fd)
        self.namespaces = None
        for path in self._volumes:
            syscalls.umount(path, c.MNT_DETACH)
            os.rmdir(path)
        if self._volumes:
            os.rmdir(os.path.dirname(self._volumes[0]))
            os.rmdir(f"{self._world.space}/pods/{self.id}")
            self._volumes.clear()


def _limited(resources: Mapping[str, Any]) -> set[str]:
    """The version 1 controllers that ``linux.resources`` asks something of."""
    return {controller for member, controller in _V1_OF.items() if resources.get(member)}


def _socket_by_child(netns_fd: int, family: int, kind: int, protocol: int) -> socket.socket:
    """The shim of an ordinary user could enter a pod's network, but not come back to the host's (setns(2))."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid, pidfd = syscalls.clone3(0, signal.SIGCHLD)
    if pid == 0:
        try:
            syscalls.setns(netns_fd, c.CLONE_NEWNET)
            made = socket.socket(family, kind, protocol)
            socket.send_fds(theirs, [b"0"], [made.fileno()])
        except OSError as error:
            theirs.send(str(error.errno).encode())
        finally:
            os._exit(0)
    os.close(pidfd)
    theirs.close()
    with ours:
        data, fds, _, _ = socket.recv_fds(ours, 16, 1)
    os.waitpid(pid, 0)
    if not fds:
        raise KernelError(int(data or errno.EIO), "make a socket in a pod's network")
    return socket.socket(fileno=fds[0])


def _write_setting(cgroup: Cgroup, setting: limits.Setting) -> None:
    directory = cgroup.v1[setting.controller] if setting.version == 1 else cgroup.v2
    try:
        write(f"{directory}/{setting.file}", setting.value)
    except KernelError as error:
        if setting.file == "memory.oom.group":
            return  # only says explicitly what is the default; kernels before 4.19 do not have it
        usage = {"memory.limit_in_bytes": "memory.usage_in_bytes", "memory.memsw.limit_in_bytes": "memory.memsw.usage_in_bytes"}
        in_use = read(f"{directory}/{usage[setting.file]}") if setting.file in usage else None
        raise limits.refused(setting, error.errno or 0, in_use and in_use.strip()) from None


def _check_grant(grant: Mapping[str, Any]) -> None:
    """Everything in a pod's cgroup is killed in the end, so it has to be the one that was meant."""
    for path in (grant.get("v2"), *(grant.get("v1") or {}).values()):
        if path is not None and (not path.startswith("/") or ".." in path.split("/")):
            raise Failure("SpecError", operation="use the cgroup", object=path, detail="not a plain absolute path")


def check_name(name: str) -> None:
    """Names become parts of paths and cgroups."""
    if not name or len(name) > 128 or name.startswith((".", "-")) or not all(ch.isalnum() or ch in "-_." for ch in name):
        raise Failure("SpecError", operation="use the name", object=str(name)[:200],
                      detail="letters, digits, `-`, `_` and `.` only, at most 128, not starting with `.` or `-`")  # fmt: skip
