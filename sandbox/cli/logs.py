"""``sandbox logs``: what a container has written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sandbox.cli import console, find
from sandbox.cli.options import Command, Given, Option, UsageError

if TYPE_CHECKING:
    from sandbox._output import LogRecord

COMMAND = Command(
    "logs", "POD[/CONTAINER]", "Show what a container has written to its standard output and error.",
    (
        Option("follow", "Go on until the container ends", "f"),
        Option("tail", "Show only so many last lines", "n", "LINES"),
        Option("timestamps", "Begin each line with its time (UTC)", "t"),
    ),
    (
        ("sandbox logs shop/db", "all that was kept of it"),
        ("sandbox logs -f -n 10 pod-1f2e", "the last lines, and those to come"),
    ),
    "Its standard error goes to ours. `sandbox run` keeps no logs: what it runs writes to your terminal itself.",
)  # fmt: skip


def main(given: Given) -> int:
    """Print the lines."""
    operand = given.one_operand("a pod")
    tail = given["tail"]
    if tail is not None and not tail.isdecimal():
        raise UsageError(f"--tail={tail}: not a number of lines")
    with find.container(operand) as container:
        seen = list(container.log_records())
        skip = max(len(seen) - int(tail), 0) if tail is not None else 0
        records = container.log_records(follow=True) if given["follow"] else iter(seen)
        for position, record in enumerate(records):
            if position >= skip:
                _print(record, timestamps=bool(given["timestamps"]))
    return 0


def _print(record: LogRecord, *, timestamps: bool) -> None:
    line = f"{_stamp(record.time) if timestamps else ''}{record.line}\n"
    if record.stream == "stderr":
        os.write(2, line.encode("utf-8", "surrogateescape"))
    else:
        console.write(line)


def _stamp(seconds: float) -> str:
    import datetime as dt

    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec='milliseconds')} "
