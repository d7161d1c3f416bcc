"""``sandbox history``: how an image came to be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sandbox.cli import console, store
from sandbox.cli.options import Command, Given, Option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.images.stored import Images, StoredImage

COMMAND = Command(
    "history", "IMAGE", "Show the steps that made an image, the last one first, and the layers they made.",
    (
        Option("json", "Print JSON instead of a table"),
        Option("no-trunc", "Show commands and digests in full"),
    ),
    (
        ("sandbox history debian:12", "what was done, and how large each layer is"),
        ("sandbox history --json debian:12 | jq '.[].created_by'", "for programs"),
    ),
    mixed=True,
)  # fmt: skip

_WIDTH = 60


def main(given: Given) -> int:
    """Print the steps."""
    found = store.images()
    rows = list(_steps(found, found.find(given.one_operand("an image"))))[::-1]
    if given["json"]:
        console.document(rows)
        return 0
    header = ("LAYER", "CREATED", "SIZE", "CREATED BY")
    console.write(console.table(header, [_cells(row, full=bool(given["no-trunc"])) for row in rows]))
    return 0


def _steps(found: Images, image: StoredImage) -> Iterator[dict[str, Any]]:
    """Each step with its layer. Layers that the history does not tell of come at the end: they are there all the same."""
    layers = list(image.parts.layers)
    for step in store.config_of(found, image).history or ():
        layer = layers.pop(0) if layers and not step.empty_layer else None
        yield {
            "layer": layer.digest if layer else None, "size": layer.size if layer else 0, "created": step.created,
            "created_by": step.created_by or "", "author": step.author, "comment": step.comment,
        }  # fmt: skip
    for layer in layers:
        yield {"layer": layer.digest, "size": layer.size, "created": None, "created_by": "", "author": None, "comment": None}


def _cells(row: dict[str, Any], *, full: bool) -> tuple[str, ...]:
    text = " ".join("".join(char if char.isprintable() else " " for char in row["created_by"] or row["comment"] or "").split())
    if not full and len(text) > _WIDTH:
        text = f"{text[: _WIDTH - 1]}…"
    layer = row["layer"] or ""
    return layer if full else store.short(layer), store.when(row["created"]), console.size(row["size"]), text
