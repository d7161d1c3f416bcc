"""Which D-Bus binding is taken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

#: Nobody listens there, so the error comes from the binding that was taken.
CONNECT = """
from sandbox_systemd import bus, errors
assert bus.available_bindings()["pydbus"] is None
try:
    bus.connect(bus.Address("/nowhere"))
except errors.NoBus as error:
    print(error)
"""


@pytest.mark.parametrize(
    "source",
    ["import warnings; warnings.warn('falling back', ImportWarning)", "raise ImportError('no libgirepository')"],
    ids=["warns", "is broken"],
)
def test_a_pydbus_that_cannot_be_imported_after_all_is_passed_over(tmp_path: Path, source: str) -> None:
    """As Debian's warns under Python 3.11 while it is imported, and warnings may be errors."""
    (tmp_path / "gi.py").touch()
    (tmp_path / "pydbus.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CONNECT], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "/nowhere" in done.stdout
