"""``sandbox rm``: images out of the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.cli import console, store
from sandbox.cli.options import Command, Given, Option

if TYPE_CHECKING:
    from sandbox.images.collect import Garbage
    from sandbox.images.stored import Images, StoredImage

COMMAND = Command(
    "rm", "IMAGE...", "Remove images from the store, with the layers that no other image has.",
    (
        Option("force", "Also if used, or called otherwise too", "f"),
        Option("json", "Print what was removed as JSON"),
    ),
    (
        ("sandbox rm myapp:1", "the name; if it was the last one, the image"),
        ("sandbox rm -f 3f2a9c0d1e77", "the image, whatever it is called"),
    ),
    "What a living process uses is not taken away from it, by --force neither: it goes with the next `sandbox prune`.",
    mixed=True,
)  # fmt: skip


def main(given: Given) -> int:
    """Remove them, one after the other."""
    found = store.images()
    removed = [_remove(found, text, force=bool(given["force"])) for text in given.some_operands("an image")]
    if given["json"]:
        console.document(removed)
    else:
        console.write("".join(_told(each) for each in removed))
    return 0


def _told(removed: dict[str, object]) -> str:
    names = removed["names"]
    assert isinstance(names, list)
    return "".join(f"{name}\n" for name in names) + (f"{removed['image']}\n" if removed["image"] else "")


def _remove(found: Images, text: str, *, force: bool) -> dict[str, object]:
    from sandbox.images.collect import Garbage, remove

    image = found.find(text)
    named = [name for name in image.names if name == _canonical(text)]
    if named and len(image.names) > 1:
        found.names.remove(named[0])
        return _document(None, Garbage(names=(named[0],)))
    if not force:
        _check(found, image, text, by_name=bool(named))
    return _document(image.digest, remove(found.store, [image.digest]))


def _canonical(text: str) -> str | None:
    from sandbox.errors import ImageError
    from sandbox.images.references import parse_registry_name

    try:
        return parse_registry_name(text).canonical
    except ImageError:
        return None


def _check(found: Images, image: StoredImage, text: str, *, by_name: bool) -> None:
    from sandbox.errors import ImageError
    from sandbox.images.collect import users_of

    if len(image.names) > 1 and not by_name:
        raise ImageError(
            f"it is called {', '.join(image.names)}", operation="remove image", object=text,
            hint="remove it by these names, or with --force",
        )  # fmt: skip
    if users := users_of(found.store, image.digest):
        processes = ", ".join(str(pid) for pid in sorted(users))
        raise ImageError(
            f"in use by process {processes}", operation="remove image", object=text,
            hint="wait for it to end; --force takes the name away now, and the files go with a later `sandbox prune`",
        )  # fmt: skip


def _document(digest: str | None, garbage: Garbage) -> dict[str, object]:
    return {"names": list(garbage.names), "image": digest, "size": garbage.size}
