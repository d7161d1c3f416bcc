"""A root file system to be spoilt, and the shim that is asked to start things in it."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from programs import SERVANTS, is_holder

from sandbox import cgroups
from sandbox.linux.idmap import is_privileged
from sandbox.shim.client import OwnShim, own_shim

Spec = dict[str, Any]
PATIENCE = 3.0
_SERVANTS = 6  # the monitor, the shim, the nursery, at most three spares
_numbers = itertools.count()


class House:
    """A root file system with busybox, and the shim that is asked to start things in it."""

    def __init__(self, directory: Path) -> None:
        self.shim: OwnShim = own_shim()
        self.outside = directory / "outside"
        self.outside.mkdir(mode=0o755)
        (self.outside / "secret").write_text("of the host\n")
        self.root = directory / "root"
        for name in ("bin", "etc", "dev", "proc", "sys", "tmp"):
            (self.root / name).mkdir(parents=True)
        (self.root / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
        (self.root / "bin/busybox").chmod(0o755)
        (self.root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\napp:x:1:1::/tmp:/bin/sh\n")
        for name in ("sh", "cat", "sleep", "true", "ls"):
            (self.root / "bin" / name).symlink_to("busybox")
        self._giver = cgroups.choose("auto")
        self.shim.directory.note_traces(self._giver.traces(self.shim.directory.id))

    def pod(self, **fields: Any) -> Spec:
        name = f"hostile-{next(_numbers)}"
        grant = self._giver.grant(self.shim, name)
        return {"id": name, "cgroup": grant.to_json() if grant else None, **fields}

    def rootfs(self, **fields: Any) -> Spec:
        return {"layers": [str(self.root)], "idmap": is_privileged(), **fields}

    def run(self, document: Spec, *, timeout: float = 20, **fields: Any) -> tuple[int, str]:
        """Start it, wait for its end and for that of its pod: (return code, what it wrote)."""
        read_end, write_end = os.pipe()
        null = os.open("/dev/null", os.O_RDWR)
        os.fchmod(write_end, 0o666)
        request = {"name": "main", "spec": document, "rootfs": self.rootfs(), "stdio": "fds", "wait": True, "remove": True,
                   **fields}  # fmt: skip
        request["pod"] = fields.get("pod") or self.pod()
        try:
            with self.shim.ask("container.start", request, [null, write_end, write_end]) as conversation:
                os.close(write_end)
                write_end = -1
                conversation.answer(timeout)
                ended, _ = conversation.answer(timeout)
            with os.fdopen(os.dup(read_end), errors="replace") as output:
                return ended["returncode"], output.read()
        finally:
            for fd in (read_end, null, *((write_end,) if write_end >= 0 else ())):
                os.close(fd)

    @contextlib.contextmanager
    def living(self, document: Spec, **fields: Any) -> Iterator[dict[str, str]]:
        """A container that lives: what a request about it names."""
        request = {"name": "main", "spec": document, "rootfs": self.rootfs(), "stdio": "log", **fields}
        request["pod"] = fields.get("pod") or self.pod()
        with self.shim.ask("container.start", request) as conversation:
            conversation.answer(PATIENCE)
        where = {"pod": request["pod"]["id"], "container": "main"}
        try:
            yield where
        finally:
            self.shim.call("pod.remove", pod=where["pod"])

    def execute(self, where: dict[str, str], document: Spec, **fields: Any) -> int | None:
        null = os.open("/dev/null", os.O_RDWR)
        request = {**where, "process": document["process"], "exec": "1", "quiet": True, "lease": True, **fields}
        try:
            with self.shim.ask("container.exec", request, [null] * 3) as conversation:
                returncode: int | None = conversation.answer(PATIENCE)[0]["returncode"]
                return returncode
        finally:
            os.close(null)

    def left(self) -> list[str]:
        """What is still there of what was started."""
        pods = [f"pod {pod['id']}" for pod in self.shim.call("pod.list")["pods"]]
        traces = self._giver.traces(self.shim.directory.id)
        scopes = {name for trace in traces for name in _names(trace) if name.endswith(".scope")}
        found = pods + [f"cgroup {name}" for name in scopes if "spare" not in name]
        family = list(_family(self.shim._monitor.pid))
        strangers = [text for text in family if not text.startswith(SERVANTS)]
        return found + strangers + family[_SERVANTS + len(strangers) :]


def _names(directory: str) -> list[str]:
    return os.listdir(directory) if os.path.isdir(directory) else []


def _family(pid: int) -> Iterator[str]:
    """The name and number of a process and of all that descend from it."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return
    if is_holder(pid):
        return
    yield f"{name} ({pid})"
    for child in children:
        yield from _family(int(child))


def spec(*command: str, **changes: Any) -> Spec:
    """A modest document; ``changes`` replace members of it, by their path with ``__`` between names."""
    document: Spec = {
        "ociVersion": "1.2.0",
        "process": {
            "args": ["/bin/busybox", *command], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs"},
        "mounts": [mount("/proc", "proc"), mount("/dev", "tmpfs", "mode=755"), mount("/sys", "sysfs", "ro")],
        "linux": {"namespaces": namespaces()},
    }  # fmt: skip
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = document
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = value
    return document


def mount(target: str, kind: str, *options: str, source: str | None = None) -> Spec:
    return {"destination": target, "type": kind, "source": source or kind, "options": list(options)}


def bind(source: Path | str, target: str, *options: str) -> Spec:
    return mount(target, "bind", "rbind", *options, source=str(source))


def namespaces(*without: str) -> list[Spec]:
    kinds = ("user", "mount", "pid", "ipc", "uts", "cgroup", "network")
    return [{"type": kind} for kind in kinds if kind not in without]
