"""The single steps of making a container's file system: small values that say what they do and do it.

A plan (:mod:`.plan`) is a list of them, computed before the container's init process exists; the init executes them in
order. All targets are resolved inside the new root by the kernel, so that a hostile root file system cannot lead a mount
outside.

To a spare (:mod:`.spare`, :mod:`.finished`) it matters whether two steps are the same. They are tuples, and tuples of different
classes are equal if their fields are; so the kind of each is a field.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol

from sandbox.linux import constants as c, syscalls
from sandbox.linux.errors import KernelError
from sandbox.linux.mounts import MountOptions, idmapped_clone

from . import beneath
from .failure import Failure

_EMPTY_PATHS = c.MOVE_MOUNT_F_EMPTY_PATH | c.MOVE_MOUNT_T_EMPTY_PATH
#: Places where a link would make a program see something else than the kernel's own files.
_NO_LINKS = frozenset({"/proc", "/sys", "/dev"})
_ATTRIBUTES = (
    (c.MS_RDONLY, c.MOUNT_ATTR_RDONLY), (c.MS_NOSUID, c.MOUNT_ATTR_NOSUID), (c.MS_NODEV, c.MOUNT_ATTR_NODEV),
    (c.MS_NOEXEC, c.MOUNT_ATTR_NOEXEC), (c.MS_NOSYMFOLLOW, c.MOUNT_ATTR_NOSYMFOLLOW),
)  # fmt: skip


class Scene:
    """What the steps share while they run: the new root, prepared mounts, and a descriptor of an empty directory."""

    def __init__(self, root_fd: int, prepared: dict[str, int], empty: str) -> None:
        self.root_fd = root_fd
        #: Detached mounts by target: made by the shim, which may do what the container's init may not.
        self.prepared = prepared
        #: A path (outside the new root) of an empty, read-only directory, to be bound over masked directories.
        self.empty = empty


class Step(Protocol):
    """One step."""

    def describe(self) -> str:
        """What it does, verb first."""
        ...

    def execute(self, scene: Scene) -> None:
        """Do it; raises :class:`KernelError` or :class:`Failure`."""
        ...


def _attributes(flags: int) -> int:
    return sum(attribute for flag, attribute in _ATTRIBUTES if flags & flag)


def attach(scene: Scene, mount_fd: int, target: str, *, directory: bool) -> None:
    """Move a detached mount to ``target``, which is made if it is missing."""
    try:
        target_fd = beneath.ensure(scene.root_fd, target, directory=directory, follow=target not in _NO_LINKS)
        try:
            _check_kinds(mount_fd, target_fd, target)
            syscalls.move_mount(mount_fd, "", target_fd, _EMPTY_PATHS)
        finally:
            os.close(target_fd)
    except KernelError as error:
        raise _explained(error, target) from None


def _check_kinds(mount_fd: int, target_fd: int, target: str) -> None:
    """The kernel would only say that the argument is invalid."""
    if stat.S_ISDIR(os.fstat(mount_fd).st_mode) != stat.S_ISDIR(os.fstat(target_fd).st_mode):
        raise KernelError(errno.ENOTDIR, "mount on", target)


def _explained(error: KernelError, target: str) -> Exception:
    if error.errno == errno.ELOOP and target in _NO_LINKS:
        return Failure(operation="mount on", object=target, detail="it is a symbolic link in this root file system",
                       hint="replace the link by a directory")  # fmt: skip
    if error.errno == errno.ENOTDIR:
        return Failure(operation="mount on", object=target, errno=errno.ENOTDIR,
                       hint="a directory can only be mounted on a directory, a file only on a file")  # fmt: skip
    error.object = target
    return error


class MountFilesystem(NamedTuple):
    """A new file system: proc, sysfs, tmpfs, devpts, mqueue, cgroup2, overlay."""

    fstype: str
    source: str
    target: str
    options: MountOptions
    kind: Literal["mount"] = "mount"

    def describe(self) -> str:
        return f"mount {self.fstype} on {self.target}"

    def execute(self, scene: Scene) -> None:
        try:
            target_fd = beneath.ensure(
                scene.root_fd, self.target, directory=True, follow=self.target not in _NO_LINKS
            )  # fmt: skip
            try:
                self._mount(scene, beneath.as_path(target_fd))
            finally:
                os.close(target_fd)
        except KernelError as error:
            raise _explained(error, self.target) from None
        if self.options.propagation:
            _set_propagation(scene, self.target, self.options.propagation)

    def _mount(self, scene: Scene, path: str) -> None:
        """Mount it; the kernel puts no file system on itself (EBUSY, mount(2)), but on what covers it.

        That is met where /sys is the host's, and the host has cgroup2 on /sys/fs/cgroup.
        """
        arguments = (self.source, path, self.fstype, self.options.flags, self.options.data)
        try:
            syscalls.mount(*arguments)
        except KernelError as error:
            if error.errno != errno.EBUSY:
                raise
            syscalls.mount(scene.empty, path, None, c.MS_BIND)
            syscalls.mount(*arguments)


def _set_propagation(scene: Scene, target: str, propagation: int) -> None:
    fd = beneath.locate(scene.root_fd, target)
    try:
        syscalls.mount(None, beneath.as_path(fd), None, propagation)
    finally:
        os.close(fd)


class Bind(NamedTuple):
    """A file or directory of the host, or a volume, seen at ``target``.

    The shim opens the source (:func:`prepare`): the container's init, being another user, may have no way to it.
    """

    source: str
    target: str
    options: MountOptions
    kind: Literal["bind"] = "bind"

    def describe(self) -> str:
        return f"bind {self.source} at {self.target}"

    def prepare(self, userns_fd: int) -> int:
        """A detached copy of the source with its attributes set; runs in the shim."""
        flag = c.AT_RECURSIVE if self.options.flags & c.MS_REC else 0
        try:
            if self.options.idmap and userns_fd >= 0:
                return self._attributed(idmapped_clone(self.source, userns_fd, recursive=bool(flag)))
            clone = c.OPEN_TREE_CLONE | c.OPEN_TREE_CLOEXEC
            return self._attributed(syscalls.open_tree(self.source, clone | flag))
        except KernelError as error:
            raise explain_source(error, self.source, f"the mount at {self.target}") from None

    def execute(self, scene: Scene) -> None:
        mount_fd = scene.prepared[self.target]
        attach(scene, mount_fd, self.target, directory=stat.S_ISDIR(os.fstat(mount_fd).st_mode))
        if self.options.propagation:
            _set_propagation(scene, self.target, self.options.propagation)

    def _attributed(self, mount_fd: int) -> int:
        try:
            self._set_attributes(mount_fd)
        except KernelError:
            os.close(mount_fd)
            raise
        return mount_fd

    def _set_attributes(self, mount_fd: int) -> None:
        if attributes := _attributes(self.options.flags):
            syscalls.mount_setattr(mount_fd, "", c.AT_EMPTY_PATH, attr_set=attributes)
        if self.options.recursive_set or self.options.recursive_clear:
            syscalls.mount_setattr(
                mount_fd, "", c.AT_EMPTY_PATH | c.AT_RECURSIVE,
                attr_set=self.options.recursive_set, attr_clr=self.options.recursive_clear,
            )  # fmt: skip


def explain_source(error: KernelError, source: str, wanted_by: str) -> Failure:
    """Why a directory or file of the host cannot be brought in."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return Failure(operation="bind mount", object=source, errno=error.errno,
                       cause=f"the source of {wanted_by} does not exist on the host",
                       hint="create it first, or correct the mount's source")  # fmt: skip
    if error.operation == "mount_setattr" and error.errno in (errno.EINVAL, errno.EPERM):
        return Failure("UnsupportedFeature", operation="map the owners of", object=source, errno=error.errno,
                       feature="idmapped mounts", cause="the file system there does not support idmapped mounts",
                       hint="move it to ext4, xfs, btrfs or (Linux 6.3) tmpfs, or mount it with idmapped=False")  # fmt: skip
    return Failure(operation="bind mount", object=source, errno=error.errno, cause=f"needed for {wanted_by}")


class Device(NamedTuple):
    """A device node, bound from the host: inside a user namespace nobody may make one (mknod(2))."""

    path: str
    kind: Literal["device"] = "device"

    def describe(self) -> str:
        return f"bind the device {self.path}"

    def execute(self, scene: Scene) -> None:
        mount_fd = syscalls.open_tree(self.path, c.OPEN_TREE_CLONE | c.OPEN_TREE_CLOEXEC)
        try:
            if not stat.S_ISCHR(os.fstat(mount_fd).st_mode) and not stat.S_ISBLK(os.fstat(mount_fd).st_mode):
                raise Failure(operation="bind the device", object=self.path, detail="it is no device on the host")
            attach(scene, mount_fd, self.path, directory=False)
        finally:
            os.close(mount_fd)


class Symlink(NamedTuple):
    """A symbolic link in a directory that was just mounted."""

    path: str
    target: str
    kind: Literal["link"] = "link"

    def describe(self) -> str:
        return f"link {self.path} to {self.target}"

    def execute(self, scene: Scene) -> None:
        directory, _, name = self.path.rpartition("/")
        parent = beneath.locate(scene.root_fd, directory or "/")
        try:
            os.symlink(self.target, name, dir_fd=parent)
        except FileExistsError:
            pass
        finally:
            os.close(parent)


class Mask(NamedTuple):
    """Hide a file behind /dev/null, or a directory behind an empty one; nothing to do where there is none."""

    path: str
    kind: Literal["mask"] = "mask"

    def describe(self) -> str:
        return f"mask {self.path}"

    def execute(self, scene: Scene) -> None:
        target_fd = _locate_or_none(scene, self.path)
        if target_fd is None:
            return
        with about(self.path):
            self._cover(scene, target_fd)

    @staticmethod
    def _cover(scene: Scene, target_fd: int) -> None:
        try:
            directory = stat.S_ISDIR(os.fstat(target_fd).st_mode)
            cover = syscalls.open_tree(
                scene.empty if directory else "/dev/null", c.OPEN_TREE_CLONE | c.OPEN_TREE_CLOEXEC
            )  # fmt: skip
            try:
                if directory:
                    syscalls.mount_setattr(cover, "", c.AT_EMPTY_PATH, attr_set=c.MOUNT_ATTR_RDONLY)
                syscalls.move_mount(cover, "", target_fd, _EMPTY_PATHS)
            finally:
                os.close(cover)
        finally:
            os.close(target_fd)


class ReadOnly(NamedTuple):
    """Make a path read-only, with what is mounted below it."""

    path: str
    kind: Literal["read-only"] = "read-only"

    def describe(self) -> str:
        return f"make {self.path} read-only"

    def execute(self, scene: Scene) -> None:
        target_fd = _locate_or_none(scene, self.path)
        if target_fd is None:
            return
        with about(self.path):
            self._remount(target_fd)

    @staticmethod
    def _remount(target_fd: int) -> None:
        try:
            mount_fd = syscalls.open_tree(
                "", c.OPEN_TREE_CLONE | c.OPEN_TREE_CLOEXEC | c.AT_EMPTY_PATH | c.AT_RECURSIVE, target_fd
            )  # fmt: skip
            try:
                syscalls.mount_setattr(
                    mount_fd, "", c.AT_EMPTY_PATH | c.AT_RECURSIVE, attr_set=c.MOUNT_ATTR_RDONLY
                )  # fmt: skip
                syscalls.move_mount(mount_fd, "", target_fd, _EMPTY_PATHS)
            finally:
                os.close(mount_fd)
        finally:
            os.close(target_fd)


@contextlib.contextmanager
def about(path: str) -> Iterator[None]:
    """Calls on a descriptor have no name for their object: it is ``path``."""
    try:
        yield
    except KernelError as error:
        error.object = error.object or path
        raise


def _locate_or_none(scene: Scene, path: str) -> int | None:
    try:
        return beneath.locate(scene.root_fd, path)
    except KernelError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
            return None
        raise


def is_mounted(fd: int, root_fd: int) -> bool:
    """Whether what is behind ``fd`` belongs to another file system than the root."""
    return os.fstat(fd).st_dev != os.fstat(root_fd).st_dev


class Sysctl(NamedTuple):
    """A kernel parameter of the container's own namespaces (sysctl(8) name, dots or slashes)."""

    name: str
    value: str
    kind: Literal["sysctl"] = "sysctl"

    def describe(self) -> str:
        return f"set the sysctl {self.name}"

    def execute(self, scene: Scene) -> None:
        relative = self.name if "/" in self.name else self.name.replace(".", "/")
        try:
            directory = beneath.locate(scene.root_fd, "/proc/sys", follow=False)
            try:
                if not is_mounted(directory, scene.root_fd):
                    raise OSError(errno.ENOENT, "it belongs to the root file system, not to the kernel")
                # Nothing above /proc/sys is meant, and a FIFO that somebody mounted there must not hold us up.
                fd = syscalls.openat2(
                    relative, os.O_WRONLY | os.O_NONBLOCK, resolve=c.RESOLVE_BENEATH | c.RESOLVE_NO_SYMLINKS, dir_fd=directory
                )  # fmt: skip
            finally:
                os.close(directory)
            try:
                os.write(fd, self.value.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise Failure(operation="set the sysctl", object=f"{self.name}={self.value}", errno=error.errno,
                          hint="only sysctls of the container's own namespaces (net.*, kernel.shm*, fs.mqueue.*, "
                               "kernel.hostname …) can be set") from None  # fmt: skip
