"""From models to requests: what the shim is asked in order to start a pod and its containers."""

from __future__ import annotations

import atexit
import base64
import contextlib
import functools
import os
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import attrs

from sandbox import _host, _seccomp, cgroups, images, oci
from sandbox.errors import LimitNotEnforceable, SandboxError
from sandbox.images import Image
from sandbox.linux.users import UserDatabase
from sandbox.models import Container, Pod, read_files
from sandbox.oci.limits import amount
from sandbox.probes import wants_notify
from sandbox.shim.client import OwnShim, shutdown

_DEFAULT_PROCESSES = 4096
#: Limits of a model and who enforces them.
_CONTROLLERS = (
    ("memory", "memory"), ("swap", "memory"), ("cpus", "cpu"), ("cpu_weight", "cpu"), ("pids", "pids"), ("io", "io"),
    ("hugepages", "hugetlb"),
)  # fmt: skip
#: Members of ``linux.resources`` and who enforces them.
_MEMBERS = {"memory": "memory", "cpu": "cpu", "pids": "pids", "blockIO": "io", "hugepageLimits": "hugetlb"}
#: The volume for /dev/shm; no volume of a model can have a dot in its name.
_SHM = "dev.shm"


@attrs.frozen
class Options:
    """How pods are started, whatever is in them.

    >>> Options(engine="crun").engine
    'crun'
    """

    #: ``native``, ``crun`` or ``runc``.
    engine: str = "native"
    #: Who gives the cgroups: ``auto``, ``systemd``, ``cgroupfs`` or ``none``.
    cgroups: str = "auto"
    #: The systemd manager that gives scopes: ``auto``, ``system``, ``user``, ``private`` or ``off``.
    systemd: str = "auto"
    #: The directory of the image store; None for the user's.
    store: str | None = None
    #: When registries are asked for images of containers that do not say: ``always``, ``missing`` or ``never``.
    pull: str = "missing"
    #: A file sandbox.lock, which says what names of images mean; None for none.
    lock: str | None = None

    @classmethod
    def from_environment(cls) -> Options:
        """``SANDBOX_ENGINE``, ``_CGROUPS``, ``_SYSTEMD``, ``_STORE``, ``_PULL`` and ``_LOCK`` (a path, or ``none``)."""
        given = {name: value for name, variable in _VARIABLES.items() if (value := os.environ.get(variable))}
        if given.get("lock") == "none":
            del given["lock"]
        return cls(**given)


#: Those of the environment that options come from, by field.
_VARIABLES = {field.name: f"SANDBOX_{field.name.upper()}" for field in attrs.fields(Options)}


@attrs.frozen
class Prepared:
    """A container, ready to be asked for."""

    container: Container
    image: Image
    #: The OCI document, as plain values.
    spec: dict[str, Any]
    #: The fields of the request, without the pod and the streams.
    message: dict[str, Any]


class Preparation:
    """One pod on its way: its id, its cgroup, and the requests for its containers."""

    def __init__(self, shim: OwnShim, pod: Pod, options: Options) -> None:
        self.shim = shim
        self.pod = pod
        self.options = options
        self.id = f"{pod.name or 'pod'}-{os.urandom(4).hex()}"
        self._giver = cgroups.choose(options.cgroups, options.systemd)
        self._grant: cgroups.Grant | None = None
        self._resources: dict[str, Any] = {}
        self._declaration = cgroups.Declaration()
        facts = _host.facts(shim.idmap, shim.directory.space)
        self._host = oci.Host(**facts, pod_id=self.id, devices=_host.device_numbers(_devices(pod)))

    @functools.cached_property
    def _able(self) -> frozenset[str]:
        """The controllers that limits can count on."""
        return self._giver.controllers()

    def pod_document(self) -> dict[str, Any]:
        """The pod part of the request. Raises :class:`LimitNotEnforceable`."""
        self._check_limits()
        self.shim.directory.note_traces(self._giver.traces(self.shim.directory.id))
        oci_resources = oci.resources_to_oci(self.pod.resources, self._host)
        resources = oci.to_dict(oci_resources) if oci_resources else {}
        grant = self._giver.grant(self.shim, self.id)
        if grant is not None and "pids" in resources:
            resources["pids"]["limit"] += grant.processes
        self._grant, self._resources = grant, resources
        return {
            "id": self.id,
            "cgroup": grant.to_json() if grant else None,
            "resources": resources,
            "best_effort": self.pod.resources.best_effort,
            "volumes": [{"name": v.name, "size": _size(v.size, self._host)} for v in self.pod.volumes] + self._shared_memory,
            "meta": {**self._meta(), "unit": grant.unit if grant else None},
        }

    def give_back(self) -> None:
        """There is a cgroup, and the shim was not asked for the pod."""
        if self._grant is not None and self._grant.unit is not None:
            with contextlib.suppress(SandboxError):  # it has ended, and what it held with it
                self.shim.call("scope.give_back", v2=self._grant.v2)

    def declare(self, *, brief: bool = False) -> None:
        """Tell who keeps the cgroup what is in it; to be called when the shim has been asked, so that nobody waits for it.

        What cannot be refused, because nothing is limited, is told some milliseconds later, if there is still a pod by then;
        and so is all of it if that may be so short a time (``brief``).
        """
        later = brief or not self._resources
        self._declaration = self._giver.declare(self.shim, self._grant, self._resources, self._description(), later=later)

    @contextlib.contextmanager
    def declared(self) -> Iterator[None]:
        """What is started in a ``with`` block and over at its end is told to who keeps the cgroup if there is time for it."""
        self.declare(brief=True)
        try:
            yield
        except BaseException:
            with contextlib.suppress(SandboxError):
                self.settle(over=True)
            raise
        self.settle(over=True)

    def settle(self, *, over: bool = False) -> None:
        """Wait until who keeps the cgroup has accepted its limits; ``over``: if it was told. Raises what it refused."""
        if over:
            self._declaration.over()
        elif self._resources:
            self._declaration.wait()

    def _description(self) -> str:
        """What systemd shows of it."""
        test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" (")[0]
        return f"pod {self.id} of {test or f'process {os.getpid()}'}"

    @property
    def _shared_memory(self) -> list[dict[str, Any]]:
        """POSIX shared memory is files in /dev/shm (shm_overview(7)), so containers share these as they share IPC."""
        return [{"name": _SHM, "size": 64 << 20, "mode": 0o1777}] if len(self.pod.containers) > 1 else []

    def _share_memory(self, spec: dict[str, Any]) -> None:
        for mount in spec["mounts"] if self._shared_memory else ():
            if mount["destination"] == "/dev/shm" and mount["source"] == "shm":
                options = ["rbind", "rw", "nosuid", "noexec", "nodev", "rprivate"]
                mount.update(type="bind", source=self._host.volume_path(_SHM), options=options)

    def _meta(self) -> dict[str, Any]:
        return {
            "name": self.pod.name, "labels": dict(self.pod.labels), "client": os.getpid(),
            "test": os.environ.get("PYTEST_CURRENT_TEST"), "images": {c.name: str(c.image) for c in self.pod.containers},
            "cgroups": self._giver.name, "engine": self.options.engine,
        }  # fmt: skip

    def _check_limits(self) -> None:
        """A limit that nobody here can keep is refused before anything exists."""
        owners: list[Pod | Container] = [self.pod, *self.pod.containers]
        for owner in owners:
            for field, controller in _CONTROLLERS:
                value = getattr(owner.resources, field)
                if value and value != -1 and controller not in self._able:
                    self._refuse_limit(field, controller, value, owner)

    def _without_unenforceable(self, container: Container, spec: dict[str, Any]) -> None:
        """Leave out of the document what was warned about: an engine would refuse it."""
        if container.resources.best_effort:
            for member, controller in _MEMBERS.items():
                if controller not in self._able:
                    spec["linux"].get("resources", {}).pop(member, None)

    def _refuse_limit(self, field: str, controller: str, value: Any, owner: Pod | Container) -> None:
        reason = self._giver.why_not()
        error = LimitNotEnforceable(
            operation="limit", object=f"{field}={value}", controller=controller, limit=f"{field}={value}",
            detail=f"the cgroup controller `{controller}` is not available here",
            cause=reason or f"cgroups come from `{self._giver.name}`, which has "
                            f"{', '.join(sorted(self._able)) or 'no controllers'}",
            hint="run as root or with a delegated cgroup (see `sandbox doctor`), or pass best_effort=True to go without",
            container=owner.name if isinstance(owner, Container) else None,
        )  # fmt: skip
        if not owner.resources.best_effort:
            raise error
        kind = "container" if isinstance(owner, Container) else "pod"
        whose = f"{kind} `{owner.name}`" if owner.name else "the pod"
        warnings.warn(f"{whose}: {field}={value} is not enforced: {error.detail}", stacklevel=_callers_level())

    def container(self, container: Container) -> Prepared:
        """Resolve the image and translate. Raises :class:`ImageError`, :class:`UserNotFound` and others."""
        image = self._image(container)
        container = read_files(container)
        for mount in container.mounts:
            if mount.create and mount.source:
                os.makedirs(mount.source, exist_ok=True)
        notify = f"sandbox/{self.id}/{container.name}" if container.notify or wants_notify(container.ready) else None
        spec, profile = self._document(container, image)
        self._share_memory(spec)
        self._without_unenforceable(container, spec)
        if "pids" not in self._able:
            self._default_pids_as_rlimit(container, spec)
        if notify:
            spec["process"]["env"].append(f"NOTIFY_SOCKET=@{notify}")
        message: dict[str, Any] = {
            "name": container.name, "spec": spec, "rootfs": self._rootfs(container, image), "init": container.init,
            "engine": self.options.engine, "restart": container.restart, "log_size": container.log_size, "notify": notify,
        }  # fmt: skip
        if profile is not None:
            self._add_filter(message, profile)
        return Prepared(container, image, spec, message)

    def _document(self, container: Container, image: Image) -> tuple[dict[str, Any], _seccomp.Compiled | None]:
        """The spec as plain values. Its seccomp profile, which is most of it, is taken from what was made before."""
        spec = oci.to_spec(container, self.pod, image.config, self._host, users=_Users(image), seccomp=False)
        document, profile = oci.to_dict(spec), oci.seccomp_of(container, self._host)
        if profile is None:
            return document, None
        compiled = _seccomp.compiled(profile)
        document["linux"]["seccomp"] = compiled.document
        return document, compiled

    def _image(self, container: Container) -> Image:
        if isinstance(container.image, str):
            options = self.options
            pull = container.pull or options.pull
            return images.resolve(container.image, store=options.store, pull=pull, lock=options.lock or "none")
        made: Image = container.image.resolve_image(self.options)
        return made

    def _default_pids_as_rlimit(self, container: Container, spec: dict[str, Any]) -> None:
        """Nobody asked for the default limit on processes, so another way to keep it will do.

        RLIMIT_NPROC counts the processes of each user of the pod's user namespace (getrlimit(2)).
        """
        if container.resources.pids is None and self.pod.resources.pids is None:
            spec["linux"].get("resources", {}).pop("pids", None)
            if "nproc" not in container.ulimits:
                row = {"type": "RLIMIT_NPROC", "soft": _DEFAULT_PROCESSES, "hard": _DEFAULT_PROCESSES}
                spec["process"].setdefault("rlimits", []).append(row)

    def _rootfs(self, container: Container, image: Image) -> dict[str, Any]:
        size = _size(container.resources.ephemeral_storage, self._host)
        files = {} if (container.network or self.pod.network) == "host" else self._network_files(container)
        if image.kind == "host":
            return {"kind": "host", "layers": [str(layer) for layer in image.layers], "size": size, "files": files}
        return {"layers": [str(layer) for layer in image.layers], "idmap": image.id_mapped, "size": size, "files": files}

    def _network_files(self, container: Container) -> dict[str, str]:
        """The containers of a pod share localhost, so each is reachable there by name."""
        hostname = container.hostname or self.pod.hostname or self.pod.name or self.id
        names = dict.fromkeys((hostname, *(c.name for c in self.pod.containers)))
        lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost", *(f"127.0.0.1 {name}" for name in names)]
        lines += [f"{ip} {name}" for name, ip in {**self.pod.extra_hosts, **container.extra_hosts}.items()]
        return {"/etc/hosts": "\n".join(lines) + "\n", "/etc/hostname": f"{hostname}\n", "/etc/resolv.conf": ""}

    def _add_filter(self, message: dict[str, Any], profile: _seccomp.Compiled) -> None:
        """The profile and its compiled form travel the first time the shim meets them; then the digest is enough."""
        message["seccomp"] = profile.digest
        message["spec"] = {**message["spec"], "linux": {**message["spec"]["linux"]}}
        del message["spec"]["linux"]["seccomp"]
        if profile.digest not in self.shim.known_filters:
            message["seccomp_profile"] = profile.document
            message["seccomp_program"] = base64.b64encode(profile.program).decode()


class _Users:
    """The image's users; read only if someone is looked up."""

    def __init__(self, image: Image) -> None:
        self._image = image

    def lookup(self, user: str) -> Any:
        files = self._image.users
        return _database(files.passwd, files.group).lookup(user)


#: The files are read for each container, and rarely say something new. Few are kept: an image may have a thousand users.
_database = functools.lru_cache(maxsize=4)(UserDatabase)


def _size(value: Any, host: oci.Host) -> int | None:
    return None if value is None else amount(value, host)


def _devices(pod: Pod) -> list[str]:
    paths = [device for c in pod.containers for device in c.resources.io]
    paths += [device.partition(":")[0] for c in pod.containers for device in c.devices]
    return [*paths, *pod.resources.io]


def valid_name(name: str) -> str:
    """``name`` with everything that has no place in a pod's name replaced."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_")[:40] or "pod"


def _callers_level() -> int:
    """The ``stacklevel`` of whoever called the library: a warning about a line in here helps nobody, and is shown once only."""
    level, frame = 0, sys._getframe(1)  # noqa: SLF001 - as warnings itself looks for a caller
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in {"sandbox", "pytest_sandbox"}:
        level, frame = level + 1, frame.f_back
    return level + 1


def start_error(error: SandboxError, container: str) -> SandboxError:
    """Say which container it was about."""
    error.container = error.container or container
    return error


@atexit.register
def _end() -> None:
    """The shim first: what gave its pods their cgroups is needed until then."""
    shutdown()
    cgroups.close()
