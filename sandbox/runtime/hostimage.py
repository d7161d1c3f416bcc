"""The image `host`: the machine's own programs and libraries below a throw-away top.

The host's files are *not* idmapped. To the kernel the container's users are strangers to them, so a container reads what
any unprivileged user of the machine may read and nothing else, whoever started it; that needs no list of secrets.
What strangers cannot do is write into directories of the host, not even through an overlay. So a second layer, made once
per shim, holds the same directories owned by the container's root, and copies of the readable files of /etc.

Only the system's own trees are brought in. Homes, /run, /tmp, /var/log … are empty directories of the container. Where the
container's root is the caller himself, he is no stranger to his own files, so his home is empty too if it lies in such a tree.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from collections.abc import Iterator

from sandbox.linux import constants as c, syscalls
from sandbox.linux.errors import KernelError
from sandbox.linux.idmap import outside_uid
from sandbox.linux.mounts import bind, mount_table

from .rootfs import Overlay, Rootfs

#: Trees of the host that a container sees, with how many levels of directories it can write to.
_TREES = {"/usr": 2, "/etc": 16, "/opt": 1, "/var/lib": 2, "/nix": 1, "/gnu": 1}
#: Top-level names that are links on a merged-/usr system and trees of their own elsewhere.
_PROGRAM_TREES = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_EMPTY: tuple[tuple[str, int], ...] = (
    ("/dev", 0o755), ("/proc", 0o555), ("/sys", 0o555), ("/run", 0o755), ("/run/lock", 0o1777), ("/tmp", 0o1777),
    ("/root", 0o700), ("/home", 0o755), ("/mnt", 0o755), ("/media", 0o755), ("/srv", 0o755),
    ("/var", 0o755), ("/var/cache", 0o755), ("/var/log", 0o755), ("/var/tmp", 0o1777), ("/var/spool", 0o755),
    ("/var/mail", 0o755), ("/var/local", 0o755), ("/var/opt", 0o755),
)  # fmt: skip
#: Of these, those in which prepared files may lie. Nothing else is mounted below them (of /run/lock a copy is kept).
_LEAVES = ("/root", "/home", "/mnt", "/media", "/srv", "/run", "/tmp", "/var/cache", "/var/log", "/var/tmp", "/var/spool",
           "/var/mail", "/var/local", "/var/opt")  # fmt: skip
_LINKS = (("/var/run", "/run"), ("/var/lock", "/run/lock"))
#: Larger files of /etc are left in the lower layer: readable, but not to be changed in place.
_COPY_LIMIT = 256 * 1024


def build(skeleton: str, owner: tuple[int, int]) -> Rootfs:
    """Make the second layer below ``skeleton`` (an empty directory), owned by ``owner``, and describe the root."""
    entries: list[tuple[str, int | str]] = [*_EMPTY, *_LINKS]
    overlays: list[Overlay] = []
    covered = {mount.target for mount in mount_table()}
    for tree, depth in _TREES.items():
        if _is_directory(tree):
            overlays += _overlays(tree, depth, skeleton, owner, covered)
            entries.append((tree, 0o755))
    for tree in _PROGRAM_TREES:
        if os.path.islink(tree):
            entries.append((tree, os.readlink(tree)))
        elif _is_directory(tree):
            overlays += _overlays(tree, 1, skeleton, owner, covered)
            entries.append((tree, 0o755))
    overlays += _empty_homes(skeleton, owner)
    return Rootfs(tuple(overlays), idmap=False, size=None, skeleton=tuple(entries))


def _empty_homes(skeleton: str, owner: tuple[int, int]) -> Iterator[Overlay]:
    """An empty directory for the caller's own home, if it lies in one of the trees, as those of build agents and services do.

    To an ordinary user's container, whose root he is, nothing in there is a stranger's.
    """
    homes = {os.environ.get("HOME", "/")}
    with contextlib.suppress(KeyError):
        homes.add(pwd.getpwuid(outside_uid()).pw_dir)
    for number, home in enumerate(sorted({os.path.realpath(home) for home in homes})):
        inside = any(home.startswith(f"{tree}/") for tree in (*_TREES, *_PROGRAM_TREES))
        if inside and _is_directory(home) and os.stat(home).st_uid == owner[0]:
            empty = f"{skeleton}/home{number}"
            _make_directory(empty, 0o700, owner)
            yield Overlay(home, (empty,), alike=True)


def with_layers(root: Rootfs, layers: tuple[str, ...]) -> Rootfs:
    """The root with prepared layers above the host's files: trees like the root itself, with container ids."""
    overlays = []
    for overlay in root.overlays:
        above = _above(overlay.target, layers)
        overlays.append(overlay._replace(layers=(*overlay.layers, *above), mapped=len(above)))
    leaves = ((target, _above(target, layers)) for target in _LEAVES)
    overlays += [Overlay(target, above, mapped=len(above), alike=True) for target, above in leaves if above]
    return root._replace(overlays=tuple(overlays))


def _above(target: str, layers: tuple[str, ...]) -> tuple[str, ...]:
    """The directories of the layers that have something at ``target``."""
    paths = [layer + target for layer in layers]
    return tuple(path for path in paths if os.path.isdir(path) and not os.path.islink(path) and os.listdir(path))


def _is_directory(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _overlays(
    tree: str, depth: int, skeleton: str, owner: tuple[int, int], covered: set[str]
) -> Iterator[Overlay]:  # fmt: skip
    """The overlay of a tree; of its parts, if other things are mounted in it.

    To a new user namespace what is mounted on a directory is locked, so that nobody looks below it, and overlayfs takes no
    layer with such mounts in it. Docker binds files into /etc, podman directories into /var/lib.
    """
    layer = _layer(tree, depth, skeleton, owner)
    if not _mounts_in(tree, covered):
        yield Overlay(tree, (tree, layer))
        return
    bare = f"{layer}:bare"
    os.mkdir(bare)
    try:
        bind(tree, bare, c.MS_BIND)  # without what is mounted in it
        syscalls.mount(None, bare, None, c.MS_PRIVATE)
    except KernelError:
        os.rmdir(bare)
        yield Overlay(tree, (layer,))
        yield from _parts(tree, layer, covered)
        return
    yield Overlay(tree, (bare, layer))


def _mounts_in(tree: str, covered: set[str]) -> bool:
    return any(target.startswith(f"{tree}/") for target in covered)


def _parts(tree: str, layer: str, covered: set[str]) -> Iterator[Overlay]:
    """Overlays of the directories below ``tree`` that the second layer has, as far as nothing is mounted in them.

    For an ordinary user, who cannot have the tree without what is mounted in it: to him that is locked as well.
    """
    for name in sorted(os.listdir(layer)):
        part, below = f"{tree}/{name}", f"{layer}/{name}"
        if part in covered or not _is_directory(below) or not _is_directory(part):
            continue
        if _mounts_in(part, covered):
            yield from _parts(part, below, covered)
        else:
            yield Overlay(part, (part, below))


def _layer(tree: str, depth: int, skeleton: str, owner: tuple[int, int]) -> str:
    layer = f"{skeleton}/{tree.strip('/').replace('/', '-')}"
    _make_directory(layer, 0o755, owner)
    for directory, entry in _walk(tree, "", depth):
        target = f"{layer}{directory}/{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            _make_directory(target, stat.S_IMODE(entry.stat(follow_symlinks=False).st_mode), owner)
        elif tree == "/etc":
            _copy_file(entry, target, owner)
    return layer


def _walk(tree: str, below: str, depth: int) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """(directory below ``tree``, entry) of directories down to ``depth`` and of regular files, all readable by others."""
    with os.scandir(tree + below) as entries:
        for entry in entries:
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode) and mode & 0o005 == 0o005 and depth:
                yield below, entry
                yield from _walk(tree, f"{below}/{entry.name}", depth - 1)
            elif stat.S_ISREG(mode) and mode & 0o004:
                yield below, entry


def _make_directory(path: str, mode: int, owner: tuple[int, int]) -> None:
    os.mkdir(path)
    os.chown(path, *owner)
    os.chmod(path, mode)


def _copy_file(entry: os.DirEntry[str], target: str, owner: tuple[int, int]) -> None:
    """Copy a file with its mode and times; set-user-ID bits stay behind."""
    with open(entry.path, "rb") as source:
        state = os.fstat(source.fileno())
        data = source.read(_COPY_LIMIT + 1)
    if len(data) > _COPY_LIMIT:
        return
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(fd, data)
        os.fchown(fd, *owner)
        os.fchmod(fd, state.st_mode & 0o777)
        os.utime(fd, ns=(state.st_atime_ns, state.st_mtime_ns))
    finally:
        os.close(fd)
