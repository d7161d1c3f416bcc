"""The options of ``sandbox run`` that describe the container, and the model they make."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sandbox.cli.options import Given, Option, UsageError

if TYPE_CHECKING:
    from sandbox.models import Container, Mount

OPTIONS = (
    Option("pull", "Ask a registry: always, missing or never", "", "POLICY"),
    Option("env", "Set a variable, or pass it on", "e", "KEY[=VALUE]", many=True),
    Option("env-file", "Read variables from a file", "", "FILE", many=True),
    Option("volume", "Show a path of the host: SRC:DST[:ro]", "v", "MOUNT", many=True),
    Option("mount", "Mount: type=bind|tmpfs,src=…,dst=…", "", "FIELDS", many=True),
    Option("tmpfs", "Mount an empty directory: PATH[:size=…]", "", "MOUNT", many=True),
    Option("workdir", "Start in this directory", "w", "PATH"),
    Option("user", "Run as this user, by name or number", "u", "USER[:GROUP]"),
    Option("group-add", "Add a supplementary group", "", "GROUP", many=True),
    Option("entrypoint", "Replace the image's entry point", "", "COMMAND"),
    Option("init", "Reap orphans, pass on signals (PID 1)"),
    Option("name", "Name the pod", "", "NAME"),
    Option("hostname", "Set the host name", "", "NAME"),
    Option("network", "Choose `private` (alone) or `host`", "", "KIND"),
    Option("add-host", "Add a line to /etc/hosts", "", "NAME:ADDRESS", many=True),
    Option("memory", "Limit memory; beyond it the kernel kills", "m", "SIZE"),
    Option("cpus", "Limit CPU time: 1.5 is one and a half", "", "NUMBER"),
    Option("pids-limit", "Limit processes and threads (-1: none)", "", "NUMBER"),
    Option("ulimit", "Set a limit of setrlimit(2)", "", "NAME=SOFT[:HARD]", many=True),
    Option("best-effort", "Leave out limits this host cannot keep"),
    Option("read-only", "Write-protect the root file system"),
    Option("cap-add", "Add a capability (or ALL)", "", "CAPABILITY", many=True),
    Option("cap-drop", "Take a capability away (or ALL)", "", "CAPABILITY", many=True),
    Option("security-opt", "Set seccomp=FILE, no-new-privileges=BOOL", "", "OPTION", many=True),
    Option("privileged", "Give all capabilities, mask nothing"),
    Option("device", "Show a device node of the host", "", "PATH[:PATH]", many=True),
    Option("sysctl", "Set a kernel parameter of its namespaces", "", "KEY=VALUE", many=True),
    Option("label", "Attach a label, shown by inspect", "", "KEY=VALUE", many=True),
)  # fmt: skip


def model(given: Given, image: str, command: list[str]) -> Container:
    """The container that the options describe. Raises :class:`UsageError` and ``ModelError``."""
    from sandbox.models import Container

    fields: dict[str, Any] = {
        "working_dir": given["workdir"], "user": given["user"], "hostname": given["hostname"],
        "groups": given["group-add"], "entrypoint": _entrypoint(given["entrypoint"]), "init": bool(given["init"]),
        "env": dict(variables(given["env"])), "env_files": given["env-file"], "mounts": list(_mounts(given)),
        "resources": _resources(given), "security": _security(given), "network": _network(given["network"]),
        "ulimits": dict(_pair(text, "ulimit") for text in given["ulimit"]), "tty": bool(given["tty"]),
        "pull": given["pull"], "devices": given["device"], "sysctls": dict(_pair(text, "sysctl") for text in given["sysctl"]),
        "extra_hosts": dict(_pair(text, "add-host", ":") for text in given["add-host"]),
    }  # fmt: skip
    if command:
        fields["command"] = command
    return Container(image=image, **fields)


def labels(given: Given) -> dict[str, str]:
    """The pod's labels; one without a value is empty."""
    return dict(text.partition("=")[::2] for text in given["label"])


def _pair(text: str, option: str, separator: str = "=") -> tuple[str, str]:
    key, found, value = text.partition(separator)
    if not found or not key:
        raise UsageError(f"--{option}={text}: expected KEY{separator}VALUE")
    return key, value


def variables(texts: Iterable[str]) -> Iterable[tuple[str, str]]:
    """``KEY`` alone passes on a variable of ours, if it is set."""
    for text in texts:
        key, equals, value = text.partition("=")
        if equals or key in os.environ:
            yield key, value if equals else os.environ[key]


def _entrypoint(text: str | None) -> list[str] | None:
    """A program, an empty string for none, or a JSON list of words."""
    if text is None:
        return None
    if not text.startswith("["):
        return [text] if text else []
    import json

    try:
        words = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--entrypoint={text}: not JSON: {error}") from None
    if not all(isinstance(word, str) for word in words):
        raise UsageError(f"--entrypoint={text}: expected a list of strings")
    return list(words)


def _network(text: str | None) -> str | None:
    return "private" if text == "none" else text


def _mounts(given: Given) -> Iterable[Mount]:
    from sandbox.models import Mount

    for text in given["volume"]:
        if "/" not in text.partition(":")[0] and text.partition(":")[0] not in {".", ".."}:
            raise UsageError(f"--volume={text}: the source must be a path of the host, such as ./{text}")
        yield Mount.parse(text)
    for text in given["tmpfs"]:
        target, _, options = text.partition(":")
        yield _tmpfs(target, options.split(",") if options else [])
    for text in given["mount"]:
        yield _mount(text)


def _tmpfs(target: str, options: Iterable[str]) -> Mount:
    from sandbox.models import Mount

    fields: dict[str, Any] = {"options": []}
    for option in options:
        key, _, value = option.partition("=")
        if key in {"size", "mode"}:
            fields[key] = value
        elif option == "ro":
            fields["read_only"] = True
        elif option != "rw":
            fields["options"].append(option)
    return Mount.tmpfs(target, **fields)


_MOUNT_FIELDS = {
    "src": "source", "source": "source", "dst": "target", "destination": "target", "target": "target",
    "ro": "read_only", "readonly": "read_only", "idmap": "idmapped", "tmpfs-size": "size", "tmpfs-mode": "mode",
    "type": "type",
}  # fmt: skip


def _mount(text: str) -> Mount:
    """``type=bind,source=/a,target=/b,readonly``, as podman takes it."""
    from sandbox.models import Mount

    fields: dict[str, Any] = {"type": "bind"}
    for item in text.split(","):
        key, equals, value = item.partition("=")
        if key not in _MOUNT_FIELDS:
            raise UsageError(f"--mount={text}: unknown field `{key}`; known: {', '.join(sorted(_MOUNT_FIELDS))}")
        field = _MOUNT_FIELDS[key]
        fields[field] = _switch(value or "true", text) if field in {"read_only", "idmapped"} else value
        if not equals and not isinstance(fields[field], bool):
            raise UsageError(f"--mount={text}: `{key}` needs a value")
    if fields["type"] not in {"bind", "tmpfs"} or "target" not in fields:
        raise UsageError(f"--mount={text}: expected type=bind or type=tmpfs, and a target")
    return Mount(fields.pop("target"), fields.pop("source", None), **fields)


def _switch(text: str, where: str) -> bool:
    if text not in {"true", "false", "1", "0"}:
        raise UsageError(f"{where}: `{text}` is neither true nor false")
    return text in {"true", "1"}


def _resources(given: Given) -> dict[str, Any]:
    limits = {"memory": given["memory"], "cpus": given["cpus"], "pids": given["pids-limit"]}
    return {**{name: value for name, value in limits.items() if value is not None},
            "best_effort": bool(given["best-effort"])}  # fmt: skip


def _security(given: Given) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "cap_add": given["cap-add"], "cap_drop": given["cap-drop"], "read_only_root": bool(given["read-only"]),
        "privileged": bool(given["privileged"]),
    }  # fmt: skip
    for option in given["security-opt"]:
        name, _, value = option.replace(":", "=", 1).partition("=")
        if name == "seccomp" and value:
            fields["seccomp"] = value
        elif name == "no-new-privileges":
            fields["no_new_privileges"] = _switch(value or "true", f"--security-opt={option}")
        else:
            known = "seccomp=FILE, seccomp=unconfined, no-new-privileges[=false]"
            raise UsageError(f"--security-opt={option}: unknown; there are {known}")
    return fields


def publications(given: Given) -> list[tuple[str, int, int]]:
    """``[[IP:]HOST_PORT:]PORT`` → (address of the host, its port or 0, the container's port)."""
    return [_publication(text) for text in given["publish"]]


def _publication(text: str) -> tuple[str, int, int]:
    rest, _, port = text.rpartition(":")
    address, _, host_port = rest.rpartition(":")
    try:
        ports = int(host_port or 0), int(port.removesuffix("/tcp"))
    except ValueError:
        ports = (-1, -1)
    address = address.strip("[]") or "127.0.0.1"
    if not 0 <= ports[0] < 65536 or not 0 < ports[1] < 65536 or (":" in address and not _is_ipv6(address)):
        raise UsageError(f"--publish={text}: expected [[ADDRESS:]PORT:]PORT, TCP only")
    from sandbox._network import listening_address

    return listening_address(address), *ports


def _is_ipv6(address: str) -> bool:
    import socket

    try:
        socket.inet_pton(socket.AF_INET6, address)
    except OSError:
        return False
    return True


__all__ = ["OPTIONS", "labels", "model", "publications", "variables"]
