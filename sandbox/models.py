"""What a sandbox is, as values: :class:`Pod`, :class:`Container` and the parts they are made of.

Models are frozen, hashable and picklable. They are checked when they are made: a bad value is a
:class:`~sandbox.errors.ModelError` that names class, field and value. They do nothing: no file is opened and
no image looked up. Change one with :func:`attrs.evolve`; :mod:`sandbox.pods` brings them to life.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from sandbox import _units as u, _validators as v
from sandbox._files import parse_env_file, read_env_file, read_files
from sandbox._limits import IoLimit, Resources, Security
from sandbox._mounts import Mount, Volume, mounts as _mounts, volumes as _volumes
from sandbox._units import Percent, signal_number
from sandbox._validators import FrozenDict, model_error
from sandbox.errors import ModelError

__all__ = [
    "Container",
    "FrozenDict",
    "IoLimit",
    "Mount",
    "Percent",
    "Pod",
    "Resources",
    "Security",
    "Volume",
    "as_pod",
    "parse_env_file",
    "read_env_file",
    "read_files",
    "signal_number",
]

_HOOKS = frozenset({
    "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop",
})  # fmt: skip


def _image(value: Any) -> Any:
    """A reference, or an image that is made; a path object always stays recognisable as a path."""
    if isinstance(value, str):
        return v.any_path(value)
    if callable(getattr(value, "resolve_image", None)):
        return value
    reference = v.any_path(value)
    return reference if reference.startswith(("/", "./", "../")) else f"./{reference}"


def _resources(value: Resources | Mapping[str, Any]) -> Resources:
    return value if isinstance(value, Resources) else Resources(**_fields("Resources", value))


def _security(value: Security | Mapping[str, Any]) -> Security:
    return value if isinstance(value, Security) else Security(**_fields("Security", value))


def _fields(class_name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"expected {class_name}(...) or a mapping of its fields")
    return value


def _pull(value: str) -> str:
    return v.choice(value, "always", "missing", "never")


def _restart(value: str) -> str:
    policy, colon, count = v.text(value).partition(":")
    if policy not in {"no", "on-failure", "always"} or (colon and policy != "on-failure"):
        raise ValueError("expected 'no', 'always', 'on-failure' or 'on-failure:3'")
    return f"on-failure:{u.parse_int(count, 1, 1_000_000)}" if colon else policy


def _network(value: str) -> str:
    return v.choice(value, "private", "host")


def _umask(value: str | int) -> int:
    return u.parse_umask(value)


def _oom_score_adj(value: str | int) -> int:
    return u.parse_int(value, -1000, 1000)


def _positive_seconds(value: float) -> float:
    if u.parse_seconds(value) == 0:
        raise ValueError("must be more than 0 seconds")
    return float(value)


def _ready(value: Any) -> Any:
    """A probe is anything callable or with a ``wait``; probes live in a module of their own."""
    if not callable(value) and not callable(getattr(value, "wait", None)):
        raise TypeError("expected a probe such as Port(5432), or a callable")
    if isinstance(value, type):  # to call it would make one, which counts as true
        raise TypeError(f"{value.__name__} is a class; expected one of its instances, {value.__name__}(…)")
    return value


def _hooks(value: Any) -> FrozenDict[str, Any]:
    if not isinstance(value, Mapping) or not all(
        isinstance(hooks, (list, tuple)) for hooks in value.values()
    ):
        raise TypeError("expected a mapping of hook name to a list of hooks, as in the OCI runtime spec")
    if unknown := sorted(set(value) - _HOOKS):
        raise ValueError(f"there is no hook {unknown[0]!r}; known: {', '.join(sorted(_HOOKS))}")
    for hook in (hook for hooks in value.values() for hook in hooks):
        if not str(hook.get("path", "")).startswith("/"):
            raise ValueError("the path of a hook must be absolute")
    frozen: FrozenDict[str, Any] = v.freeze(value)
    return frozen


def _devices(value: Iterable[str]) -> tuple[str, ...]:
    return tuple(_device(item) for item in v.texts(value))


def _device(value: str) -> str:
    """``/dev/fuse`` or docker's ``/dev/on-host:/dev/inside[:rwm]``, in its long form without the mode."""
    source, _, rest = value.partition(":")
    target, _, access = rest.partition(":")
    if not set(access) <= set("rwm"):
        raise ValueError(f"{access!r} is not an access to a device; use letters of 'rwm'")
    paths = [v.absolute(source), v.absolute(target or source)]
    if not all(path.startswith("/dev/") for path in paths):
        raise ValueError("a device is in /dev, on the host and in the container")
    return ":".join(paths)


@attrs.frozen(repr=False, field_transformer=v.named_errors)
class Container:
    """One command with its file system, limits and rights. Several of them may share a :class:`Pod`.

    >>> Container("db", image="postgres:16", env={"PGDATA": "/data"}, resources=Resources(memory="256M"))
    Container(name='db', image='postgres:16', env={'PGDATA': '/data'}, resources=Resources(memory=268435456))
    """

    #: Its name in the pod: letters, digits, ``-`` and ``_``, at most 63.
    name: str = attrs.field(default="main", converter=v.name)
    #: What its root file system is made of: ``"host"``, ``"dir:PATH"``, ``"oci:PATH"``, ``"redis:7"``, ``"build:./api"`` …,
    #: or something that makes it: :class:`sandbox.Image`, :class:`sandbox.Prepared`.
    image: Any = attrs.field(default="host", kw_only=True, converter=_image)
    #: When a registry is asked for the image: ``"always"``, ``"missing"`` (if it is not in the store), ``"never"``.
    #: ``None``: as :class:`sandbox.pods.Options` have it.
    pull: str | None = attrs.field(default=None, kw_only=True, converter=attrs.converters.optional(_pull))
    #: The command, or the arguments of ``entrypoint``. ``None``: the image's. A string is split as shells do.
    command: tuple[str, ...] | None = attrs.field(
        default=None, kw_only=True, converter=attrs.converters.optional(v.words)
    )
    #: What runs ``command``. ``None``: the image's. ``[]``: nothing. If given, the image's command is unused.
    entrypoint: tuple[str, ...] | None = attrs.field(
        default=None, kw_only=True, converter=attrs.converters.optional(v.words)
    )
    #: Environment variables on top of the image's.
    env: FrozenDict[str, str] = attrs.field(default=FrozenDict(), kw_only=True, converter=v.environment)
    #: Files of ``KEY=value`` lines on the host, as ``docker run --env-file`` takes them; ``env`` wins.
    env_files: tuple[str, ...] = attrs.field(default=(), kw_only=True, converter=v.host_paths)
    #: Where the command starts. ``None``: where the image says, else ``/``.
    working_dir: str | None = attrs.field(
        default=None, kw_only=True, converter=attrs.converters.optional(v.absolute)
    )
    #: Who runs the command: ``1000``, ``"name"``, ``"1000:100"``, ``"name:group"``. ``None``: the image's.
    user: str | None = attrs.field(default=None, kw_only=True, converter=attrs.converters.optional(v.user))
    #: Supplementary groups in addition, by name or number.
    groups: tuple[str, ...] = attrs.field(default=(), kw_only=True, converter=v.groups)
    #: Its host name; only for a container that is alone in its pod. ``None``: the pod's.
    hostname: str | None = attrs.field(
        default=None, kw_only=True, converter=attrs.converters.optional(v.hostname)
    )
    #: What else appears in its file system: :class:`Mount`, ``"source:target:ro"`` or ``(source, target)``.
    mounts: tuple[Mount, ...] = attrs.field(default=(), kw_only=True, converter=_mounts)
    #: What it may take from the host; the pod may have limits of its own above this.
    resources: Resources = attrs.field(default=Resources(), kw_only=True, converter=_resources)
    #: What its programs may do.
    security: Security = attrs.field(default=Security(), kw_only=True, converter=_security)
    #: The signal that asks it to stop. ``None``: the image's, else SIGTERM.
    stop_signal: str | None = attrs.field(
        default=None, kw_only=True, converter=attrs.converters.optional(u.parse_signal)
    )
    #: Seconds from the stop signal to SIGKILL.
    stop_timeout: float = attrs.field(default=10.0, kw_only=True, converter=u.parse_seconds)
    #: When it is started again: ``"no"``, ``"on-failure"``, ``"on-failure:3"`` (three times), ``"always"``.
    restart: str = attrs.field(default="no", kw_only=True, converter=_restart)
    #: Free-form pairs for whoever looks at running pods.
    labels: FrozenDict[str, str] = attrs.field(default=FrozenDict(), kw_only=True, converter=v.labels)
    #: Annotations of the OCI runtime spec.
    annotations: FrozenDict[str, str] = attrs.field(default=FrozenDict(), kw_only=True, converter=v.labels)
    #: Limits of setrlimit(2): ``{"nofile": 1024}``, ``(soft, hard)`` or ``"1024:2048"``; -1 for none.
    ulimits: FrozenDict[str, tuple[int, int]] = attrs.field(
        default=FrozenDict(), kw_only=True, converter=v.ulimits
    )
    #: Kernel parameters of the pod's namespaces, set before the command starts.
    sysctls: FrozenDict[str, str] = attrs.field(default=FrozenDict(), kw_only=True, converter=v.sysctls)
    #: More lines for /etc/hosts: name → address.
    extra_hosts: FrozenDict[str, str] = attrs.field(default=FrozenDict(), kw_only=True, converter=v.hosts)
    #: Its network, ``"private"`` or ``"host"``; only for a container that is alone in its pod. ``None``: the pod's.
    network: str | None = attrs.field(
        default=None, kw_only=True, converter=attrs.converters.optional(_network)
    )
    #: Run a small PID 1 that reaps orphans and passes signals on; for commands that are no good parents.
    init: bool = attrs.field(default=False, kw_only=True, converter=v.flag)
    #: Give the command a terminal.
    tty: bool = attrs.field(default=False, kw_only=True, converter=v.flag)
    #: Containers that must be ready before this one starts.
    after: tuple[str, ...] = attrs.field(default=(), kw_only=True, converter=v.names)
    #: When it counts as ready: a probe (``Port(5432)``), or a callable. ``None``: once it runs.
    ready: Any = attrs.field(default=None, kw_only=True, converter=attrs.converters.optional(_ready))
    #: Seconds it may take to become ready.
    ready_timeout: float = attrs.field(default=60.0, kw_only=True, converter=_positive_seconds)
    #: The file mode creation mask its command starts with. ``None``: 0o022.
    umask: int | None = attrs.field(default=None, kw_only=True, converter=attrs.converters.optional(_umask))
    #: How readily the kernel kills it when memory is short, -1000 to 1000 (proc_pid_oom_score_adj(5)).
    oom_score_adj: int | None = attrs.field(
        default=None, kw_only=True, converter=attrs.converters.optional(_oom_score_adj)
    )
    #: Bytes of output kept per stream; older lines go first.
    log_size: int = attrs.field(default=1 << 20, kw_only=True, converter=u.parse_size)
    #: Hooks of the OCI runtime spec, passed through as they are. The engines crun and runc run those before the start, and
    #: what they run sees the host read-only.
    hooks: FrozenDict[str, Any] | None = attrs.field(
        default=None, kw_only=True, converter=attrs.converters.optional(_hooks)
    )
    #: Device nodes of the host: ``"/dev/fuse"`` or ``"/dev/on-host:/dev/inside"``.
    devices: tuple[str, ...] = attrs.field(default=(), kw_only=True, converter=_devices)
    #: Give the command a NOTIFY_SOCKET (sd_notify(3)), also when readiness does not depend on it.
    notify: bool = attrs.field(default=False, kw_only=True, converter=v.flag)

    __repr__ = v.short_repr

    def __attrs_post_init__(self) -> None:
        if self.command is not None and self.command[:1] == ("",):
            raise model_error(self, "command", self.command, "the program has no name")
        if self.name in self.after:
            raise model_error(self, "after", self.after, "a container cannot wait for itself")
        net = [key for key in self.sysctls if key.startswith("net.")]
        if net and self.network == "host":
            raise model_error(self, "sysctls", net[0], "would change the host, whose network this shares")

    @property
    def restart_limit(self) -> int | None:
        """How often it may be started again: 0 for never, ``None`` for no bound."""
        policy, _, count = self.restart.partition(":")
        return 0 if policy == "no" else int(count) if count else None


def _containers(value: Container | Iterable[Container]) -> tuple[Container, ...]:
    if isinstance(value, (str, Mapping)):
        raise TypeError(f"expected containers, got {_kind_of(value)}")
    found = (value,) if isinstance(value, Container) else tuple(value)
    for item in found:
        if not isinstance(item, Container):
            raise TypeError(f"expected containers, got {_kind_of(item)}")
    if not found:
        raise ValueError("a pod needs at least one container")
    return found


@attrs.frozen(repr=False, field_transformer=v.named_errors)
class Pod:
    """Containers that share a network, IPC, a host name and volumes; started and gone together.

    >>> Pod([Container("db"), Container("api", after=["db"], mounts=["data:/data"])], volumes=["data"]).names
    ('db', 'api')
    """

    #: Its containers; names are unique.
    containers: tuple[Container, ...] = attrs.field(converter=_containers)
    #: Its name, for people; also its host name unless that is given. ``None``: one is made up when it starts.
    name: str | None = attrs.field(default=None, kw_only=True, converter=attrs.converters.optional(v.name))
    #: Its host name, at most 64 characters. ``None``: its name.
    hostname: str | None = attrs.field(
        default=None, kw_only=True, converter=attrs.converters.optional(v.hostname)
    )
    #: Directories its containers can mount: names, or :class:`Volume` for one with a size.
    volumes: tuple[Volume, ...] = attrs.field(default=(), kw_only=True, converter=_volumes)
    #: What all its containers together may take from the host.
    resources: Resources = attrs.field(default=Resources(), kw_only=True, converter=_resources)
    #: ``"private"``: loopback of its own and nothing else. ``"host"``: the host's network, without isolation.
    network: str = attrs.field(default="private", kw_only=True, converter=_network)
    #: More lines for /etc/hosts of all its containers: name → address.
    extra_hosts: FrozenDict[str, str] = attrs.field(default=FrozenDict(), kw_only=True, converter=v.hosts)
    #: Kernel parameters of its namespaces.
    sysctls: FrozenDict[str, str] = attrs.field(default=FrozenDict(), kw_only=True, converter=v.sysctls)
    #: Free-form pairs for whoever looks at running pods.
    labels: FrozenDict[str, str] = attrs.field(default=FrozenDict(), kw_only=True, converter=v.labels)

    __repr__ = v.short_repr

    def __attrs_post_init__(self) -> None:
        self._check_names()
        self._check_order()
        self._check_volumes()
        self._check_sysctls()
        self._check_shared()

    def _check_names(self) -> None:
        names = self.names
        for name in names:
            if names.count(name) > 1:
                raise model_error(self, "containers", name, "two containers have this name")

    def _check_order(self) -> None:
        waits_for = {container.name: container.after for container in self.containers}
        if not any(waits_for.values()):
            return
        for container in self.containers:
            for name in container.after:
                if name not in self.names:
                    hint = f"the containers are {', '.join(self.names)}"
                    raise ModelError(
                        f"container {container.name!r} waits for one that does not exist",
                        class_name="Container", field="after", value=name, hint=hint,
                    )  # fmt: skip
        if cycle := _cycle(waits_for):
            raise model_error(
                self, "containers", self.names, f"they wait for each other: {' → '.join(cycle)}"
            )

    def _check_volumes(self) -> None:
        known = {volume.name for volume in self.volumes}
        for container in self.containers:
            for mount in container.mounts:
                if mount.type == "volume" and mount.source not in known:
                    raise ModelError(
                        f"container {container.name!r} mounts a volume that the pod does not have",
                        class_name="Mount", field="source", value=mount.source,
                        hint=f"add volumes=[{mount.source!r}] to the pod (a directory is './{mount.source}')",
                    )  # fmt: skip

    def _check_sysctls(self) -> None:
        if self.network != "host":
            return
        owners: list[Pod | Container] = [self, *(c for c in self.containers if c.network is None)]
        for owner, key in ((item, key) for item in owners for key in item.sysctls):
            if key.startswith("net."):
                detail = "would change the host, whose network this shares"
                raise model_error(owner, "sysctls", key, detail)

    def _check_shared(self) -> None:
        """What lies in namespaces that containers share cannot differ between them (kernel: one per namespace)."""
        if len(self.containers) == 1:
            return
        for container in self.containers:
            shared = {"network": self.network, "hostname": self.hostname or self.name}
            for field, common in shared.items():
                value = getattr(container, field)
                if value not in {None, common}:
                    hint = f"set it on the pod: Pod(..., {field}={value!r})"
                    raise model_error(container, field, value, "containers of a pod share it", hint)
        settings: dict[str, str] = dict(self.sysctls)
        for container in self.containers:
            for key, value in container.sysctls.items():
                if settings.setdefault(key, value) != value:
                    detail = f"containers of a pod share it, and another one sets it to {settings[key]!r}"
                    raise model_error(container, "sysctls", {key: value}, detail)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its containers."""
        return tuple(container.name for container in self.containers)

    def __getitem__(self, name: str) -> Container:
        """The container of this name; :class:`KeyError` if there is none."""
        for container in self.containers:
            if container.name == name:
                return container
        raise KeyError(name)


def _cycle(waits_for: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """A cycle as ``(a, b, a)``, each waiting for the next; or nothing."""
    import graphlib

    try:
        graphlib.TopologicalSorter(waits_for).prepare()
    except graphlib.CycleError as error:
        return tuple(reversed(error.args[1]))
    return ()


def _names_of(model: type) -> frozenset[str]:
    return frozenset(field.name for field in attrs.fields(model))


_CONTAINER, _POD = _names_of(Container), _names_of(Pod) - {"containers"}
_RESOURCES, _SECURITY = _names_of(Resources), _names_of(Security)
_KNOWN = _CONTAINER | _POD | _RESOURCES | _SECURITY
#: With one container these are the pod's: a container's own value would only shadow it.
_OF_THE_POD = frozenset({"hostname", "network", "volumes"})


def as_pod(subject: Pod | Container | Iterable[Container] | None = None, /, **changes: Any) -> Pod:
    """A pod from whatever describes one; the arguments of ``sandbox.start`` and of the pytest marker.

    ``subject`` is a pod, a container, or several; without one, ``changes`` describe a container. On top of a
    subject they override its fields. Besides the fields of the models themselves, those of :class:`Resources`
    and :class:`Security` may be given directly. Of a pod (or several containers) only its own fields, and its
    limits, can be changed.

    >>> as_pod(image="redis:7", memory="64M", cap_add=["net_admin"]).containers[0].resources
    Resources(memory=67108864)
    """
    _check_known(changes)
    if subject is None or isinstance(subject, Container):
        return _pod_of_one(subject, changes)
    if not isinstance(subject, Pod):
        _check_subject(subject)
    pod = subject if isinstance(subject, Pod) else Pod(subject)
    return _changed_pod(pod, changes) if changes else pod


def _check_subject(subject: object) -> None:
    """What people give instead of a subject: the image, as to podman; the fields, as to JSON."""
    hint = None
    if isinstance(subject, str):
        hint = f"did you mean image={subject!r}?"
    elif isinstance(subject, Mapping):
        hint = "did you mean **fields? A pod is made of named arguments: Container(image=…, command=…)"
    elif isinstance(subject, Iterable):
        return
    raise ModelError(
        "expected a Pod, a Container or several", class_name="as_pod", field="subject", value=subject, hint=hint
    )


def _kind_of(value: object) -> str:
    return f"{value!r}" + (f": did you mean Container(image={value!r})?" if isinstance(value, str) else "")


def _check_known(changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if name not in _KNOWN:
            import difflib

            close = difflib.get_close_matches(name, sorted(_KNOWN), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(_KNOWN))}"
            raise ModelError("there is no such field", class_name="Pod", field=name, value=value, hint=hint)


def _pod_of_one(container: Container | None, changes: dict[str, Any]) -> Pod:
    if _OF_THE_POD.isdisjoint(changes):
        return Pod([_with_parts(container, changes)])
    own = {name: value for name, value in changes.items() if name not in _OF_THE_POD}
    pod = {name: value for name, value in changes.items() if name in _OF_THE_POD}
    shadows: dict[str, Any] = {name: None for name in pod if name in _CONTAINER}
    changed = _with_parts(container, own)
    return Pod([attrs.evolve(changed, **shadows) if shadows else changed], **pod)


def _with_parts(container: Container | None, changes: dict[str, Any]) -> Container:
    """The container (or a new one) with changes to its own fields, its resources and its security.

    Each start of a pod comes through here, and checking a container takes a while: it is not made more often than needed.
    """
    own = {name: value for name, value in changes.items() if name in _CONTAINER}
    base = Container(**own) if container is None else attrs.evolve(container, **own) if own else container
    if len(own) == len(changes):
        return base
    parts = {
        part: attrs.evolve(getattr(base, part), **values)
        for part, names in (("resources", _RESOURCES), ("security", _SECURITY))
        if (values := {name: value for name, value in changes.items() if name in names})
    }
    return attrs.evolve(base, **parts)


def _changed_pod(pod: Pod, changes: dict[str, Any]) -> Pod:
    for name, value in changes.items():
        if name not in _POD | _RESOURCES:
            raise ModelError(
                "belongs to a container, not to the pod",
                class_name="Pod", field=name, value=value, hint="give it to the container it is for",
            )  # fmt: skip
    changed = attrs.evolve(pod, **{name: value for name, value in changes.items() if name in _POD})
    limits = {name: value for name, value in changes.items() if name in _RESOURCES}
    return attrs.evolve(changed, resources=attrs.evolve(changed.resources, **limits))
