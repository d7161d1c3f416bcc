"""``sandbox push``: an image of the store to a registry."""

from __future__ import annotations

from sandbox.cli import console
from sandbox.cli.options import Command, Given, Option, UsageError

COMMAND = Command(
    "push", "IMAGE [NAME]", "Send an image of the store to a registry, under its own name or another.",
    (
        Option("quiet", "Show no progress", "q"),
        Option("json", "Print JSON instead of a line"),
    ),
    (
        ("sandbox push registry.example/team/app:1", "to the registry in its name"),
        ("sandbox push app:dev localhost:5000/app:dev", "to another"),
    ),
    "What the registry has already is not sent again. An image for several kinds of machine goes whole if it is here whole\n"
    "(`sandbox pull --all-platforms`), else this machine's part of it. Prints the name with the digest it means now.",
)  # fmt: skip


def main(given: Given) -> int:
    """Push, and print what came of it."""
    if not 1 <= len(given.operands) <= 2:
        raise UsageError("expected an image, and maybe the name to push it to")
    from sandbox.cli.pull import registry_name
    from sandbox.images.distribution import progress
    from sandbox.images.distribution.push import push
    from sandbox.images.store import Store
    from sandbox.images.stored import Images

    store = Store.default()
    source, name = given.operands[0], given.operands[-1]
    destination = registry_name(name)
    images = Images(store)
    image = images.look_up(registry_name(source).canonical) or images.find(source)
    shown = progress.for_stream(f"push {name}", quiet=bool(given["quiet"]))
    done = push(image, destination, store, progress=shown)
    where = f"{destination.domain}/{destination.repository}:{destination.tag}"
    if done.without_index and not given["quiet"]:
        console.complain(
            f"sandbox: pushed what {done.without_index} has for this machine; the rest of it is not in the store "
            f"(`sandbox pull --all-platforms {source}`)"
        )
    if given["json"]:
        import json

        console.write(json.dumps({"name": where, **done._asdict()}, indent=2) + "\n")
    else:
        console.write(f"{where}@{done.digest}\n")
    return 0
