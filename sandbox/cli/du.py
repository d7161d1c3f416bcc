"""``sandbox du``: what the store takes on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sandbox.cli import console, store
from sandbox.cli.options import Command, Given, Option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.images.stored import Images, StoredImage

COMMAND = Command(
    "du", "", "Show what the store takes on disk, and what could be had back.",
    (
        Option("verbose", "Show each image, shared and own parts", "v"),
        Option("json", "Print JSON instead of tables"),
    ),
    (
        ("sandbox du", "blobs and unpacked layers, and what `sandbox prune` would remove"),
        ("sandbox du -v", "which image takes how much"),
    ),
    "Unpacked layers count with the size of their archives.",
)  # fmt: skip


def main(given: Given) -> int:
    """Print the tables."""
    given.no_operands()
    found = store.images()
    totals = list(_totals(found))
    rows = list(_images(found)) if given["verbose"] or given["json"] else []
    if given["json"]:
        console.document({"store": str(found.store.root), "totals": totals, "images": rows})
        return 0
    if rows:
        header = ("IMAGE", "ID", "SIZE", "SHARED", "OWN")
        console.write(console.table(header, [_cells(row) for row in rows]) + "\n")
    cells = [(t["what"], str(t["number"]), console.size(t["size"]), console.size(t["prunable"])) for t in totals]
    console.write(console.table(("WHAT", "NUMBER", "SIZE", "NOT NEEDED"), cells))
    return 0


def _totals(found: Images) -> Iterator[dict[str, Any]]:
    from sandbox.images.collect import Inventory, prune

    with found.store.places.alone():
        inventory = Inventory(found.store)
    garbage = prune(found.store, dry_run=True)
    for what, there, unneeded in (
        ("blobs", inventory.blobs, garbage.blobs),
        ("unpacked layers", inventory.layers, garbage.layers),
    ):
        prunable = sum(thing.size for thing in unneeded)
        yield {"what": what, "number": len(there), "size": sum(there.values()), "prunable": prunable}


def _images(found: Images) -> Iterator[dict[str, Any]]:
    """For each image the bytes of its layers, as they came and unpacked; what another image has too is shared."""
    parts = {image.digest: (image, _parts(found, image)) for image in found.items()}
    users: dict[str, int] = {}
    for _, things in parts.values():
        for name in things:
            users[name] = users.get(name, 0) + 1
    for image, things in parts.values():
        shared = sum(size for name, size in things.items() if users[name] > 1)
        size = sum(things.values())
        yield {
            "names": list(image.names), "id": image.id, "digest": image.digest, "size": size, "shared": shared,
            "own": size - shared,
        }  # fmt: skip


def _parts(found: Images, image: StoredImage) -> dict[str, int]:
    blobs = {blob.digest: blob.size for blob in image.parts.blobs}
    diff_ids = store.config_of(found, image).rootfs.diff_ids
    return blobs | {f"unpacked {key}": size for key, size in store.unpacked_sizes(found.store, diff_ids).items()}


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    name = ", ".join(row["names"]) or "<none>"
    return name, store.short(row["id"]), *(console.size(row[key]) for key in ("size", "shared", "own"))
