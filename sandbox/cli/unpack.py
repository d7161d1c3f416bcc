"""``sandbox unpack``: an image as a plain root file system."""

from __future__ import annotations

from pathlib import Path

from sandbox.cli import console, store
from sandbox.cli.options import Command, Given, Option

COMMAND = Command(
    "unpack", "IMAGE DIR", "Write an image's files into a directory: for chroot, systemd-nspawn or RootDirectory=.",
    (
        Option("no-owners", "Let all files belong to you"),
        Option("json", "Print JSON instead of text"),
    ),
    (
        ("sandbox unpack debian:12 ./root", "then: systemd-nspawn -D ./root"),
        ("sandbox unpack --no-owners oci:build/app:1 ./root", "as an ordinary user, to look into and to remove"),
    ),
    "Without root, owners other than you are your sub-ids, as in your containers; `--no-owners` leaves them out. Device\n"
    "nodes are left out. Set-user-id programs are not: keep the directory where nobody else can enter it.",
    mixed=True,
)  # fmt: skip


def main(given: Given) -> int:
    """Write the files."""
    reference, target = given.two_operands("an image and a directory")
    from sandbox.images.tree import write_tree

    image, home = store.resolved(reference)
    result = write_tree(image, Path(target), home, owners=not given["no-owners"])
    if given["json"]:
        console.document({"digest": image.digest, "directory": target, **result._asdict()})
        return 0
    for name in result.skipped:
        console.complain(f"left out: {name}")
    console.write(f"{target}: {result.entries} entries, {console.size(result.size)}\n")
    return 0
