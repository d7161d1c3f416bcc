"""The command ``sandbox``: see :func:`main`. Every subcommand has a module of its own, imported when it is used."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]

#: subcommand → (its module, its row in the overview).
COMMANDS = {
    "run": ("run", "IMAGE [COMMAND...]", "Run a command in a container of its own"),
    "up": ("up", "FILE", "Start the pod that a file describes"),
    "exec": ("exec", "POD COMMAND...", "Run a command in a running container"),
    "build": ("build", "CONTEXT", "Build an image from a Dockerfile"),
    "ps": ("ps", "", "List running pods and their containers"),
    "logs": ("logs", "POD", "Show what a container has written"),
    "inspect": ("inspect", "POD|IMAGE", "Print specs and states as JSON"),
    "pull": ("pull", "IMAGE...", "Fetch images from their registries"),
    "push": ("push", "IMAGE [NAME]", "Send an image to a registry"),
    "lock": ("lock", "[IMAGE...]", "Pin what names of images mean, in sandbox.lock"),
    "images": ("images", "", "List the images of the store"),
    "tag": ("tag", "IMAGE NAME...", "Give an image another name"),
    "rm": ("rm", "IMAGE...", "Remove images from the store"),
    "history": ("history", "IMAGE", "Show how an image came to be"),
    "save": ("save", "IMAGE...", "Write images into one file"),
    "load": ("load", "[FILE]", "Take images in from a file"),
    "unpack": ("unpack", "IMAGE DIR", "Write an image's files into a directory"),
    "bundle": ("bundle", "IMAGE DIR", "Make a bundle for crun, runc and others"),
    "du": ("du", "", "Show what the store takes on disk"),
    "prune": ("prune", "", "Remove what nothing refers to"),
    "service": ("service", "run|report|find", "Run a command as a hardened systemd service"),
    "install-units": ("install_units", "", "Write our unit files to where systemd looks"),
    "doctor": ("doctor", "", "Tell what this machine can do, and why not"),
}

_EXAMPLES = (
    ("sandbox run host id", "this machine's programs, nothing of its data"),
    ("sandbox run -it -m 256M dir:./rootfs sh", "a shell, with a memory limit"),
    ("sandbox COMMAND --help", "options and examples of a command"),
)


def main(arguments: list[str] | None = None) -> int:
    """Run ``sandbox`` with ``arguments`` (those of the process by default) and return its exit status.

    0 if all went well; ``run`` and ``exec`` return the program's own status, 128+n for signal n, 127 if there is no
    such program, 126 if it cannot be executed, 124 if its time was up. Errors of this command itself: 125 for ``run``
    and ``exec``, 2 for wrong usage of the others, 1 for the rest.
    """
    _open_standard_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except BrokenPipeError:
        from sandbox.cli import console

        console.hush()
        return 141  # as a shell reports SIGPIPE
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        from sandbox.cli import failures

        status = failures.report(error, words[0])
        if status is None:
            raise
        return status


def _open_standard_streams() -> None:
    """What was closed becomes /dev/null, lest the next file or socket that is opened pass for a standard stream."""
    while (fd := os.open("/dev/null", os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def _dispatch(arguments: list[str]) -> int:
    from importlib import import_module

    from sandbox.cli import console

    word = arguments[0] if arguments else "--help"
    if word in {"--help", "-h", "help"}:
        console.write(_overview())
        return 0 if arguments else 2
    if word in {"--version", "version"}:
        from sandbox._version import __version__

        console.write(f"sandbox {__version__}\n")
        return 0
    if word not in COMMANDS:
        console.complain(f"sandbox: there is no command `{word}`; see `sandbox --help`")
        return 2
    module = import_module(f"sandbox.cli.{COMMANDS[word][0]}")
    command = getattr(module, "COMMAND", None)  # `service` has several
    status: int = module.main(arguments[1:]) if command is None else command.run(module.main, arguments[1:])
    return status


def _overview() -> str:
    from sandbox.cli import console

    rows = [(f"{name} {operands}".strip(), text) for name, (_, operands, text) in COMMANDS.items()]
    return "\n\n".join((
        "sandbox COMMAND [OPTIONS...]",
        console.bold("Run programs in containers: no daemon, no root, milliseconds."),
        "Commands:\n" + console.columns(rows),
        "Options:\n" + console.columns([("-h --help", "Show this help"), ("   --version", "Show the version")]),
        "Examples:\n" + console.columns(_EXAMPLES),
    )) + "\n"  # fmt: skip
