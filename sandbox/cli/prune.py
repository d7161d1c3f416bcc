"""``sandbox prune``: what nothing refers to, out of the store."""

from __future__ import annotations

from sandbox.cli import console, store
from sandbox.cli.options import Command, Given, Option

COMMAND = Command(
    "prune", "", "Remove what nothing refers to: images without a name, layers and blobs of no image.",
    (
        Option("all", "Also images that have a name, and caches", "a"),
        Option("dry-run", "Only show what would be removed", "n"),
        Option("json", "Print JSON instead of text"),
    ),
    (
        ("sandbox prune -n", "what it would remove, and how much that is"),
        ("sandbox prune --all", "everything that no process uses right now"),
    ),
    "Layers of images that are not the store's own (oci:PATH, archives) are unpacked again when they are needed again.\n"
    "What a living process uses stays, whatever the options.",
)  # fmt: skip


def main(given: Given) -> int:
    """Remove, and tell."""
    given.no_operands()
    from sandbox.images.collect import prune

    dry = bool(given["dry-run"])
    garbage = prune(store.images().store, everything=bool(given["all"]), dry_run=dry)
    if given["json"]:
        console.document({
            "names": list(garbage.names), "images": list(garbage.images), "size": garbage.size, "removed": not dry,
            "blobs": [thing.name for thing in garbage.blobs], "layers": [thing.name for thing in garbage.layers],
            "leftovers": [thing.name for thing in garbage.leftovers],
        })  # fmt: skip
        return 0
    counts = ((garbage.images, "images"), (garbage.blobs, "blobs"), (garbage.layers, "unpacked layers"),
              (garbage.leftovers, "leftovers"))  # fmt: skip
    lines = [f"{name}\n" for name in garbage.names]
    what = ", ".join(f"{len(things)} {word}" for things, word in counts)
    console.write(f"{''.join(lines)}{'would remove' if dry else 'removed'} {what}: {console.size(garbage.size)}\n")
    return 0
