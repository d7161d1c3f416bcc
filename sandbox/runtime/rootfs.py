"""The root file system of a container: read-only layers below, a throw-away tmpfs above (overlayfs).

All of it is mounted by the container's own init in its own namespaces, so nothing needs to be undone when it ends.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sandbox.linux import constants as c, syscalls
from sandbox.linux.errors import KernelError
from sandbox.linux.mounts import idmapped_clone, read_only_clone

from .failure import Failure, invalid
from .steps import Scene, attach, explain_source

#: overlayfs takes at most this many lower layers (OVL_MAX_STACK).
_MAX_LAYERS = 500
#: Where in the scratch tmpfs mounts wait for the root they belong to.
STAGE = "stage"
#: In the scratch tmpfs: which directories have what the container changes of its image (:func:`note_made`).
MADE = "made"


class Overlay(NamedTuple):
    """One overlay: ``layers`` (lowest first) seen at ``target`` of the new root, writable through the tmpfs.

    ``mapped``: so many layers at the top carry container ids, whatever the others do (prepared files above the host's).
    ``alike``: the directory at ``target`` has mode and owner of the uppermost layer's.
    """

    target: str
    layers: tuple[str, ...]
    mapped: int = 0
    alike: bool = False


class Rootfs(NamedTuple):
    """What the root is made of.

    ``idmap``: the files carry container ids and come in through idmapped mounts. ``skeleton``: directories and links made
    in an otherwise empty root before the overlays are mounted (the host image), as (path, mode or link target).
    ``size``: bytes that may be written, None for the kernel's default of half the memory.
    """

    overlays: tuple[Overlay, ...]
    idmap: bool
    size: int | None
    skeleton: tuple[tuple[str, int | str], ...] = ()
    #: Files that are written into the new root: path → text.
    files: tuple[tuple[str, str], ...] = ()

    @property
    def whole(self) -> bool:
        """Whether one overlay is all of the root, so that its upper directory has all that was changed."""
        return self.overlays[0].target == "/"


def parse(document: Mapping[str, Any]) -> Rootfs:
    """Read the client's description: ``{"layers": [...], "idmap": bool, "size": int | null}``."""
    layers = tuple(document["layers"])
    if not layers or len(layers) > _MAX_LAYERS:
        raise invalid("rootfs.layers", f"{len(layers)} layers; overlayfs takes 1 to {_MAX_LAYERS}")
    return Rootfs((Overlay("/", layers),), bool(document.get("idmap")), document.get("size"),
                  files=tuple((document.get("files") or {}).items()))  # fmt: skip


def prepare(rootfs: Rootfs, userns_fd: int) -> list[int]:
    """Detached, read-only copies of all layers, idmapped where ids need it; runs in the shim. Empty if no ids need mapping."""
    if userns_fd < 0 or not (rootfs.idmap or any(overlay.mapped for overlay in rootfs.overlays)):
        return []
    clones: list[int] = []
    for overlay in rootfs.overlays:
        for left, layer in zip(range(len(overlay.layers), 0, -1), overlay.layers, strict=True):
            try:
                if rootfs.idmap or left <= overlay.mapped:
                    clones.append(idmapped_clone(layer, userns_fd, read_only=True))
                else:
                    clones.append(read_only_clone(layer))
            except KernelError as error:
                for fd in clones:
                    os.close(fd)
                raise explain_source(error, layer, "the image layer") from None
    return clones


def mount_scratch(scratch: str, size: int | None) -> None:
    """A tmpfs on ``scratch`` (an empty directory) for all that will be written, and the working directory in it."""
    syscalls.mount("sandbox", scratch, "tmpfs", c.MS_NODEV, f"mode=0755,size={size}" if size else "mode=0755")
    os.chdir(scratch)
    for name in ("root", "empty", STAGE):
        os.mkdir(name)


def stage(scratch: str) -> Scene:
    """A scene in which steps below /dev, /proc and /sys can be done before the root itself is known."""
    return Scene(os.open(STAGE, c.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), {}, f"{scratch}/empty")


def move_staged(scene: Scene) -> None:
    """Move what was staged into the new root, with everything mounted on it."""
    for name in os.listdir(STAGE):
        fd = syscalls.open_tree(f"{STAGE}/{name}", c.OPEN_TREE_CLOEXEC)
        attach(scene, fd, f"/{name}", directory=True)
        os.close(fd)


def assemble(rootfs: Rootfs, clones: list[int], scratch: str, prepared: dict[str, int]) -> Scene:
    """Mount the root in the scratch tmpfs and return the scene for the steps that follow."""
    if not rootfs.whole:
        syscalls.mount("root", "root", None, c.MS_BIND)
        _make_skeleton(rootfs.skeleton)
    remaining = list(clones)
    for number, overlay in enumerate(rootfs.overlays):
        _mount_overlay(number, overlay, remaining, rootfs.files)
    root_fd = os.open("root", c.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return Scene(root_fd, prepared, f"{scratch}/empty")


def note_made(rootfs: Rootfs) -> None:
    """Write down which directories have what the container changes, and what lies in there already: no doing of its program.

    ``[[directory, its place in the root, [[path below it, file type and mode, uid, gid], …]], …]``. Of a root of several
    overlays what lies between them counts from the beginning: there is no image that has it.
    """
    parts: list[tuple[str, str, list[_Made]]] = [] if rootfs.whole else [("root", "/", [])]
    for number, overlay in enumerate(rootfs.overlays):
        upper = f"{number}.upper"
        parts.append((upper, overlay.target, list(_made(upper, ""))))
    _write(MADE, json.dumps(parts))


_Made = tuple[str, int, int, int]


def _made(upper: str, below: str) -> Iterator[_Made]:
    with os.scandir(f"{upper}/{below}") as entries:
        for entry in entries:
            state = entry.stat(follow_symlinks=False)
            yield below + entry.name, state.st_mode, state.st_uid, state.st_gid
            if entry.is_dir(follow_symlinks=False):
                yield from _made(upper, f"{below}{entry.name}/")


def _write_files(upper: str, target: str, files: tuple[tuple[str, str], ...]) -> None:
    """Put files where the overlay will show them: in the upper layer, before it is one, where nothing is in the way."""
    made: set[str] = set()
    for path, text in files:
        if ".." in path.split("/"):
            raise invalid("rootfs.files", f"{path!r} contains `..`")
        place = _place(upper, target, path)
        if place is None:
            continue
        if (directory := os.path.dirname(place)) not in made:
            os.makedirs(directory, exist_ok=True)
            made.add(directory)
        _write(place, text)


def _place(upper: str, target: str, path: str) -> str | None:
    """Where a file is that the overlay at ``target`` shows as ``path``; None if it is not below."""
    below = target.rstrip("/") + "/"
    return f"{upper}/{path[len(below):]}" if path.startswith(below) else None


def places(rootfs: Rootfs) -> list[tuple[str, str]]:
    """The files that are put into the root, and where in the scratch tmpfs each of them is."""
    found = [
        (path, _place(f"{number}.upper", overlay.target, path))
        for number, overlay in enumerate(rootfs.overlays)
        for path, _ in rootfs.files
    ]
    return [(path, place) for path, place in found if place is not None]


def _write(path: str, text: str) -> None:
    """Without a file object, which asks the kernel four things more; this is in the way of every start."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    left = memoryview(text.encode())
    try:
        while left:
            left = left[os.write(fd, left) :]
    finally:
        os.close(fd)


def _make_skeleton(entries: tuple[tuple[str, int | str], ...]) -> None:
    for path, what in entries:
        if isinstance(what, str):
            os.symlink(what, f"root{path}")
        else:
            os.mkdir(f"root{path}")
            os.chmod(f"root{path}", what)


def _mount_overlay(
    number: int, overlay: Overlay, clones: list[int], files: tuple[tuple[str, str], ...]
) -> None:  # fmt: skip
    """Layers are named by short links, so that neither the option string's page nor its separators limit them."""
    names = []
    for position, layer in enumerate(overlay.layers):
        name = f"{number}.{position}"
        if clones:
            os.mkdir(name)
            fd = clones.pop(0)
            syscalls.move_mount(fd, name, flags=c.MOVE_MOUNT_F_EMPTY_PATH)
        else:
            os.symlink(layer, name)
        names.append(name)
    upper, work = f"{number}.upper", f"{number}.work"
    os.mkdir(upper)
    os.mkdir(work)
    if overlay.alike:
        state = os.stat(names[-1])
        os.chown(upper, state.st_uid, state.st_gid)
        os.chmod(upper, stat.S_IMODE(state.st_mode))
    _write_files(upper, overlay.target, files)
    lower = ":".join(reversed(names))
    target = "root" + overlay.target.rstrip("/")
    try:
        syscalls.mount("overlay", target, "overlay", c.MS_NODEV,
                       f"lowerdir={lower},upperdir={upper},workdir={work},userxattr")  # fmt: skip
    except KernelError as error:
        raise _explain_overlay(error, overlay) from None


def _explain_overlay(error: KernelError, overlay: Overlay) -> Exception:
    causes = {
        errno.ENOENT: ("a layer is missing on disk", "pull or load the image again"),
        errno.ENODEV: ("the kernel has no overlayfs", "load the module `overlay`"),
        errno.EPERM: ("the kernel does not allow overlayfs in a user namespace", "use Linux 5.11 or newer"),
        errno.ELOOP: ("the layers overlap each other", "keep the layers outside the directory that is mounted"),
        errno.EINVAL: (
            "overlayfs cannot stack on one of these file systems (an overlay of an overlay, NFS, a case-folding directory)",
            "keep the image store on ext4, xfs, btrfs or tmpfs (SANDBOX_STORE)",
        ),
    }
    cause, hint = causes.get(error.errno or 0, (None, None))
    return Failure(operation="mount overlay on", object=overlay.target, errno=error.errno, cause=cause, hint=hint,
                   detail=f"layers {', '.join(overlay.layers)}")  # fmt: skip
