"""``sandbox doctor``: what this machine can do, what is missing, what that would give, and how to get it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.cli import console
from sandbox.cli.options import Command, Given, Option

if TYPE_CHECKING:
    from sandbox.cli.checks import Check

COMMAND = Command(
    "doctor", "", "Tell what this machine can do, and what is missing for the rest.",
    (Option("json", "Print JSON instead of a table"),),
    (
        ("sandbox doctor", "for people"),
        ("sandbox doctor --json | jq '.checks[] | select(.ok | not)'", "what is missing, for programs"),
    ),
    "Everything is tried out, not looked up. The exit status is 0 if containers can run here, else 1.",
)  # fmt: skip


def main(given: Given) -> int:
    """Print the findings."""
    given.no_operands()
    from sandbox.cli.checks import all_checks, container

    checks = [*all_checks(), container()]
    works = all(check.ok for check in checks if check.name == "a container")
    if given["json"]:
        import json

        console.write(json.dumps({"ok": works, "checks": [check._asdict() for check in checks]}, indent=2) + "\n")
    else:
        console.write(_text(checks, works=works))
    return 0 if works else 1


def _text(checks: list[Check], *, works: bool) -> str:
    rows = [("ok" if check.ok else "missing", check.name, _explain(check)) for check in checks]
    verdict = "Containers can run here." if works else f"Containers cannot run here: {_culprit(checks)}."
    return f"{console.columns(rows, indent='')}\n\n{console.bold(verdict)}\n"


def _explain(check: Check) -> str:
    if check.ok:
        return f"{check.found}; gives {check.gives}" if check.gives else check.found
    gives = f"would give {check.gives}" if check.gives else ""
    return "; ".join(part for part in (check.found, gives, check.remedy) if part)


def _culprit(checks: list[Check]) -> str:
    return next(check.name for check in checks if check.required and not check.ok)
