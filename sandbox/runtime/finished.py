"""A finished container: all of it is there but the program, which nobody has asked for yet.

Tests start the same container again and again, each time with another command. So when two in a row had the same
:class:`~.plan.Shape`, the next is not only begun (:mod:`.spare`) but finished ahead: its root is mounted and entered, and
its init waits in a :mod:`.stub` for the :mod:`.script` of what is left: the host's name, the user, limits, the program.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from sandbox.linux import constants as c, syscalls
from sandbox.linux.idmap import IdMap

from . import init, process, rootfs as roots, script, stub
from .failure import Failure
from .native import Placement
from .plan import Plan, Shape
from .rootfs import Rootfs
from .spare import Spare, bear, enter, fits_namespaces
from .steps import Bind, Device, Mask, MountFilesystem, ReadOnly, Step, Symlink

#: Nanoseconds. Two changes of a directory that follow each other faster may have the same time: within a tick of the kernel's
#: clock, and on file systems that keep whole seconds (ext4 with small inodes), within those.
_TICK, _COARSE_TICK = 20_000_000, 2_000_000_000
_SECOND = 1_000_000_000


class Order(NamedTuple):
    """A container that is to be finished ahead."""

    shape: Shape
    #: What the directories of its root were like (:func:`layers_state`).
    state: tuple[tuple[int, int, int], ...]


def order(plan: Plan, rootfs: Rootfs) -> Order | None:
    """What to finish for containers like this one; None if that cannot be done ahead."""
    if stub.HERE is None or any(plan.binds) or not fits_namespaces(plan) or not script.is_simple(plan):
        return None
    mounted = [step.target for step in plan.steps if isinstance(step, MountFilesystem)]
    if any(path.startswith(f"{target}/") for path, _ in rootfs.files for target in mounted):
        return None
    if not all(_lies_at_the_top(path, mounted, rootfs) for step in plan.steps if (path := _place_of(step)) is not None):
        return None
    state = layers_state(rootfs)
    return Order(shape_of(plan, rootfs), state) if state is not None else None


def _place_of(step: Step) -> str | None:
    """Where a step does something; None if that is no place in the root."""
    if isinstance(step, (MountFilesystem, Bind)):
        return step.target
    return step.path if isinstance(step, (Device, Symlink, Mask, ReadOnly)) else None


def _lies_at_the_top(path: str, mounted: list[str], rootfs: Rootfs) -> bool:
    """Whether on the way to ``path`` nothing of a layer is looked at but its uppermost directory.

    Of that it is noticed when it changes (:func:`layers_state`). What lies deeper might be replaced while the container waits.
    """
    if any(path.startswith(f"{target}/") for target in mounted):
        return True
    above = [overlay for overlay in rootfs.overlays if path.startswith(overlay.target.rstrip("/") + "/")]
    if not above:
        return True  # in the skeleton
    overlay = max(above, key=lambda overlay: len(overlay.target))
    below = path[len(overlay.target.rstrip("/")) + 1 :]
    return "/" not in below and not any(os.path.islink(f"{layer}/{below}") for layer in overlay.layers)


def shape_of(plan: Plan, rootfs: Rootfs) -> Shape:
    """The shape, whatever is in the files of the root: each pod's name is in some, and they are written at the end."""
    return plan.shape(rootfs._replace(files=tuple((path, "") for path, _ in rootfs.files)))


def layers_state(rootfs: Rootfs) -> tuple[tuple[int, int, int], ...] | None:
    """By which it is noticed that a directory below has changed; None if it has just done so, or cannot be looked at.

    Overlayfs does not want to have them changed while they are mounted. Only what was looked up already would be seen as it
    was, and that is what lies in them directly.
    """
    try:
        return _state([os.stat(layer) for overlay in rootfs.overlays for layer in overlay.layers])
    except OSError:
        return None  # it is explained by who needs it


def _state(found: list[os.stat_result]) -> tuple[tuple[int, int, int], ...] | None:
    now = time.time_ns()
    if any(state.st_ctime_ns > now - (_TICK if state.st_ctime_ns % _SECOND else _COARSE_TICK) for state in found):
        return None
    return tuple((state.st_dev, state.st_ino, state.st_ctime_ns) for state in found)


def fits(order: Order, plan: Plan, rootfs: Rootfs) -> bool:
    """Whether a container that was finished by ``order`` is what ``plan`` would make of ``rootfs``."""
    return (
        not any(plan.binds)
        and fits_namespaces(plan)
        and order.shape == shape_of(plan, rootfs)
        and order.state == layers_state(rootfs)
    )


def make(order: Order, *, idmap: IdMap, userns_fd: int, stub_fd: int, scratch: str, placement: Placement) -> Spare:
    """Start to finish a container; it becomes a child of the caller's parent. Raises :class:`Failure`."""
    clones = roots.prepare(order.shape.rootfs, userns_fd)
    try:
        if clones and _state([os.fstat(fd) for fd in clones]) != order.state:
            raise Failure(operation="finish a container", detail="the directories of its root are no longer what they were")
        return bear(
            lambda channel: _finish(order.shape, clones, scratch, placement.v1_tasks, stub_fd, channel), (), idmap, placement
        )
    finally:
        for fd in clones:
            os.close(fd)


def hand_over(spare: Spare, finished: Order, order: init.Order) -> bool:
    """Send what is left to do. False if that is more than it can do, or it is dead."""
    message = script.write(order, [path for path, _ in roots.places(finished.shape.rootfs)])
    if message is None:
        return False
    try:
        socket.send_fds(spare.launch.channel, [message], order.stdio)
    except OSError:
        return False
    return True


def _finish(
    shape: Shape, clones: list[int], scratch: str, v1_tasks: tuple[int, ...], stub_fd: int, channel: socket.socket
) -> NoReturn:  # fmt: skip
    """From birth to the stub."""
    progress = init.Progress()
    try:
        enter(channel, v1_tasks, scratch, shape.rootfs.size)
        progress.doing = "make the root file system"
        scene = roots.assemble(shape.rootfs, clones, scratch, {})
        files = [os.open(place, os.O_WRONLY | os.O_CLOEXEC) for _, place in roots.places(shape.rootfs)]
        init.enter_root(shape, scene, channel, progress)
        progress.doing = "wait in the stub"
        _arrange((channel.fileno(), process.oom_score_fd(), *files), stub_fd)
    except BaseException as error:  # noqa: BLE001 - it is told to who waits, and the process ends
        init.report(channel, error, progress)


def _arrange(kept: Sequence[int], stub_fd: int) -> NoReturn:
    """Execute the stub with ``kept`` as its descriptors from CHANNEL on, and the places of the standard streams free."""
    after = stub.CHANNEL + len(kept)
    *moved, program = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, after) for fd in (*kept, stub_fd))
    for number, fd in enumerate(moved, stub.CHANNEL):
        os.dup2(fd, number)
    syscalls.close_range(after, flags=c.CLOSE_RANGE_CLOEXEC)
    syscalls.close_range(0, stub.CHANNEL - 1)
    os.execve(program, ["sandbox: spare"], {})
