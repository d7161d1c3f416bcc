"""Make a virtual environment with pip in it, also where the distribution has taken ensurepip out of Python.

Usage: python3 tools/environment.py DIRECTORY

Debian and Ubuntu ship Python without ensurepip (it comes with python3-venv), so `python3 -m venv` fails
there. The environment itself can be made all the same; pip then comes from the system's own pip, or as a
wheel, pinned by its SHA-256, from the package index. Nothing is installed outside of DIRECTORY. Standard
library only.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
import venv
from collections.abc import Callable
from pathlib import Path

PIP_WHEEL = "pip-25.3-py3-none-any.whl"
PIP_SHA256 = "9655943313a94722b7774661c21049070f6bbb0a1516bf02f7c8d5d9201514cd"


class Failure(Exception):
    """A way to get pip that did not work out; the text says why."""


def run(*command: str | Path, **environment: str) -> None:
    """Run a program to its end; raises Failure with its last line of output."""
    try:
        done = subprocess.run(
            command,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise Failure(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        output = (done.stderr or done.stdout).strip() or f"ended with {done.returncode}"
        raise Failure(output.splitlines()[-1])


def from_ensurepip(python: Path) -> None:
    """Unpack the pip that Python itself carries."""
    run(python, "-I", "-m", "ensurepip", "--default-pip")


def from_system_pip(python: Path) -> None:
    """Let the pip of the Python we run on install one into the environment (pip 22.3 and later)."""
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "pip")


def from_index(python: Path) -> None:
    """Fetch one pip wheel from the package index, check its digest, and let it install itself."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = Path(folder, PIP_WHEEL)
        wheel.write_bytes(fetch_wheel())
        run(python, "-m", "pip", "install", "--quiet", "--no-index", wheel, PYTHONPATH=str(wheel))


def fetch_wheel() -> bytes:
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/") + "/pip/"
    try:
        with urllib.request.urlopen(index, timeout=30) as page:
            match = re.search(rf'href="([^"#]*/{re.escape(PIP_WHEEL)})', page.read().decode())
        if match is None:
            raise Failure(f"{index} does not list {PIP_WHEEL}")
        with urllib.request.urlopen(urllib.parse.urljoin(index, match[1]), timeout=60) as file:
            content: bytes = file.read()
    except OSError as error:
        raise Failure(f"{index}: {error}") from None
    if hashlib.sha256(content).hexdigest() != PIP_SHA256:
        raise Failure(f"{match[1]} does not have the digest it should have")
    return content


WAYS: tuple[tuple[str, Callable[[Path], None]], ...] = (
    ("python3 -m ensurepip", from_ensurepip),
    ("the system's pip", from_system_pip),
    ("a pip wheel from the package index", from_index),
)


def has_pip(python: Path) -> bool:
    try:
        run(python, "-I", "-m", "pip", "--version")
    except Failure:
        return False
    return True


def install_pip(python: Path) -> None:
    reasons = []
    for name, way in WAYS:
        try:
            way(python)
        except Failure as reason:
            reasons.append(f"  {name}: {reason}")
        else:
            return
    sys.exit(
        "\n".join([f"{python.parent.parent}: no way to get pip into the environment:", *reasons])
        + "\nOn Debian and Ubuntu `apt-get install python3-venv` helps; VENV= names one that has pip."
    )


def make(directory: Path) -> None:
    python = directory / "bin" / "python"
    if has_pip(python):
        return
    print(f"making a virtual environment of Python {sys.version.split()[0]} in {directory}", flush=True)
    try:
        venv.create(directory, symlinks=True)
    except OSError as error:
        sys.exit(f"{directory}: {error.strerror}; VENV=DIRECTORY puts the environment elsewhere")
    install_pip(python)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: environment.py DIRECTORY")
    make(Path(sys.argv[1]).absolute())


if __name__ == "__main__":
    main()
