"""Command line options, and the ini values of the same names for those that suit a project."""

from __future__ import annotations

import os
from typing import NamedTuple

import pytest

_ENGINES = ("native", "crun", "runc")
_CGROUPS = ("auto", "systemd", "cgroupfs", "none")
_SYSTEMD = ("auto", "system", "user", "private", "off")
_KEEP = ("never", "failed")
_PULL = ("always", "missing", "never")


class Settings(NamedTuple):
    """What was chosen for this run."""

    #: What starts containers: ``native``, ``crun`` or ``runc``.
    engine: str
    #: Who gives the cgroups.
    cgroups: str
    #: Which systemd manager gives scopes.
    systemd: str
    #: ``failed``: a test's pod is not removed while somebody looks at why it failed.
    keep: str
    #: Seconds a container may take to become ready if it does not say itself; None: the library's default.
    ready_timeout: float | None
    #: How many log lines of each container the report of a failed test shows.
    log_lines: int
    #: When registries are asked for images: ``always`` (once in a run), ``missing`` or ``never``.
    pull: str
    #: The file that says what names of images mean; None: there is none.
    lock: str | None


def add(parser: pytest.Parser) -> None:
    """Declare them."""
    group = parser.getgroup("sandbox", "pods for tests (pytest-sandbox)")
    group.addoption(
        "--sandbox-engine", choices=_ENGINES, default=None,
        help="what starts containers (default: $SANDBOX_ENGINE, or ini sandbox_engine, or native)",
    )  # fmt: skip
    group.addoption(
        "--sandbox-cgroups", choices=_CGROUPS, default=None,
        help="who gives cgroups, which limits rest on; none: no limits "
             "(default: $SANDBOX_CGROUPS, or ini sandbox_cgroups, or auto)",
    )  # fmt: skip
    group.addoption(
        "--sandbox-systemd", choices=_SYSTEMD, default=None,
        help="which systemd manager holds pods in its scopes: the system's, the user's, a private one, none "
             "(default: $SANDBOX_SYSTEMD, or ini sandbox_systemd, or auto)",
    )  # fmt: skip
    group.addoption(
        "--sandbox-keep", choices=_KEEP, default="never",
        help="failed: keep the pod of a failed test, at a terminal until Enter is pressed, elsewhere until the run "
             "ends, so that `sandbox exec` can look into it (default: never)",
    )  # fmt: skip
    group.addoption(
        "--sandbox-ready-timeout", "--sandbox-start-timeout", type=float, default=None, metavar="SECONDS",
        help="how long containers that do not say so themselves may take to become ready "
             "(default: ini sandbox_ready_timeout, or 60)",
    )  # fmt: skip
    group.addoption(
        "--sandbox-log-lines", type=int, default=None, metavar="N",
        help="log lines of each container in the report of a failed test (default: ini sandbox_log_lines, or 50)",
    )  # fmt: skip
    group.addoption(
        "--sandbox-pull", choices=_PULL, default=None,
        help="when a registry is asked for an image: always (once in a run), missing (if it is not in the store), never "
             "(default: $SANDBOX_PULL, or ini sandbox_pull, or missing)",
    )  # fmt: skip
    group.addoption(
        "--sandbox-lock", default=None, metavar="FILE",
        help="the file that pins images, made by `sandbox lock`; none: go without "
             "(default: $SANDBOX_LOCK, or sandbox.lock in the root directory if it is there)",
    )  # fmt: skip
    parser.addini("sandbox_engine", f"what starts containers: {', '.join(_ENGINES)}", default="")
    parser.addini("sandbox_cgroups", f"who gives cgroups: {', '.join(_CGROUPS)}", default="")
    parser.addini("sandbox_systemd", f"which systemd manager holds pods: {', '.join(_SYSTEMD)}", default="")
    parser.addini("sandbox_pull", f"when a registry is asked for an image: {', '.join(_PULL)}", default="")
    parser.addini("sandbox_ready_timeout", "seconds that containers may take to become ready", default="")
    parser.addini("sandbox_log_lines", "log lines of each container in the report of a failed test", default="")


def read(config: pytest.Config) -> Settings:
    """The settings of a run: option, else environment, else ini file, else default. Raises UsageError."""
    timeout = _number(config, "sandbox_ready_timeout")
    if timeout is not None and not 0 < timeout < float("inf"):
        raise pytest.UsageError(f"sandbox_ready_timeout: must be more than 0 seconds, not {timeout:g}")
    lines = _number(config, "sandbox_log_lines")
    if lines is not None and (lines < 0 or lines != int(lines)):
        raise pytest.UsageError(f"sandbox_log_lines: must be a number of lines, not {lines:g}")
    return Settings(
        engine=_choice(config, "sandbox_engine", _ENGINES, "native"),
        cgroups=_choice(config, "sandbox_cgroups", _CGROUPS, "auto"),
        systemd=_choice(config, "sandbox_systemd", _SYSTEMD, "auto"),
        keep=config.getoption("sandbox_keep"), ready_timeout=timeout, log_lines=50 if lines is None else int(lines),
        pull=_choice(config, "sandbox_pull", _PULL, "missing"), lock=_lock(config),
    )  # fmt: skip


def _choice(config: pytest.Config, name: str, choices: tuple[str, ...], default: str) -> str:
    given = {
        f"--{name.replace('_', '-')}": config.getoption(name),
        f"${name.upper()}": os.environ.get(name.upper()),
        f"ini value {name}": config.getini(name),
    }
    where, value = next(((where, value) for where, value in given.items() if value), ("", default))
    if value not in choices:
        raise pytest.UsageError(f"{where}: there is no {value!r}; choose from {', '.join(choices)}")
    return str(value)


def _lock(config: pytest.Config) -> str | None:
    """The file of pinned images. One that was asked for has to be there."""
    given = config.getoption("sandbox_lock") or os.environ.get("SANDBOX_LOCK")
    if given == "none":
        return None
    path = config.rootpath / (given or "sandbox.lock")
    if given and not path.is_file():
        raise pytest.UsageError(f"there is no file {path}; `sandbox lock IMAGE...` makes one")
    return str(path) if path.is_file() else None


def _number(config: pytest.Config, name: str) -> float | None:
    value = config.getoption(name)
    if value is None:
        value = config.getini(name) or None
    try:
        return None if value is None else float(value)
    except ValueError:
        raise pytest.UsageError(f"ini value {name}: {value!r} is not a number") from None
