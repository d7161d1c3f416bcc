"""``sandbox bundle``: an image for any OCI runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox.cli import console, store
from sandbox.cli.options import Command, Given, Option, UsageError

if TYPE_CHECKING:
    from sandbox.images.image import Image
    from sandbox.oci.image import ImageConfig

COMMAND = Command(
    "bundle", "IMAGE DIR [COMMAND...]", "Make an OCI bundle of an image: rootfs and config.json, for crun, runc or youki.",
    (
        Option("tty", "Ask the runtime for a terminal", "t"),
        Option("json", "Print config.json as well"),
    ),
    (
        ("sandbox bundle debian:12 ./b echo hi", "then: crun run -b ./b name"),
        ("sandbox bundle -t host-image:1 ./b sh", "with a shell on a terminal"),
    ),
    "The command is the image's own unless one is given; where there is none it is `sh`. Root's bundle has no user\n"
    "namespace: its root is the machine's, with the capabilities and system calls of a container. An ordinary user's\n"
    "has one, with the user's sub-ids.",
)  # fmt: skip

_PREFIX = "org.opencontainers.image."


def main(given: Given) -> int:
    """Write the bundle."""
    if len(given.operands) < 2:
        raise UsageError("expected an image and a directory")
    reference, target, *command = given.operands
    write_bundle(reference, Path(target), command, tty=bool(given["tty"]))
    if given["json"]:
        console.write((Path(target) / "config.json").read_text("utf-8"))
    return 0


def write_bundle(reference: str, target: Path, command: list[str], *, tty: bool = False) -> None:
    """Make ``target`` a bundle. Raises :class:`~sandbox.errors.SandboxError`; then nothing is left."""
    import shutil

    from sandbox import oci
    from sandbox.errors import ImageError
    from sandbox.images.tree import write_tree

    image, home = store.resolved(reference)
    spec = oci.dumps(oci.from_dict(_document(image, command, tty=tty)), indent=2)
    try:
        target.mkdir(mode=0o700, parents=False)
    except OSError as error:
        raise ImageError(operation="make bundle", object=reference, path=target, errno=error.errno) from error
    try:
        write_tree(image, target / "rootfs", home)
        (target / "config.json").write_text(spec, "utf-8")
    except BaseException:
        if not (target / "rootfs").exists():
            shutil.rmtree(target)
        raise


def _document(image: Image, command: list[str], *, tty: bool) -> dict[str, Any]:
    """The spec of a container of ours, less what only our own engine or a manager of cgroups would give it."""
    from sandbox import _host, oci
    from sandbox.linux.idmap import host_map, is_privileged
    from sandbox.linux.users import UserDatabase
    from sandbox.models import Container, Pod

    defaults = image.config.config
    own = (defaults.entrypoint or defaults.cmd) if defaults else None
    container = Container("main", image=image.reference, command=command or (None if own else ["sh"]), tty=tty)
    host = oci.Host(**_host.facts(host_map(), "/run/sandbox"))
    users = UserDatabase(image.users.passwd, image.users.group)
    spec = oci.to_dict(oci.to_spec(container, Pod([container]), image.config, host, users=users))
    linux = spec["linux"]
    del linux["cgroupsPath"]
    if is_privileged():
        del linux["uidMappings"], linux["gidMappings"]
        linux["namespaces"] = [row for row in linux["namespaces"] if row["type"] != "user"]
    else:
        ids = host_map()
        for member, ranges in (("uidMappings", ids.uids), ("gidMappings", ids.gids)):
            linux[member] = [{"containerID": r.inside, "hostID": r.outside, "size": r.count} for r in ranges]
        linux.pop("resources", None)  # nobody has delegated a cgroup
        user = spec["process"]["user"]
        if user.get("additionalGids") == [user["gid"]]:
            del user["additionalGids"]  # runc refuses to set any for an ordinary user
    spec["hostname"] = "bundle" if spec.get("hostname") == host.pod_id else spec.get("hostname")
    spec["annotations"] = {**_annotations(image.config), **(spec.get("annotations") or {})}
    return spec


def _annotations(config: ImageConfig) -> dict[str, str]:
    """What an image says of itself (image-spec, "Conversion to OCI Runtime Configuration")."""
    execution = config.config
    found = {
        "os": config.os, "architecture": config.architecture, "variant": config.variant, "author": config.author,
        "created": config.created, "stopSignal": execution.stop_signal if execution else None,
        "exposedPorts": ",".join(execution.exposed_ports or ()) if execution else None,
    }  # fmt: skip
    labels = dict(execution.labels or {}) if execution else {}
    return {**{f"{_PREFIX}{key}": value for key, value in found.items() if value}, **labels}
