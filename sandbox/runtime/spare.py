"""A spare: the init of a container that nobody has asked for yet.

Making namespaces and the standard mounts takes most of the time that a container needs to start, and both are nearly always
the same. So while the shim has nothing else to do, it makes the next container's as the last one's were: a process in new
namespaces, ids mapped, loopback up, /dev, /proc and /sys mounted on a stage. When a container is asked for whose plan has
the same steps, the spare gets the rest of the plan and goes on from there; when not, it is of no use and is killed.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, NoReturn

from sandbox.linux import constants as c, netlink, syscalls
from sandbox.linux.idmap import IdMap, write_map

from . import init, rootfs as roots
from .native import Launch, Placement, open_namespaces
from .plan import Plan
from .steps import Device, Mask, MountFilesystem, ReadOnly, Step, Symlink, Sysctl

_NAMESPACES = ("user", "mount", "pid", "network", "ipc", "uts")
_FLAGS = sum(c.NAMESPACES[kind][0] for kind in _NAMESPACES)
_STAGES = ("/dev", "/proc", "/sys")
#: An order must fit one message (SCM_MAX_FD is 253, the socket's buffer about 200 KiB); a larger one starts without a spare.
_MOST_FDS = 200
_MOST_BYTES = 100_000


class Spare(NamedTuple):
    """A waiting init and the steps that it has done."""

    launch: Launch
    template: tuple[Step, ...]

    def fits(self, plan: Plan) -> bool:
        """Whether this is how ``plan`` would begin."""
        ahead = set(self.template)
        return fits_namespaces(plan) and ahead.issubset(plan.steps) and ahead.issuperset(template(plan))

    @property
    def alive(self) -> bool:
        """False if it has failed meanwhile."""
        poller = select.poll()
        poller.register(self.launch.pidfd, select.POLLIN)
        if poller.poll(0):
            return False
        try:
            said = self.launch.channel.recv(64, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        return init.is_gift(said)

    def discard(self) -> None:
        """Kill it; returns when it is gone."""
        syscalls.pidfd_send_signal(self.launch.pidfd, signal.SIGKILL)
        os.waitpid(self.launch.pid, 0)
        self.launch.channel.close()
        for fd in (self.launch.pidfd, *self.launch.namespaces.values()):
            os.close(fd)


def fits_namespaces(plan: Plan) -> bool:
    """Whether it wants just the namespaces that a spare has."""
    return set(plan.namespaces) == {*_NAMESPACES, "cgroup"} and not any(plan.namespaces.values())


def template(plan: Plan) -> tuple[Step, ...]:
    """The steps of ``plan`` that need to know nothing of its root or its cgroup."""
    return _template(plan.steps)


@lru_cache(maxsize=16)
def _template(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Asked for twice at each start, and nearly always the same."""
    mounted = {step.target for step in steps if isinstance(step, MountFilesystem)}
    # What has no mount of its own is a directory of the root, and cannot be moved there.
    stages = tuple(stage for stage in _STAGES if stage in mounted)
    return tuple(step for step in steps if _can_be_staged(step, stages))


def _can_be_staged(step: Step, stages: tuple[str, ...]) -> bool:
    if isinstance(step, Sysctl):
        return "/proc" in stages
    if isinstance(step, MountFilesystem):
        return _below(step.target, stages)
    return isinstance(step, (Device, Symlink, ReadOnly, Mask)) and _below(step.path, stages)


def _below(path: str, stages: tuple[str, ...]) -> bool:
    return path.startswith(tuple(f"{stage}/" for stage in stages)) or path in stages


def make(steps: tuple[Step, ...], *, idmap: IdMap, scratch: str, placement: Placement) -> Spare:
    """Start a spare that does ``steps``; it becomes a child of the caller's parent."""
    return bear(lambda channel: _wait(steps, scratch, placement.v1_tasks, channel), steps, idmap, placement)


def bear(
    life: Callable[[socket.socket], NoReturn], steps: tuple[Step, ...], idmap: IdMap, placement: Placement
) -> Spare:  # fmt: skip
    """Start a process in new namespaces that waits for its ids to be mapped and then does ``steps``, or all: ``life``."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        pid, pidfd = syscalls.clone3(_FLAGS | c.CLONE_PARENT, 0, placement.cgroup_fd)
        if pid == 0:
            ours.close()
            life(theirs)
    write_map(pid, idmap)
    spare = Spare(Launch(pid, pidfd, ours, open_namespaces(pid, _NAMESPACES)), steps)
    ours.send(b"go")
    return spare


def hand_over(spare: Spare, order: init.Order) -> bool:
    """Tell a spare what it is to become. False if the order is too large for a message, or the spare is dead."""
    fds = [*order.stdio, *order.v1_tasks, *order.layers, *order.prepared.values()]
    counts = (len(order.stdio), len(order.v1_tasks), len(order.layers), list(order.prepared))
    message = pickle.dumps((order._replace(stdio=(), v1_tasks=(), layers=[], prepared={}), counts))
    if len(fds) > _MOST_FDS or len(message) > _MOST_BYTES:
        return False
    try:
        socket.send_fds(spare.launch.channel, [message], fds)
    except OSError:
        return False
    return True


def _wait(steps: tuple[Step, ...], scratch: str, v1_tasks: tuple[int, ...], channel: socket.socket) -> NoReturn:
    """The spare's life: prepare, wait for the order, become the container's init."""
    progress = init.Progress()
    try:
        enter(channel, v1_tasks, scratch, None)
        scene = roots.stage(scratch)
        for step in steps:
            progress.doing = step.describe()
            step.execute(scene)
        progress.doing = "wait for the order"
        order = _receive(channel)
        init.begin(order.stdio, order.v1_tasks)
        if order.rootfs.size:
            syscalls.mount(None, scratch, None, c.MS_REMOUNT | c.MS_NODEV, f"size={order.rootfs.size}")
        init.finish(order, channel, progress, frozenset(steps))
    except BaseException as error:  # noqa: BLE001 - it is told to who waits, and the process ends
        init.report(channel, error, progress)


def enter(channel: socket.socket, v1_tasks: tuple[int, ...], scratch: str, size: int | None) -> None:
    """From birth to a scratch tmpfs in namespaces of one's own."""
    init.begin((), v1_tasks)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # the nursery ignores it
    init.await_go(channel)
    init.own_identity()
    netlink.loopback_up()
    syscalls.unshare(c.CLONE_NEWCGROUP)
    syscalls.mount(None, "/", None, c.MS_PRIVATE | c.MS_REC)
    roots.mount_scratch(scratch, size)


def _receive(channel: socket.socket) -> init.Order:
    message, fds, _, _ = socket.recv_fds(channel, _MOST_BYTES, _MOST_FDS)
    if not message:
        os._exit(0)
    order, (streams, tasks, layers, targets) = pickle.loads(message)  # noqa: S301 - from the shim, over a socketpair
    first = streams + tasks
    prepared = dict(zip(targets, fds[first + layers :], strict=True))
    whole: init.Order = order._replace(
        stdio=tuple(fds[:streams]), v1_tasks=tuple(fds[streams:first]), layers=fds[first : first + layers], prepared=prepared
    )
    return whole
