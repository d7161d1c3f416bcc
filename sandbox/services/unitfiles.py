"""The unit files that come with us: what would be written where, and writing it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import attrs

from sandbox.errors import SandboxError

__all__ = ["UnitFile", "system_directory", "unit_files", "user_directory", "write"]

_FOR_ALL = ("sandbox.slice", "sandbox@.service")
#: Only root can say what the managers of users get.
_FOR_SYSTEM = ("user@.service.d/50-sandbox-delegate.conf",)


@attrs.frozen
class UnitFile:
    """A file to be written.

    >>> [file.path.name for file in unit_files(user=True, directory=Path("/x"))]
    ['sandbox.slice', 'sandbox@.service']
    """

    path: Path
    content: str

    @property
    def present(self) -> str | None:
        """What is there now; None if there is nothing."""
        try:
            return self.path.read_text("utf-8", "surrogateescape")
        except FileNotFoundError:
            return None

    @property
    def state(self) -> str:
        """``new``, ``unchanged`` or ``different``."""
        present = self.present
        return "new" if present is None else "unchanged" if present == self.content else "different"


def system_directory() -> Path:
    """Where an administrator's units belong (systemd.unit(5))."""
    return Path("/etc/systemd/system")


def user_directory() -> Path:
    """Where a user's own units belong."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home, "systemd", "user")


def unit_files(*, user: bool = False, directory: Path | None = None) -> list[UnitFile]:
    """Our unit files, made out for this installation.

    :param user: for this user's manager, not the system's
    :param directory: where they go, instead of where the manager looks first
    """
    top = directory or (user_directory() if user else system_directory())
    values = {
        "@SANDBOX@": f"{_quoted(sys.executable)} -m sandbox.cli",
        "@WANTED_BY@": "default.target" if user else "multi-user.target",
    }
    names = _FOR_ALL if user else _FOR_ALL + _FOR_SYSTEM
    return [UnitFile(top / name, _filled(_source(name), values)) for name in names]


def _source(name: str) -> str:
    from importlib.resources import files

    return files("sandbox_systemd").joinpath("units", name).read_text("utf-8")


def _filled(text: str, values: dict[str, str]) -> str:
    for mark, value in values.items():
        text = text.replace(mark, value)
    return text


def _quoted(path: str) -> str:
    """As one word of a command line in a unit file (systemd.syntax(7))."""
    escaped = path.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$").replace('"', '\\"')
    return f'"{escaped}"' if escaped != path or any(char.isspace() for char in path) else path


def write(file: UnitFile, *, replace: bool = False) -> None:
    """Write one file, whole or not at all.

    :param replace: also if something else is there
    :raises SandboxError: something else is there, or it cannot be written
    """
    try:
        different = file.state == "different"
    except OSError as error:
        raise _refused(file, error) from error
    if different and not replace:
        raise SandboxError(
            "it is there, with other content", operation="write unit", path=file.path,
            hint="look at the difference with `sandbox install-units --dry-run`, then say --replace",
        )  # fmt: skip
    partial = file.path.with_name(f".{file.path.name}.{os.getpid()}")
    try:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(file.content, "utf-8")
            partial.chmod(0o644)
            partial.rename(file.path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise _refused(file, error) from error


def _refused(file: UnitFile, error: OSError) -> SandboxError:
    return SandboxError(operation="write unit", path=file.path, errno=error.errno,
                        hint="run it as root, or with --user for your own manager")  # fmt: skip
