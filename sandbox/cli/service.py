"""``sandbox service``: run a command as a hardened systemd service, report what is open to one, find what one needs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sandbox.cli import console
from sandbox.cli.options import Command, Given, Option, UsageError, number

if TYPE_CHECKING:
    from sandbox.services import Exposure, RunningService
    from sandbox.services.settings import Assignment

_PROPERTY = Option("property", "Set a property of the unit", "p", "NAME=VALUE", many=True)
_WHERE = (
    Option("image", "Use this image's root directory, read-only", "", "IMAGE"),
    Option("env", "Set a variable", "e", "NAME=VALUE", many=True),
    Option("workdir", "Start it there (/)", "w", "DIR"),
    Option("manager", "Use `system`, `user` or `private`", "", "NAME"),
)  # fmt: skip
_PROFILE = "default, offline, network-client, network-server, strict or none"

RUN = Command(
    "service run", "[--] COMMAND...", "Run a command as a transient systemd service, shut in by a profile.",
    (
        Option("profile", "Take these properties (default)", "", "NAME"), _PROPERTY, *_WHERE,
        Option("best-effort", "Go without what the manager cannot enforce"),
        Option("timeout", "Kill it after this time, exit with 124", "", "SECONDS"),
        Option("usage", "Tell on standard error what it has used"),
    ),
    (
        ("sandbox service run id", "with the profile `default`"),
        ("sandbox service run --profile strict sort < in", "no network, no user, no files"),
        ("sandbox service run -p MemoryMax=64M -- ./daemon", "any property of systemd-run's -p"),
    ),
    f"Profiles: {_PROFILE}. It has our standard streams, and signals are\n"
    "passed on. The exit status is the command's own; 128+n if signal n ended it, 127 if there is no such command, 126 if it\n"
    "cannot be executed, 125 if it was not started for any other reason, 124 if its time was up.",
)  # fmt: skip

REPORT = Command(
    "service report", "[UNIT-FILE]", "Tell what is still open to a service, from its properties alone.",
    (
        Option("profile", "The properties of this profile", "", "NAME"), _PROPERTY,
        Option("all", "Also list what is closed", "a"),
        Option("threshold", "Exit with 1 if the exposure is above this", "", "0-10"),
        Option("json", "Print JSON instead of a table"),
    ),
    (
        ("sandbox service report --profile strict", "what does it leave open?"),
        ("sandbox service report -p PrivateNetwork=yes shop.service", "and with that in addition?"),
    ),
    "Items and figures are those of `systemd-analyze security`; neither systemd nor the service has to be there.",
)  # fmt: skip

FIND = Command(
    "service find", "[--] COMMAND...", "Find the strictest properties under which a command passes, as a drop-in.",
    (
        Option("property", "A property that it always has", "p", "NAME=VALUE", many=True), *_WHERE,
        Option("timeout", "A run that takes longer has failed (60)", "", "SECONDS"),
        Option("jobs", "Run so many at a time (1)", "j", "N"),
        Option("verbose", "Tell of each try", "v"),
    ),
    (
        ("sandbox service find -- ./daemon --self-test", "what does it need?"),
        ("sandbox service find -w . -- pytest tests/x.py::test_y", "what does a test need?"),
        ("sandbox service find -p User=www -- ./x > /etc/systemd/system/x.service.d/50-strict.conf", ""),
    ),
    "The command is run some tens of times, and must do the same each time.",
)  # fmt: skip

_ACTIONS = {"run": RUN, "report": REPORT, "find": FIND}


def main(arguments: list[str]) -> int:
    """Run one of the three and return the exit status."""
    word = arguments[0] if arguments else ""
    if word in {"-h", "--help"}:
        console.write("\n".join(command.help() for command in _ACTIONS.values()))
        return 0
    if word not in _ACTIONS:
        raise UsageError(f"expected run, report or find{f', not `{word}`' if word else ''}")
    try:
        return _ACTIONS[word].run({"run": _run, "report": _report, "find": _find}[word], arguments[1:])
    except Exception as error:
        from sandbox.cli import failures

        status = failures.report(error, f"service {word}")
        if status is None:
            raise
        return status


def _command(given: Given) -> list[str]:
    if not given.operands:
        raise UsageError("expected a command")
    return given.operands


def _profile(given: Given) -> str | None:
    return {None: "default", "none": None}.get(given["profile"], given["profile"])


def _environment(given: Given) -> dict[str, str]:
    """``NAME=VALUE``, or the value that NAME has here."""
    pairs = (item.partition("=") for item in given["env"])
    return {name: value if equals else os.environ.get(name, "") for name, equals, value in pairs}


def _fields(given: Given) -> dict[str, Any]:
    return {"image": given["image"], "env": _environment(given) or None, "cwd": given["workdir"],
            "manager": given["manager"]}  # fmt: skip


# -- run ------------------------------------------------------------------------------------------------------------


class _End:
    """What an Attendant waits for: the end of a service, as the shim tells of a container's."""

    def __init__(self, running: RunningService) -> None:
        self._running = running

    def fileno(self) -> int:
        return self._running.fileno()

    def answer(self) -> tuple[dict[str, Any], list[int]]:
        return {"returncode": self._running.wait()}, []


def _run(given: Given) -> int:
    command, timeout = _command(given), number(given["timeout"], "timeout")
    from sandbox.cli.attend import Attendant, Program, Signals, status_of
    from sandbox.cli.streams import standard_streams
    from sandbox.errors import TimeoutExpired
    from sandbox.services import start_service

    with Signals() as signals, standard_streams(interactive=True) as (stdin, stdout, stderr):
        running = start_service(
            command, profile=_profile(given), lines=given["property"], stdin=stdin, stdout=stdout, stderr=stderr,
            best_effort=bool(given["best-effort"]), **_fields(given),
        )  # fmt: skip
        with running:
            program = Program(_End(running), running.send_signal, running.kill)
            try:
                Attendant(program, signals, None, timeout=timeout, patience=10.0).wait()
            except TimeoutError:
                raise TimeoutExpired(running.args, timeout or 0, operation="service run") from None
            _tell(running, usage=bool(given["usage"]))
            return status_of(running.wait())


def _tell(running: RunningService, *, usage: bool) -> None:
    if running.oom_killed:
        console.complain("sandbox: out of memory: the kernel killed a process of it because of the memory limit")
    if usage:
        from sandbox.services.words import summary

        console.complain(f"sandbox: {summary(running)}")


# -- report ---------------------------------------------------------------------------------------------------------


def _report(given: Given) -> int:
    from sandbox.services import exposure

    report = exposure(_assignments(given))
    limit = number(given["threshold"], "threshold")
    if given["json"]:
        console.write(json.dumps(_document(report), indent=2) + "\n")
    else:
        console.write(_table(report, everything=bool(given["all"])))
    return int(limit is not None and report.percent > limit * 10)


def _assignments(given: Given) -> list[Assignment]:
    """Of a unit file, a profile, and those given; the later ones come on top, as in drop-ins."""
    from sandbox.services import read_unit
    from sandbox.services.profiles import profile
    from sandbox.services.settings import split_assignment

    if len(given.operands) > 1:
        raise UsageError(f"unexpected `{given.operands[1]}`")
    found = read_unit(given.operands[0]) if given.operands else []
    if given["profile"] not in {None, "none"}:
        found += profile(given["profile"]).assignments()
    return found + [split_assignment(line) for line in given["property"]]


def _table(report: Exposure, *, everything: bool) -> str:
    shown = [finding for finding in report.findings if finding.badness is not None] if everything else report.open
    rows = [(_mark(finding.closed), finding.name, "" if finding.closed else f"{report.share(finding) / 10:.1f}",
             f"{'no process of it ' if finding.closed else ''}{finding.text}")
            for finding in sorted(shown, key=lambda finding: -finding.points)]  # fmt: skip
    total = f"exposure: {report.percent / 10:.1f} {report.level}"
    table = console.table(("", "PROPERTY", "EXPOSURE", "A PROCESS OF IT"), rows) + "\n" if rows else ""
    return f"{table}{console.bold(total)} ({len(report.open)} of {len(report.findings)} open)\n"


def _mark(closed: bool) -> str:
    return "✓" if closed else "✗"


def _document(report: Exposure) -> Mapping[str, Any]:
    return {
        "exposure": report.percent / 10, "level": report.level,
        "items": [{"name": item.name, "closed": None if item.badness is None else item.closed,
                   "exposure": report.share(item) / 10, "text": item.text} for item in report.findings],
    }  # fmt: skip


# -- find -----------------------------------------------------------------------------------------------------------


def _find(given: Given) -> int:
    command, timeout, jobs = _command(given), number(given["timeout"], "timeout"), number(given["jobs"], "jobs")
    from sandbox.services import find
    from sandbox.services.settings import split_assignment

    told = console.complain if given["verbose"] else None
    found = find(
        command, timeout=60.0 if timeout is None else timeout, jobs=int(jobs or 1), told=told,
        keep=dict(split_assignment(line) for line in given["property"]), **_fields(given),
    )  # fmt: skip
    console.write(found.drop_in())
    return 0
