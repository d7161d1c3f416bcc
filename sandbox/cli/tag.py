"""``sandbox tag``: another name for an image."""

from __future__ import annotations

from sandbox.cli import store
from sandbox.cli.options import Command, Given, UsageError

COMMAND = Command(
    "tag", "IMAGE NAME...", "Give an image of the store more names.",
    (),
    (
        ("sandbox tag debian:12 base", "base means the same image from now on"),
        ("sandbox tag 3f2a9c0d1e77 registry.example:5000/app:1", "by its id; ready to be pushed"),
    ),
    "A name that meant another image moves. Parts that are left out are docker.io, library/ and :latest, as everywhere.",
    mixed=True,
)  # fmt: skip


def main(given: Given) -> int:
    """Set the names."""
    image, *names = given.some_operands("an image and a name")
    if not names:
        raise UsageError("expected a name")
    from sandbox.errors import ImageError
    from sandbox.images.references import parse_registry_name

    found = store.images()
    meant = found.find(image)
    references = [parse_registry_name(name) for name in names]
    for reference in references:
        if reference.digest:
            raise ImageError(
                "a name with a digest means that digest and no other", operation="tag", object=reference.text,
                hint="use NAME:TAG",
            )  # fmt: skip
    for reference in references:
        found.names.set(reference.canonical, meant.digest)
    return 0
