"""``sandbox save``: images into one file."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from sandbox.cli import console, store
from sandbox.cli.options import Command, Given, Option, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = Command(
    "save", "IMAGE...", "Write images of the store into one file, for `load` here, in podman or in docker.",
    (
        Option("output", "Write to this file, not standard output", "o", "FILE"),
        Option("format", "Use oci-archive (default), docker-archive", "", "FORMAT"),
    ),
    (
        ("sandbox save -o app.tar myapp:1", "an OCI archive, which docker loads too"),
        ("sandbox save myapp:1 | ssh host podman load", "to another machine"),
        ("sandbox save --format docker-archive -o app.tar myapp:1", "for old tools: layers uncompressed"),
    ),
    "In an OCI archive layers stay as they came, and with them all digests. The file appears whole or not at all.",
    mixed=True,
)  # fmt: skip


def main(given: Given) -> int:
    """Write the file."""
    operands, form = given.some_operands("an image"), given["format"] or "oci-archive"
    from sandbox.images.save import FORMATS, save

    if form not in FORMATS:
        raise UsageError(f"--format={form}: expected {' or '.join(FORMATS)}")
    if given["output"] is None and console.is_terminal(1):
        raise UsageError("standard output is a terminal: give --output=FILE")
    found = store.images()
    images = [found.find(operand) for operand in operands]
    with _output(given["output"]) as file:
        save(images, found.store, file, form)
    return 0


@contextmanager
def _output(path: str | None) -> Iterator[BinaryIO]:
    """Standard output, or a file that has its name once it is whole."""
    if path is None:
        with os.fdopen(os.dup(1), "wb") as file:
            yield file
        return
    if os.path.exists(path) and not os.path.isfile(path):  # a FIFO or a device: nothing to rename
        with open(path, "wb") as file:
            yield file
        return
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
        os.rename(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
