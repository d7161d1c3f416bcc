"""``sandbox images``: what images the store has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sandbox.cli import console, store
from sandbox.cli.options import Command, Given, Option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.images.stored import Images

COMMAND = Command(
    "images", "[NAME]", "List the images of the store: pulled, built or loaded.",
    (
        Option("json", "Print JSON instead of a table"),
        Option("quiet", "Print only the ids of the images", "q"),
        Option("digests", "Show digests of the manifests too"),
    ),
    (
        ("sandbox images", "names, sizes, when they were made"),
        ("sandbox images debian", "every image that is called so"),
        ("sandbox images --json | jq '.[].digest'", "for programs"),
    ),
    "SIZE is what the layers take as they came, UNPACKED what they are once unpacked; layers that images share are\n"
    "stored once. An image's id is the digest of its configuration, as in docker and podman.",
    mixed=True,
)  # fmt: skip

_NONE = "<none>"


def main(given: Given) -> int:
    """Print the list."""
    wanted = given.one_operand("a name") if given.operands else None
    found = store.images()
    rows = list(_rows(found))
    if wanted is not None:
        rows = [row for row in rows if any(_is_called(name, wanted) for name in row["names"])]
    if given["json"]:
        console.document(rows)
    elif given["quiet"]:
        console.write("".join(f"{store.short(row['id'])}\n" for row in rows))
    else:
        digests = bool(given["digests"])
        header = ("NAME", *(["DIGEST"] if digests else []), "ID", "CREATED", "SIZE", "UNPACKED")
        cells = [_cells(row, name, digests=digests) for row in rows for name in row["names"] or [_NONE]]
        console.write(console.table(header, cells))
    return 0


def _rows(found: Images) -> Iterator[dict[str, Any]]:
    """One damaged image does not hide the others."""
    from sandbox.errors import ImageError

    for image in found.items():
        try:
            yield store.row(found, image)
        except ImageError as error:
            console.complain(f"left out: {error}")


def _is_called(name: str, wanted: str) -> bool:
    """A repository without its tag names all its images."""
    from sandbox.images.references import parse_registry_name

    reference = parse_registry_name(wanted)
    repository = f"{reference.domain}/{reference.repository}"
    tagged = wanted.rpartition("/")[2].partition(":")[1] or reference.digest
    return name == reference.canonical if tagged else name.startswith((f"{repository}:", f"{repository}@"))


def _cells(row: dict[str, Any], name: str, *, digests: bool) -> tuple[str, ...]:
    unpacked = row["unpacked"]
    return (
        name, *([row["digest"]] if digests else []), store.short(row["id"]), store.when(row["created"]),
        console.size(row["size"]), "" if unpacked is None else console.size(unpacked),
    )  # fmt: skip
