"""From models to the runtime spec: :func:`to_spec`. Pure: what it must know of image and host comes as arguments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from sandbox.errors import SandboxError, UnsupportedFeature, UserNotFound
from sandbox.oci import converter, mounts as _mounts
from sandbox.oci.host import Host
from sandbox.oci.image import ExecutionConfig, ImageConfig
from sandbox.oci.limits import DEFAULT_PIDS, resources_to_oci
from sandbox.oci.mounts import mapped
from sandbox.oci.runtime import (
    Hooks,
    Linux,
    LinuxCapabilities,
    LinuxNamespace,
    POSIXRlimit,
    Process,
    Root,
    Spec,
    User,
)
from sandbox.oci.seccomp import LinuxSeccomp
from sandbox.oci.seccomp_profile import default_profile

if TYPE_CHECKING:
    from sandbox.models import Container, Pod

__all__ = ["etc_hosts", "resources_to_oci", "seccomp_of", "stop_signal", "to_spec"]

#: The oldest version that has the members we write: crun refuses versions that are newer than itself.
OCI_VERSION = "1.0.2"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_UMASK = 0o022

#: An annotation that tells a reader of the document what the runtime spec has no word for.
ANNOTATION_INIT = "io.pytest-sandbox.init"

_INFINITY = 2**64 - 1
_NAMESPACES = tuple(LinuxNamespace(type=kind) for kind in ("user", "mount", "pid", "ipc", "uts", "cgroup"))
_NETWORK = LinuxNamespace(type="network")
#: Of an image that sets nothing.
_NO_DEFAULTS = ExecutionConfig()


class UserEntry(Protocol):
    """What a user database knows about a user."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def groups(self) -> tuple[int, ...]: ...
    @property
    def home(self) -> str: ...
    @property
    def name(self) -> str: ...


class Users(Protocol):
    """The users and groups of an image."""

    def lookup(self, user: str, /) -> UserEntry:
        """The user ``name``, ``uid``, ``name:group`` or ``uid:gid``; raises LookupError for an unknown name."""


@attrs.frozen
class _Numeric:
    """A user known by number only."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"
    name: str = ""


class _NoUsers:
    """An image without user files: numbers are all there is."""

    def lookup(self, user: str, /) -> _Numeric:
        uid, _, gid = user.partition(":")
        if not uid.isdecimal() or (gid and not gid.isdecimal()):
            raise LookupError("the image has no /etc/passwd; use numbers")
        return _Numeric(int(uid), int(gid or 0), home="/root" if int(uid) == 0 else "/")


def to_spec(
    container: Container,
    pod: Pod,
    image_config: ImageConfig | None,
    host: Host,
    *,
    users: Users | None = None,
    seccomp: bool = True,
) -> Spec:
    """The runtime configuration of one container of a pod.

    Namespaces have no paths: whoever starts the container joins it to its pod. The root file system is at ``rootfs``
    in the bundle. Files that the models name must have been read before, see :func:`sandbox.models.read_files`.

    :param image_config: the image's configuration, if it has one
    :param users: the image's users and groups
    :param seccomp: false leaves ``linux.seccomp`` out; :func:`seccomp_of` is what it would be
    :raises SandboxError: no command, or something that must be known and is not
    :raises UserNotFound: the user or a group does not exist in the image, or not in the pod's user namespace
    """
    _check_read(container)
    defaults = (image_config.config if image_config else None) or _NO_DEFAULTS
    network = container.network or pod.network
    hostname = container.hostname or pod.hostname or pod.name or host.pod_id
    return Spec(
        oci_version=OCI_VERSION,
        process=_process(container, defaults, host, users or _NoUsers(), hostname),
        root=Root(path="rootfs", readonly=container.security.read_only_root),
        hostname=hostname,
        mounts=_mounts.mounts(container, host, host_network=network == "host"),
        hooks=_hooks(container),
        annotations=_annotations(container) or None,
        linux=_linux(container, pod, host, network, seccomp=seccomp),
    )


def _check_read(container: Container) -> None:
    if container.env_files or isinstance(_profile(container), str):
        raise SandboxError(
            "it still refers to files (env_files, seccomp)", operation="translate", object=container.name,
            hint="sandbox.models.read_files(container) reads them",
        )  # fmt: skip


def _profile(container: Container) -> Any:
    profile = container.security.seccomp
    return None if profile == "unconfined" else profile


def _annotations(container: Container) -> dict[str, str]:
    own = {ANNOTATION_INIT: "true"} if container.init else {}
    return {**own, **container.annotations}


def _hooks(container: Container) -> Hooks | None:
    if container.hooks is None:
        return None
    return converter.from_dict(_plain(container.hooks), Hooks, f"hooks of container {container.name}")


def _plain(value: Any) -> Any:
    """Frozen mappings and tuples of a model as JSON has them."""
    if hasattr(value, "items"):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _process(
    container: Container, defaults: ExecutionConfig, host: Host, users: Users, hostname: str
) -> Process:
    entry = _lookup(container.user or defaults.user or "0", container, users)
    cwd = container.working_dir or defaults.working_dir or "/"
    return Process(
        terminal=container.tty,
        user=_user(entry, container, host, users),
        args=_args(container, defaults),
        env=tuple(_env(container, defaults, entry, hostname)),
        cwd=cwd if cwd.startswith("/") else f"/{cwd}",
        capabilities=_capabilities(container, entry.uid),
        rlimits=tuple(_rlimits(container)) or None,
        no_new_privileges=container.security.no_new_privileges and not container.security.privileged,
        oom_score_adj=container.oom_score_adj,
    )


def _args(container: Container, defaults: ExecutionConfig) -> tuple[str, ...]:
    """Entrypoint and command, each from the container, else from the image.

    As in docker, an image's command belongs to its entrypoint: it is not used with another one.
    """
    entrypoint = defaults.entrypoint if container.entrypoint is None else container.entrypoint
    command = container.command
    if command is None and container.entrypoint is None:
        command = defaults.cmd
    args = (*(entrypoint or ()), *(command or ()))
    if not args or not args[0]:
        raise SandboxError(
            f"the image {container.image!r} has no command of its own, and none was given",
            operation="start container", object=container.name, hint="give one: command=['sleep', 'inf']",
        )  # fmt: skip
    return args


def _env(container: Container, defaults: ExecutionConfig, entry: UserEntry, hostname: str) -> Iterator[str]:
    """Later ones win: our defaults, the image's, the container's own."""
    found = {"PATH": DEFAULT_PATH, "HOME": entry.home or "/", "HOSTNAME": hostname, "container": "oci"}
    if container.tty:
        found["TERM"] = "xterm"
    for line in defaults.env or ():
        key, _, value = line.partition("=")
        found[key] = value
    found.update(container.env)
    return (f"{key}={value}" for key, value in found.items())


def _lookup(user: str, container: Container, users: Users) -> UserEntry:
    try:
        return users.lookup(user)
    except LookupError as error:
        raise UserNotFound(str(error), object=user, container=container.name, step="look up user") from None


def _user(entry: UserEntry, container: Container, host: Host, users: Users) -> User:
    asked = [_lookup(f"0:{group}", container, users).gid for group in container.groups]
    _check_mapped(container, "user", [entry.uid], host.uid_mappings)
    _check_mapped(container, "group", [entry.gid, *asked], host.gid_mappings)
    # The image's own /etc/group may name groups that a small mapping does not have; the user is as good without.
    implied = [gid for gid in entry.groups if mapped(gid, host.gid_mappings)]
    # As initgroups(3) has it, the group of the user is among them: a program of another group that this user runs does not
    # get rid of it. Where only one group is mapped, the kernel lets nobody set any.
    groups = dict.fromkeys((entry.gid, *implied, *asked))
    several = sum(mapping.size for mapping in host.gid_mappings) > 1
    return User(
        uid=entry.uid,
        gid=entry.gid,
        umask=DEFAULT_UMASK if container.umask is None else container.umask,
        additional_gids=tuple(groups) if several else None,
    )


def _check_mapped(container: Container, kind: str, ids: list[int], mappings: tuple[Any, ...]) -> None:
    for ident in ids:
        if not mapped(ident, mappings):
            count = sum(mapping.size for mapping in mappings)
            raise UserNotFound(
                f"{kind} {ident} is not among the {count} ids of the pod's user namespace",
                object=str(ident), container=container.name, step=f"look up {kind}",
                hint="more ids come from /etc/subuid and /etc/subgid",
            )  # fmt: skip


def _capabilities(container: Container, uid: int) -> LinuxCapabilities:
    """Root has them all; another user only those that were asked for by name, and keeps them (ambient)."""
    security = container.security
    bounding = security.effective_capabilities()
    if uid == 0:
        return LinuxCapabilities(
            bounding=bounding, effective=bounding, permitted=bounding, inheritable=(), ambient=()
        )
    asked = set(security.cap_add) | set(security.capabilities or ())
    kept = tuple(name for name in bounding if name in asked or "ALL" in asked)
    return LinuxCapabilities(
        bounding=bounding, effective=kept, permitted=kept, inheritable=kept, ambient=kept
    )


def _rlimits(container: Container) -> Iterator[POSIXRlimit]:
    for name, (soft, hard) in container.ulimits.items():
        yield POSIXRlimit(
            type=f"RLIMIT_{name.upper()}",
            soft=_INFINITY if soft < 0 else soft,
            hard=_INFINITY if hard < 0 else hard,
        )


def _linux(container: Container, pod: Pod, host: Host, network: str, *, seccomp: bool) -> Linux:
    security = container.security
    masked = () if security.privileged else _mounts.MASKED_PATHS
    readonly = () if security.privileged else _mounts.READONLY_PATHS
    pids = DEFAULT_PIDS if pod.resources.pids is None else None
    return Linux(
        uid_mappings=host.uid_mappings,
        gid_mappings=host.gid_mappings,
        sysctl=_sysctls(container, pod, host, network) or None,
        resources=resources_to_oci(container.resources, host, pids=pids),
        cgroups_path=f"{host.cgroup_parent}/{host.pod_id}/{container.name}",
        namespaces=(*_NAMESPACES, _NETWORK) if network != "host" else _NAMESPACES,
        seccomp=seccomp_of(container, host) if seccomp else None,
        rootfs_propagation="private",
        masked_paths=masked if security.masked_paths is None else security.masked_paths,
        readonly_paths=readonly if security.readonly_paths is None else security.readonly_paths,
    )


def _sysctls(container: Container, pod: Pod, host: Host, network: str) -> dict[str, str]:
    """In a network of its own, every user may ping and listen on any port: there is nobody to protect."""
    found: dict[str, str] = {}
    if network == "private":
        groups = next((m.size for m in host.gid_mappings if m.container_id == 0), 1)
        found["net.ipv4.ping_group_range"] = f"0 {min(groups, 2**31) - 1}"
        found["net.ipv4.ip_unprivileged_port_start"] = "0"
    return {**found, **pod.sysctls, **container.sysctls}


def seccomp_of(container: Container, host: Host) -> LinuxSeccomp | None:
    """``linux.seccomp`` of a container: the default profile (the same object for the same capabilities), its own, or none.

    :raises SpecError: its own is none
    :raises UnsupportedFeature: it has members that no runtime knows
    """
    security = container.security
    if security.privileged or security.seccomp == "unconfined":
        return None
    if security.seccomp is None:
        return default_profile(host.machine, frozenset(security.effective_capabilities()))
    what = f"seccomp profile of container {container.name}"
    profile = converter.from_dict(_plain(security.seccomp), LinuxSeccomp, what)
    _check_conditions(profile, what)
    return profile


def _check_conditions(profile: LinuxSeccomp, what: str) -> None:
    """Docker's profiles have conditions beside the runtime spec's members; a runtime would take them for met."""
    extras = [profile.extra, *(syscall.extra for syscall in profile.syscalls or ())]
    for name in (name for extra in extras for name, value in extra.items() if value):
        raise UnsupportedFeature(
            f"`{name}` is not in the OCI runtime spec", operation="translate", object=what,
            hint="write the rules for this machine and these capabilities out, without conditions",
        )  # fmt: skip


def stop_signal(container: Container, image_config: ImageConfig | None = None) -> str:
    """The name of the signal that asks a container to stop: its own, the image's, or SIGTERM."""
    image = image_config.config.stop_signal if image_config and image_config.config else None
    return container.stop_signal or image or "SIGTERM"


def etc_hosts(container: Container, pod: Pod, host: Host) -> str:
    """The text of a container's /etc/hosts: localhost, its own name, the extra hosts (its own win)."""
    name = container.hostname or pod.hostname or pod.name or host.pod_id
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback", f"127.0.1.1 {name}"]
    extra = {**pod.extra_hosts, **container.extra_hosts}
    return "\n".join([*lines, *(f"{address} {host_name}" for host_name, address in extra.items())]) + "\n"
