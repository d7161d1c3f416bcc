"""``sandbox pull``: images from registries into the store, verified and unpacked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sandbox.cli import console
from sandbox.cli.options import Command, Given, Option, UsageError

if TYPE_CHECKING:
    from sandbox.images.distribution.pull import Pulled
    from sandbox.images.references import Reference

COMMAND = Command(
    "pull", "IMAGE...", "Fetch images from their registries into the store, verified and unpacked.",
    (
        Option("policy", "Ask always (default), or if missing", "", "POLICY"),
        Option("all-platforms", "Fetch what there is for other machines too"),
        Option("lock", "Fetch everything that FILE pins", "", "FILE"),
        Option("quiet", "Show no progress", "q"),
        Option("json", "Print JSON instead of lines"),
    ),
    (
        ("sandbox pull redis:7", "docker.io/library/redis:7"),
        ("sandbox pull localhost:5000/app@sha256:…", "exactly this one, from another registry"),
        ("sandbox pull --lock sandbox.lock", "all that tests need, before the network goes"),
        ("sandbox pull --all-platforms debian:12", "for a push of all of it"),
    ),
    "Credentials are those of `podman login` and `docker login`; mirrors, insecure registries and aliases are read from "
    "registries.conf.\nWhat was interrupted goes on where it was. Prints each name with the digest it means.",
)  # fmt: skip


def main(given: Given) -> int:
    """Pull, and print what came of it."""
    if given["policy"] not in {None, "always", "missing"}:
        raise UsageError(f"--policy={given['policy']}: expected always or missing")
    wanted = [*_pinned(given["lock"]), *map(registry_name, given.operands)]
    if not wanted:
        raise UsageError("expected an image, such as redis:7")
    from sandbox.images.distribution import progress
    from sandbox.images.distribution.pull import pull
    from sandbox.images.store import Store

    store = Store.default()
    documents = []
    for reference in wanted:
        shown = progress.for_stream(f"pull {reference.text}", quiet=bool(given["quiet"]))
        done = pull(
            reference, store, policy=given["policy"] or "always", unpack=not given["all-platforms"],
            every_platform=bool(given["all-platforms"]), progress=shown,
        )  # fmt: skip
        documents.append(_document(reference, done))
        if not given["json"]:
            console.write(f"{documents[-1]['name']}@{documents[-1]['digest']}\n")
    if given["json"]:
        import json

        console.write(json.dumps(documents, indent=2) + "\n")
    return 0


def registry_name(text: str) -> Reference:
    """An operand as the name of an image in a registry, aliases applied. Raises :class:`UsageError` if it is none."""
    from sandbox.images.distribution.registries_conf import canonical
    from sandbox.images.references import parse

    reference = parse(text)
    if reference.transport != "docker":
        raise UsageError(f"`{text}` is not in a registry: expected a name such as redis:7")
    return canonical(reference)


def _pinned(path: str | None) -> list[Reference]:
    if path is None:
        return []
    from sandbox.images.distribution.pins import Pins

    pins = Pins.load(path)
    return [pins.pinned(registry_name(name)) for name in sorted(pins.images)]


def _document(reference: Reference, done: Pulled) -> dict[str, Any]:
    import attrs

    name = attrs.evolve(reference, digest="").canonical if reference.tag else f"{reference.domain}/{reference.repository}"
    stored = done.stored
    return {
        "reference": reference.text, "name": name, "digest": stored.digest, "manifest": stored.parts.manifest.digest,
        "id": stored.id, "size": stored.size, "layers": [layer.digest for layer in stored.parts.layers],
        "fetched": done.fetched,
    }  # fmt: skip
