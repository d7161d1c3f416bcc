"""``sandbox install-units``: write our unit files to where the service manager looks."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.cli import console
from sandbox.cli.options import Command, Given, Option

if TYPE_CHECKING:
    from sandbox.services.unitfiles import UnitFile

COMMAND = Command(
    "install-units", "", "Write the unit files of pods to where systemd looks, and show them.",
    (
        Option("user", "For this user's manager, not the system's"),
        Option("dry-run", "Only show what would be written"),
        Option("replace", "Also where a file with other content is"),
        Option("directory", "Write them here", "", "DIR"),
    ),
    (
        ("sandbox install-units --dry-run", "what would it do?"),
        ("sudo sandbox install-units", "slice, template and delegation for all users"),
        ("systemctl start sandbox@shop", "then: the pod of /etc/sandbox/shop.toml"),
    ),
    "Written are sandbox.slice, which holds pods and services; sandbox@.service, a pod from a file as a service; and,\n"
    "for the system, the drop-in that gives users' managers all controllers.",
)  # fmt: skip


def main(given: Given) -> int:
    """Show and write them."""
    given.no_operands()
    from sandbox.services.unitfiles import unit_files, write

    directory = Path(given["directory"]).absolute() if given["directory"] else None
    files = unit_files(user=bool(given["user"]), directory=directory)
    for file in files:
        console.write(f"{console.bold(f'# {file.path} ({file.state})')}\n{''.join(_shown(file))}\n")
    if given["dry-run"]:
        return 0
    for file in files:
        write(file, replace=bool(given["replace"]))
    reload = "systemctl --user daemon-reload" if given["user"] else "systemctl daemon-reload"
    console.complain(f"sandbox: written; `{reload}` makes a running manager see them")
    return 0


def _shown(file: UnitFile) -> Iterable[str]:
    """The file, or how it differs from what is there."""
    if file.state != "different":
        return [file.content]
    there, new = ((text or "").splitlines(keepends=True) for text in (file.present, file.content))
    return difflib.unified_diff(there, new, "there", "new")
