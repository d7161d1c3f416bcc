"""What the kernel tells of sockets and network devices (netdevice(7), sock_diag(7))."""

from __future__ import annotations

import fcntl
import socket
import struct
from typing import NamedTuple

from .constants import IFF_UP, SIOCGIFFLAGS, SIOCSIFFLAGS

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST_DUMP = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_TCP_LISTEN, _TCP_CLOSE = 10, 7
_HEADER = struct.Struct("=IHHII")


class Endpoint(NamedTuple):
    """A local address in the socket table: ``127.0.0.1``, ``::`` … and the port."""

    address: str
    port: int


def loopback_up() -> None:
    """Bring up ``lo`` in the caller's network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("=16sH22x", b"lo", 0)
        (flags,) = struct.unpack_from("=H", fcntl.ioctl(sock, SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("=16sH22x", b"lo", flags | IFF_UP))


def diag_socket_arguments() -> tuple[int, int, int]:
    """(family, type, protocol) of the socket that :func:`bound_endpoints` asks; it answers for its own namespace."""
    return socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG


def bound_endpoints(sock: socket.socket, protocol: str = "tcp") -> set[Endpoint]:
    """The addresses on which someone listens (``tcp``) or is bound (``udp``), IPv4 and IPv6, in ``sock``'s namespace."""
    number, state = {"tcp": (socket.IPPROTO_TCP, _TCP_LISTEN), "udp": (socket.IPPROTO_UDP, _TCP_CLOSE)}[protocol]
    found: set[Endpoint] = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        body = struct.pack("=BBBxI48x", family, number, 0, 1 << state)
        sock.send(_HEADER.pack(16 + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0) + body)
        while not _collect(sock.recv(65536), family, found):
            pass
    return found


def _collect(data: bytes, family: int, found: set[Endpoint]) -> bool:
    """Add the sockets of one netlink message to ``found``; true at the end of the dump."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if kind == _NLMSG_DONE:
            return True
        if kind == _NLMSG_ERROR:
            # An IPv6-less kernel answers so for AF_INET6: nobody listens there.
            return True
        (port,) = struct.unpack_from("!H", data, offset + 20)
        size = 4 if family == socket.AF_INET else 16
        found.add(Endpoint(socket.inet_ntop(family, data[offset + 24 : offset + 24 + size]), port))
        offset += (length + 3) & ~3
    return False
