"""The programs behind the external engines: where they are, and how each wants to be called."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from .failure import unsupported

#: Ordinary users rarely have these in PATH, and Debian's runc is in one of them.
_SYSTEM_PATHS = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin")
#: Name → options before the command. The shim places and limits containers itself, so neither program may: crun can be
#: told so, runc goes without a cgroup where it is "rootless" and may not make one.
_OPTIONS: dict[str, tuple[str, ...]] = {
    "crun": ("--cgroup-manager=disabled",),
    "runc": ("--rootless=true",),
}
NAMES = tuple(_OPTIONS)


class Tool(NamedTuple):
    """An OCI runtime on this machine."""

    name: str
    path: str

    def command(self, state: str, log: str, *arguments: str) -> list[str]:
        """The argument vector of a command (create, start); ``state`` is a directory, ``log`` gets JSON lines."""
        return [self.path, *_OPTIONS[self.name], f"--root={state}", f"--log={log}", "--log-format=json", *arguments]

    def version(self) -> str:
        """What it says of itself, ``crun version 1.8.1``; "" if it cannot be run."""
        import subprocess  # not at the top: the shim would carry it along

        try:
            done = subprocess.run(
                [self.path, "--version"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
            )  # fmt: skip
        except OSError:
            return ""
        return done.stdout.partition("\n")[0].strip()


@cache
def find(name: str) -> Tool:
    """The program for the engine ``name``. Raises :class:`Failure` (UnsupportedFeature) if there is none."""
    if name not in _OPTIONS:
        raise unsupported(f"engine {name}", "there is no such engine", f"use native, {' or '.join(NAMES)}")
    for directory in _directories():
        path = f"{directory}/{name}"
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return Tool(name, path)
    raise unsupported(f"engine {name}", f"the program {name} is not installed",
                      f"install it (apt install {name}), or use the native engine")  # fmt: skip


def _directories() -> Sequence[str]:
    return tuple(dict.fromkeys((*(path for path in os.get_exec_path() if path), *_SYSTEM_PATHS)))
