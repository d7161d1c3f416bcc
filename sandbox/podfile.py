"""Pods in files, TOML or JSON: the models' own field names, nothing else.

    name = "shop"
    memory = "512M"
    volumes = ["data"]

    [containers.db]
    image = "oci:images/db"
    ready = { port = 5432 }

    [containers.api]
    image = "oci:images/api"
    after = ["db"]
    ready = { http = 8000, path = "/health" }

A file without ``containers`` describes a pod of one: its fields are those of :func:`sandbox.as_pod`. Relative paths of images
and mounts count from the directory of the file.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox.errors import ModelError, SandboxError

if TYPE_CHECKING:
    from sandbox.models import Container, Pod

__all__ = ["load", "loads"]

#: probe → its first argument's name in the table, and what calls it.
_PROBES = {"port": "Port", "http": "Http", "log": "Log", "exec": "Exec", "notify": "Notify", "healthcheck": "Healthcheck"}
_BARE = {"notify", "healthcheck"}


def load(path: str | os.PathLike[str]) -> Pod:
    """The pod that a file describes; one that ends in ``.json`` is JSON, everything else TOML.

    :raises SandboxError: the file cannot be read, or is neither
    :raises ModelError: it describes no pod; ``path`` is the file
    """
    file = Path(path)
    try:
        text = file.read_text("utf-8")
    except OSError as error:
        raise SandboxError(operation="read the pod", path=file, errno=error.errno) from None
    except UnicodeDecodeError as error:
        raise SandboxError(str(error), operation="read the pod", path=file) from None
    try:
        return loads(text, json_syntax=file.suffix == ".json", directory=file.absolute().parent)
    except SandboxError as error:
        error.path = error.path or os.fspath(file)
        raise


def loads(text: str, *, json_syntax: bool = False, directory: Path | None = None) -> Pod:
    """The pod that a text describes; relative paths count from ``directory``, the current one by default."""
    try:
        document = json.loads(text) if json_syntax else tomllib.loads(text)
    except ValueError as error:
        kind = "JSON" if json_syntax else "TOML"
        raise SandboxError(f"not {kind}: {error}", operation="read the pod") from None
    if not isinstance(document, Mapping):
        raise SandboxError("expected a table of fields", operation="read the pod")
    return _pod(dict(document), directory or Path.cwd())


def _pod(document: dict[str, Any], directory: Path) -> Pod:
    from sandbox.models import Pod, Resources, as_pod

    if "containers" not in document:
        name = document.get("name")
        pod = as_pod(**_fields(document, directory))
        return pod if name is None else _named(pod, name)
    containers = [_container(fields, directory) for fields in _tables(document.pop("containers"))]
    return Pod(containers, **_of_model(document, Pod, {"resources": Resources}))


def _named(pod: Pod, name: str) -> Pod:
    import attrs

    return attrs.evolve(pod, name=name)


def _tables(containers: Any) -> list[dict[str, Any]]:
    """``[containers.db]`` or ``[[containers]]`` with a name in it."""
    if isinstance(containers, Mapping):
        tables = [{"name": name, **_table(fields, name)} for name, fields in containers.items()]
    elif isinstance(containers, list):
        tables = [_table(fields, number) for number, fields in enumerate(containers)]
    else:
        tables = []
    if not tables:
        raise ModelError("expected tables, one for each container", class_name="Pod", field="containers", value=containers)
    return tables


def _table(fields: Any, where: object) -> dict[str, Any]:
    if not isinstance(fields, Mapping):
        raise ModelError("expected a table of fields", class_name="Pod", field=f"containers.{where}", value=fields)
    return dict(fields)


def _container(fields: dict[str, Any], directory: Path) -> Container:
    from sandbox.models import Container, Resources, Security

    parts = {"resources": Resources, "security": Security}
    return Container(**_of_model(_fields(fields, directory), Container, parts))


def _of_model(given: dict[str, Any], model: type, parts: Mapping[str, type]) -> dict[str, Any]:
    """Fields of a model; those of its parts may stand among them, as for :func:`sandbox.as_pod`."""
    for part, kind in parts.items():
        own = {name: given.pop(name) for name in _names(kind) if name in given}
        if own:
            given[part] = {**_table(given.get(part, {}), part), **own}
    if unknown := sorted(set(given) - _names(model)):
        raise ModelError(
            "there is no such field", class_name=model.__name__, field=unknown[0], value=given[unknown[0]],
            hint=f"known: {', '.join(sorted(_names(model)))}",
        )  # fmt: skip
    return given


def _names(model: type) -> set[str]:
    import attrs

    return {field.name for field in attrs.fields(model)}


def _fields(fields: dict[str, Any], directory: Path) -> dict[str, Any]:
    changed = dict(fields)
    if "image" in changed:
        changed["image"] = _image(changed["image"], directory)
    if "mounts" in changed and isinstance(changed["mounts"], list):
        changed["mounts"] = [_mount(mount, directory) for mount in changed["mounts"]]
    if "ready" in changed:
        changed["ready"] = _probe(changed["ready"])
    return changed


def _image(reference: Any, directory: Path) -> Any:
    """``./rootfs`` and ``oci:./image`` are beside the file; names and absolute paths are what they are."""
    if not isinstance(reference, str):
        return reference
    transport, colon, rest = reference.partition(":")
    if rest.startswith(("./", "../")):
        return f"{transport}{colon}{directory}/{rest}"
    return f"{directory}/{reference}" if reference.startswith(("./", "../")) else reference


def _mount(mount: Any, directory: Path) -> Any:
    """``"./data:/data"``, or a table with the fields of Mount."""
    from sandbox.models import Mount

    if isinstance(mount, str) and mount.startswith(("./", "../")):
        return f"{directory}/{mount}"
    return Mount(**mount) if isinstance(mount, Mapping) else mount


def _probe(table: Any) -> Any:
    """``{ port = 5432 }``, ``{ http = 8000, path = "/health" }``, ``{ notify = true }``."""
    import sandbox

    names = [name for name in _PROBES if isinstance(table, Mapping) and name in table]
    if len(names) != 1:
        raise ModelError(
            f"expected a table with one of {', '.join(_PROBES)}", class_name="Container", field="ready", value=table,
            hint="for example: ready = { port = 5432 }",
        )  # fmt: skip
    options = dict(table)
    first = options.pop(names[0])
    make = getattr(sandbox, _PROBES[names[0]])
    try:
        return make(**options) if names[0] in _BARE else make(first, **options)
    except TypeError as error:
        raise ModelError(str(error), class_name="Container", field="ready", value=table) from None
