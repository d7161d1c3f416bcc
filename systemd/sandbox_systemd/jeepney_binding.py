"""The :class:`~sandbox_systemd.bus.Bus` over jeepney: its messages, our own reading and waiting.

jeepney's own connection says Hello, which a manager's private socket does not understand, and serves one thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from array import array
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from jeepney import DBusAddress, HeaderFields, Message, MessageType, new_method_call
from jeepney.io.blocking import prep_socket

from . import errors
from .bus import SYSTEMD, TIMEOUT, Address, Pending, Signal, Subscription, Variant, match_rule, types
from .frames import SIGNAL, Frame, Frames
from .waiting import Waiting

_DBUS = ("/org/freedesktop/DBus", "org.freedesktop.DBus")
_CHUNK = 65536
#: Seconds that what has come in may lie there before somebody reads it who does not wait for it.
_UNREAD = 0.05
#: Descriptors that one message may bring (SCM_MAX_FD of the kernel).
_MOST_FDS = 253


class JeepneyBus(Waiting):
    """A connection over jeepney."""

    binding = "jeepney"

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._socket = _authenticated(address)
        self._frames = Frames()
        self._fds: list[Any] = []
        self._serials = count(1)
        self._sending = threading.Lock()
        # Whoever waits reads for everybody; the others sleep until there is news or nobody reads.
        self._being_read = False
        self._replies: dict[int, Message] = {}
        self._wanted: set[int] = set()
        self._subscriptions: list[Subscription] = []
        threading.Thread(target=self._drain, args=(os.dup(self._socket.fileno()),), name="sandbox-dbus", daemon=True).start()
        if address.message_bus:
            self.call(*_DBUS, "Hello", destination="org.freedesktop.DBus")

    def begin(
        self, path: str, interface: str, member: str, signature: str = "", arguments: Sequence[Any] = (), *,
        destination: str = SYSTEMD,
    ) -> Pending:  # fmt: skip
        """Send a method call."""
        message = new_method_call(
            DBusAddress(path, destination, interface), member, signature or None, tuple(arguments)
        )  # fmt: skip
        if not self.address.message_bus:
            del message.header.fields[HeaderFields.destination]
        with self._sending:
            serial = next(self._serials)
            fds = array("i")
            data = message.serialise(serial=serial, fds=fds)
            with self._news:
                self._wanted.add(serial)
            try:
                self._send(data, fds)
            except OSError as error:
                self._forget(serial)
                raise self._broken(error) from error
        return _Pending(self, serial, f"{interface}.{member}")

    def _send(self, data: bytes, fds: array[int]) -> None:
        sent = socket.send_fds(self._socket, [data], list(fds)) if fds else self._socket.send(data)
        if sent < len(data):
            self._socket.sendall(data[sent:])

    def subscribe(
        self, path: str | None, interface: str, member: str, handler: Callable[[Signal], None] | None = None
    ) -> Subscription:  # fmt: skip
        """Signals of this kind from now on."""
        subscription = Subscription(self, path, interface, member, handler, self._unsubscribe)
        with self._news:
            self._subscriptions.append(subscription)
        if self.address.message_bus:
            self.call(*_DBUS, "AddMatch", "s", (match_rule(subscription),), destination="org.freedesktop.DBus")
        return subscription

    def _unsubscribe(self, subscription: Subscription) -> None:
        with self._news:
            if subscription not in self._subscriptions:
                return
            self._subscriptions.remove(subscription)
        if self.address.message_bus and self._lost is None:
            with contextlib.suppress(errors.SystemdError):
                self.call(*_DBUS, "RemoveMatch", "s", (match_rule(subscription),), destination="org.freedesktop.DBus")

    def _rest(self, timeout: float | None) -> None:
        if self._being_read:
            super()._rest(timeout)
        else:
            self._read(timeout)

    def _read(self, timeout: float | None) -> None:
        """Receive once, for everybody; called with the lock held, which is given up meanwhile."""
        self._being_read = True
        self._news.release()
        data, failure = b"", None
        fds: list[int] = []
        try:
            poller = select.poll()
            poller.register(self._socket, select.POLLIN)
            if poller.poll(None if timeout is None else timeout * 1000):
                data, fds, _, _ = socket.recv_fds(self._socket, _CHUNK, _MOST_FDS)
                failure = None if data else "the other end closed the connection"
        except (OSError, ValueError) as error:
            failure = str(error)
        finally:
            self._news.acquire()
            self._being_read = False
            if failure is not None:
                self._lost = self._lost or failure
            elif data:
                self._take(data, fds)
            self._news.notify_all()

    def _drain(self, fd: int) -> None:
        """Read what nobody waits for.

        A manager sends its own socket's connections every signal of every unit. Where more than a thousand of them lie in its
        queue, because one connection is not read, it tells nobody of any change any more: not us, and not anybody else.
        """
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        try:
            while self._lost is None:
                poller.poll()
                with self._news:
                    # As a rule somebody waits for it, who shall not have to wait for us.
                    over = self._news.wait_for(lambda: self._lost is not None, _UNREAD)
                    if not over and not self._being_read:
                        self._read(0)
        finally:
            os.close(fd)

    def _take(self, data: bytes, fds: list[int]) -> None:
        from jeepney.fds import FileDescriptor

        self._fds += [FileDescriptor(fd) for fd in fds]
        self._frames.add(data)
        while (frame := self._frames.next()) is not None:
            if frame.kind == SIGNAL:
                self._dispatch_signal(frame)
            else:
                self._dispatch_reply(self._whole(frame))

    def _whole(self, frame: Frame) -> Message:
        message = Message.from_buffer(frame.data, fds=self._fds)
        del self._fds[: message.header.fields.get(HeaderFields.unix_fds, 0)]
        return message

    def _dispatch_reply(self, message: Message) -> None:
        if message.header.message_type in (MessageType.method_return, MessageType.error):
            serial = message.header.fields[HeaderFields.reply_serial]
            if serial in self._wanted:
                self._wanted.discard(serial)
                self._replies[serial] = message

    def _dispatch_signal(self, frame: Frame) -> None:
        for subscription in list(self._subscriptions):
            if frame.has(subscription.needles):
                path = subscription.path or Message.from_buffer(frame.data).header.fields[HeaderFields.path]
                subscription.deliver(Signal(
                    path, subscription.interface, subscription.member, lambda: values_of(Message.from_buffer(frame.data)),
                    frame,
                ))  # fmt: skip

    def take_reply(self, serial: int) -> Message | None:
        """The reply to a call, once; None as long as it is not there."""
        return self._replies.pop(serial, None)

    def _forget(self, serial: int) -> None:
        with self._news:
            self._wanted.discard(serial)
            self._replies.pop(serial, None)

    def _broken(self, error: OSError) -> errors.ConnectionLost:
        self._lost = self._lost or str(error)
        return errors.ConnectionLost(error.strerror or str(error), operation="talk to", object=self._name)

    def close(self) -> None:
        """End the connection; whoever waits is told that it is lost."""
        self._lose("the connection was closed")
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class _Pending:
    def __init__(self, bus: JeepneyBus, serial: int, what: str) -> None:
        self._bus, self._serial, self._what = bus, serial, what

    def result(self, timeout: float | None = TIMEOUT) -> tuple[Any, ...]:
        """The reply's values."""
        try:
            message = self._bus.wait_for(lambda: self._bus.take_reply(self._serial), timeout)
        except errors.BusTimeout as error:
            self._bus._forget(self._serial)  # noqa: SLF001 - its own call
            error.detail = f"no answer to {self._what} within {timeout:g} s"
            raise
        values = values_of(message)
        if message.header.message_type is MessageType.error:
            text = values[0] if values and isinstance(values[0], str) else ""
            raise errors.from_reply(message.header.fields[HeaderFields.error_name], text)
        return values


def values_of(message: Message) -> tuple[Any, ...]:
    """The body, with variants told from structs; descriptors are the caller's to close."""
    signature = message.header.fields.get(HeaderFields.signature, "")
    return tuple(_plain(kind, value) for kind, value in zip(types(signature), message.body, strict=True))


def _plain(kind: str, value: Any) -> Any:
    """Jeepney's value of type ``kind`` in our terms."""
    if kind == "v":
        return Variant(value[0], _plain(value[0], value[1]))
    if kind == "h":
        return value.to_raw_fd()
    if kind.startswith("a{"):
        key, item = types(kind[2:-1])
        return {_plain(key, k): _plain(item, v) for k, v in value.items()}
    if kind.startswith("a") and kind != "ay":
        return [_plain(kind[1:], item) for item in value]
    if kind.startswith("("):
        return tuple(_plain(part, item) for part, item in zip(types(kind[1:-1]), value, strict=True))
    return bytes(value) if kind == "ay" else value


def _authenticated(address: Address) -> socket.socket:
    try:
        made: socket.socket = prep_socket(address.path, enable_fds=True)
        return made
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise errors.NoBus(
            "nobody listens there", operation="connect to", object=address.path.replace("\0", "@", 1),
            cause=os.strerror(error.errno or 0),
        ) from None  # fmt: skip
    except PermissionError as error:
        raise errors.AccessDenied(
            os.strerror(error.errno or 0), operation="connect to", object=address.path
        ) from None  # fmt: skip
    except TimeoutError as error:
        raise errors.BusTimeout(str(error), operation="connect to", object=address.path) from None
    except Exception as error:
        raise errors.NoBus(
            f"it did not let us in: {error}", operation="connect to", object=address.path
        ) from error  # fmt: skip
