"""``sandbox load``: images out of a file."""

from __future__ import annotations

import os

from sandbox.cli import console, store
from sandbox.cli.options import Command, Given, Option, UsageError

COMMAND = Command(
    "load", "[FILE]", "Take images into the store: from `save`, docker, podman, or an OCI layout.",
    (
        Option("input", "Read this file, not standard input", "i", "FILE"),
        Option("name", "Call the only image in there so", "", "NAME"),
        Option("json", "Print JSON instead of text"),
    ),
    (
        ("sandbox load app.tar", "under the names that it has there"),
        ("sandbox load --name myapp:1 ./layout", "an OCI layout, where images have no full names"),
        ("sandbox load < saved-by-docker.tar", "or `docker save … | sandbox load`"),
    ),
    "Archives may be compressed with gzip. Every blob is verified; nothing of an image that is incomplete is kept.",
    mixed=True,
)  # fmt: skip


def main(given: Given) -> int:
    """Take them in, and tell what they are called."""
    file = given["input"] or (given.one_operand("a file") if given.operands else "-")
    if file == "-" and console.is_terminal(0):
        raise UsageError("standard input is a terminal: name a file")
    from sandbox.images.load import load

    found = store.images()
    if file == "-":
        with os.fdopen(os.dup(0), "rb") as stream:
            images = load(stream, found.store, name=given["name"])
    else:
        images = load(file, found.store, name=given["name"])
    if given["json"]:
        console.document([store.row(found, image) for image in images])
    else:
        console.write("".join(f"{name}\n" for image in images for name in image.names or (image.digest,)))
    return 0
