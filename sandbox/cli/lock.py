"""``sandbox lock``: pin what names of images mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.cli import console
from sandbox.cli.options import Command, Given, Option, UsageError
from sandbox.cli.pull import registry_name

if TYPE_CHECKING:
    from sandbox.images.distribution.pins import Pin, Pins

COMMAND = Command(
    "lock", "[IMAGE...]", "Pin what names of images mean, and fetch them, so that tests run alike everywhere and offline.",
    (
        Option("file", "Read and write FILE (default: sandbox.lock)", "f", "FILE"),
        Option("remove", "Take these names out"),
        Option("check", "Write nothing; fail if something has changed"),
        Option("quiet", "Show no progress", "q"),
        Option("json", "Print JSON instead of lines"),
    ),
    (
        ("sandbox lock redis:7 postgres:16", "add two names, or pin them anew"),
        ("sandbox lock", "pin everything in sandbox.lock anew"),
        ("sandbox lock --check", "for CI: has a name moved on?"),
        ("sandbox lock --remove redis:7", "forget a name"),
    ),
    "pytest uses sandbox.lock where it finds it in its root directory: names mean what is pinned, and those that are not\n"
    "pinned are refused (`pytest --sandbox-lock none` goes without). Elsewhere SANDBOX_LOCK names the file.",
)  # fmt: skip


def main(given: Given) -> int:
    """Ask the registries, compare, write."""
    import attrs

    from sandbox.images.distribution.pins import FILE_NAME, Pins

    path = Path(given["file"] or FILE_NAME)
    operands = {registry_name(text).canonical: text for text in given.operands}
    pins = Pins.load(path) if path.exists() or not operands or given["remove"] else Pins(path)
    if given["remove"]:
        return _remove(pins, operands)
    wanted = operands or {name: name for name in pins.images}
    found = {name: _look(text, quiet=bool(given["quiet"])) for name, text in wanted.items()}
    changed = {name for name, pin in found.items() if pins.images.get(name) != pin}
    if not given["check"] and changed:
        attrs.evolve(pins, images={**pins.images, **found}).save()
    _tell(found, changed, as_json=bool(given["json"]))
    return 1 if given["check"] and changed else 0


def _remove(pins: Pins, operands: dict[str, str]) -> int:
    import attrs

    if not operands:
        raise UsageError("--remove: expected the names to take out")
    for name, text in operands.items():
        if name not in pins.images:
            raise UsageError(f"`{text}` is not in {pins.path}")
    left = {name: pin for name, pin in pins.images.items() if name not in operands}
    attrs.evolve(pins, images=left).save()
    return 0


def _look(text: str, *, quiet: bool) -> Pin:
    """What a registry says today; the image is in the store afterwards."""
    from sandbox.images.distribution import progress
    from sandbox.images.distribution.pins import pin_of
    from sandbox.images.distribution.pull import pull
    from sandbox.images.store import Store

    store = Store.default()
    reference = registry_name(text)
    if reference.digest:
        raise UsageError(f"`{text}` has a digest: it needs no pin")
    shown = progress.for_stream(f"lock {text}", quiet=quiet)
    return pin_of(pull(reference, store, progress=shown).stored, store)


def _tell(found: dict[str, Pin], changed: set[str], *, as_json: bool) -> None:
    if as_json:
        import json

        rows = [
            {"name": name, "digest": pin.digest, "platforms": dict(pin.platforms), "changed": name in changed}
            for name, pin in found.items()
        ]
        console.write(json.dumps(rows, indent=2) + "\n")
        return
    for name, pin in found.items():
        console.write(f"{name}@{pin.digest}{' (changed)' if name in changed else ''}\n")
