"""Programs to run in containers, written in the host's Python."""

from __future__ import annotations

#: A program of the host; what runs the tests may lie in a home, which containers do not see.
PYTHON = "/usr/bin/python3"
#: From the event to the news of it, in seconds. The budget is 5 ms; tests share their machine with others.
SOON = 0.05

PRELUDE = "import os, signal, socket, sys, time\n"
NOTIFY = PRELUDE + """
def notify(text):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.sendto(text.encode(), "\\0" + os.environ["NOTIFY_SOCKET"][1:])
"""


def program(code: str, **values: object) -> list[str]:
    return [PYTHON, "-I", "-S", "-c", code.format(**values) if values else code]
