"""Socket activation: run by systemd before the service itself, gives our listening sockets to the manager for it.

``python -I -S activation.py SOCKET``: takes descriptors and their names from the process that listens at SOCKET (a path), and
stores them with the manager (sd_notify(3), FDSTORE=1). The manager passes what it has stored to the service's command as
LISTEN_FDS (sd_listen_fds(3)), so that command runs as it would under a socket unit, however closed in. Standard library only.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys

#: Descriptors that one message can carry (SCM_MAX_FD of the kernel).
MOST = 253
#: Seconds that the manager may take to store them.
_PATIENCE = 10.0


def main(path: str) -> None:
    """Fetch and store."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as giver:
        giver.connect(path)
        data, fds, _, _ = socket.recv_fds(giver, 65536, MOST)
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    address = os.environ["NOTIFY_SOCKET"]
    manager.connect(f"\0{address[1:]}" if address.startswith("@") else address)
    # What was stored last is passed on first (systemd 252); names tell for sure.
    for name, fd in reversed(list(zip(json.loads(data), fds, strict=True))):
        # Without FDPOLL=0 the manager would drop a socket whose other end hangs up.
        socket.send_fds(manager, [f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0".encode()], [fd])
    _barrier(manager)


def _barrier(manager: socket.socket) -> None:
    """Stay until the manager has read it all: whom a message came from is looked up by our process id."""
    read_end, write_end = os.pipe()
    socket.send_fds(manager, [b"BARRIER=1"], [write_end])
    os.close(write_end)
    poller = select.poll()
    poller.register(read_end, 0)  # POLLHUP: the manager has closed its copy
    if not poller.poll(_PATIENCE * 1000):
        sys.exit("the manager does not answer")


if __name__ == "__main__":
    main(sys.argv[1])
