"""The :class:`~sandbox_systemd.bus.Bus` over pydbus, that is GLib's D-Bus (Gio.DBusConnection).

GLib delivers replies and signals to the main loop of the thread that asked; a thread of ours runs one, and asks.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Sequence
from typing import Any

from pydbus.bus import Gio

from . import errors
from .bus import SYSTEMD, TIMEOUT, Address, Pending, Signal, Subscription, Variant, types
from .waiting import Waiting

from gi.repository import GLib  # isort: skip - pydbus chooses the versions

#: GLib waits for ever; we have time-outs of our own.
_FOR_EVER = 2147483647
#: Seconds in which somebody who listens has to let us in.
_AUTHENTICATION = 2.0


class PydbusBus(Waiting):
    """A connection over pydbus."""

    binding = "pydbus"

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._ids: dict[Subscription, int] = {}
        self._context = GLib.MainContext.new()
        self._loop = GLib.MainLoop.new(self._context, False)
        self._thread = threading.Thread(target=self._serve, name="sandbox-dbus", daemon=True)
        self._thread.start()
        try:
            # In that thread, because a connection tells its end where it was made.
            self._connection = self._in_loop(lambda: self._connected_here(address))
        except BaseException:
            self._loop.quit()
            raise

    def _connected_here(self, address: Address) -> Any:
        connection = _connected(address)
        connection.set_exit_on_close(False)  # by default GLib ends the process when the bus goes away
        connection.connect("closed", self._closed)
        return connection

    def _serve(self) -> None:
        self._context.push_thread_default()
        try:
            self._loop.run()
        finally:
            self._context.pop_thread_default()

    def _in_loop(self, function: Callable[[], Any]) -> Any:
        """Call ``function`` in the thread of the main loop, and wait for what it returns."""
        done = threading.Event()
        outcome: list[Any] = []

        def run(*_: Any) -> bool:
            try:
                outcome.append(function())
            except BaseException as error:  # noqa: BLE001 - it is raised where somebody waits for it
                outcome.append(error)
            done.set()
            return False

        source = GLib.idle_source_new()
        source.set_priority(GLib.PRIORITY_HIGH)
        source.set_callback(run)
        source.attach(self._context)
        done.wait()
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    def _closed(self, _connection: Any, _vanished: bool, error: Any) -> None:
        self._lose(error.message if error is not None else "the other end closed the connection")

    def begin(
        self, path: str, interface: str, member: str, signature: str = "", arguments: Sequence[Any] = (), *,
        destination: str = SYSTEMD,
    ) -> Pending:  # fmt: skip
        """Send a method call."""
        if self._lost is not None:
            raise errors.ConnectionLost(self._lost, operation="talk to", object=self._name)
        fds = Gio.UnixFDList.new()
        values = zip(types(signature), arguments, strict=True)
        body = GLib.Variant.new_tuple(*(_packed(kind, value, fds) for kind, value in values)) if signature else None
        pending = _Pending(self, f"{interface}.{member}")
        receiver = destination if self.address.message_bus else None
        self._in_loop(lambda: self._connection.call_with_unix_fd_list(
            receiver, path, interface, member, body, None, Gio.DBusCallFlags.NONE, _FOR_EVER, fds, None, pending.arrived,
        ))  # fmt: skip
        return pending

    def subscribe(
        self, path: str | None, interface: str, member: str, handler: Callable[[Signal], None] | None = None
    ) -> Subscription:  # fmt: skip
        """Signals of this kind from now on."""
        subscription = Subscription(self, path, interface, member, handler, self._unsubscribe)

        def came(_con: Any, _sender: Any, origin: str, source: str, name: str, body: Any, *_: Any) -> None:
            with self._news:
                subscription.deliver(Signal(origin, source, name, lambda: _values(body, None)))
                self._news.notify_all()

        self._ids[subscription] = self._in_loop(lambda: self._connection.signal_subscribe(
            None, interface, member, path, None, Gio.DBusSignalFlags.NONE, came
        ))  # fmt: skip
        return subscription

    def _unsubscribe(self, subscription: Subscription) -> None:
        number = self._ids.pop(subscription, None)
        if number is not None and self._loop.is_running():
            self._in_loop(lambda: self._connection.signal_unsubscribe(number))

    def arrived(self, store: Callable[[], None]) -> None:
        """Something that somebody may wait for is about to be stored."""
        with self._news:
            store()
            self._news.notify_all()

    def close(self) -> None:
        """End the connection; whoever waits is told that it is lost."""
        self._lose("the connection was closed")
        if self._thread.is_alive():
            self._in_loop(lambda: self._connection.close(None, None))
            self._loop.quit()
            if self._thread is not threading.current_thread():
                self._thread.join()


class _Pending:
    def __init__(self, bus: PydbusBus, what: str) -> None:
        self._bus, self._what = bus, what
        self._outcome: tuple[Any, ...] | errors.SystemdError | None = None

    def arrived(self, connection: Any, answer: Any) -> None:
        """The reply is there (Gio.AsyncReadyCallback)."""
        outcome: tuple[Any, ...] | errors.SystemdError
        try:
            body, fds = connection.call_with_unix_fd_list_finish(answer)
            outcome = _values(body, fds)
        except GLib.Error as error:
            outcome = _error(error)

        def store() -> None:
            self._outcome = outcome

        self._bus.arrived(store)

    def result(self, timeout: float | None = TIMEOUT) -> tuple[Any, ...]:
        """The reply's values."""
        try:
            outcome: Any = self._bus.wait_for(lambda: self._outcome, timeout)
        except errors.BusTimeout as error:
            error.detail = f"no answer to {self._what} within {timeout:g} s"
            raise
        if not isinstance(outcome, tuple):
            raise outcome
        return outcome


def _error(error: Any) -> errors.SystemdError:
    name = Gio.DBusError.get_remote_error(error)
    if name is not None:
        return errors.from_reply(name, error.message.partition(f"{name}: ")[2] or error.message)
    if error.matches(Gio.io_error_quark(), Gio.IOErrorEnum.TIMED_OUT):
        return errors.BusTimeout(error.message)
    return errors.ConnectionLost(error.message)


def _packed(kind: str, value: Any, fds: Any) -> Any:
    """``value`` as a GVariant of type ``kind``."""
    if kind == "v":
        return GLib.Variant.new_variant(_packed(value[0], value[1], fds))
    if kind == "h":
        return GLib.Variant.new_handle(fds.append(value))
    if kind.startswith("a{"):
        key, item = types(kind[2:-1])
        entries = [GLib.Variant.new_dict_entry(_packed(key, k, fds), _packed(item, v, fds)) for k, v in dict(value).items()]
        return GLib.Variant.new_array(GLib.VariantType.new(kind[1:]), entries)
    if kind.startswith("a"):
        items = [_packed(kind[1:], item, fds) for item in value]  # of bytes, too: iterating gives numbers
        return GLib.Variant.new_array(GLib.VariantType.new(kind[1:]), items)
    if kind.startswith("("):
        parts = zip(types(kind[1:-1]), value, strict=True)
        return GLib.Variant.new_tuple(*(_packed(part, item, fds) for part, item in parts))
    return GLib.Variant(kind, value)


def _values(body: Any, fds: Any) -> tuple[Any, ...]:
    return tuple(_plain(body.get_child_value(index), fds) for index in range(body.n_children()))


def _plain(variant: Any, fds: Any) -> Any:
    """A GVariant in our terms."""
    kind = variant.get_type_string()
    children = (variant.get_child_value(index) for index in range(variant.n_children())) if kind[0] in "av({" else ()
    if kind == "v":
        inner = variant.get_variant()
        return Variant(inner.get_type_string(), _plain(inner, fds))
    if kind == "h":
        return fds.get(variant.get_handle())
    if kind.startswith("a{"):
        pairs = ((child.get_child_value(0), child.get_child_value(1)) for child in children)
        return {_plain(key, fds): _plain(value, fds) for key, value in pairs}
    if kind == "ay" or kind[0] not in "a(":
        return bytes(variant.unpack()) if kind == "ay" else variant.unpack()
    return (list if kind[0] == "a" else tuple)(_plain(child, fds) for child in children)


def _connected(address: Address) -> Any:
    """A connection of our own, not GLib's shared one: who closes that closes it for everybody in the process."""
    path = address.path
    name = path.replace("\0", "@", 1)
    if not path.startswith("\0"):
        try:
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                raise FileNotFoundError(0, "not a socket")
        except PermissionError as error:
            raise errors.AccessDenied(error.strerror or "", operation="connect to", object=name) from None
        except OSError as error:
            raise errors.NoBus(
                "nobody listens there", operation="connect to", object=name, cause=error.strerror
            ) from None  # fmt: skip
    text = f"unix:abstract={path[1:]}" if path.startswith("\0") else f"unix:path={path}"
    flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT
    if address.message_bus:
        flags |= Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
    patience = Gio.Cancellable.new()
    timer = threading.Timer(_AUTHENTICATION, patience.cancel)
    timer.start()
    try:
        return Gio.DBusConnection.new_for_address_sync(text, flags, None, patience)
    except GLib.Error as error:
        if patience.is_cancelled():
            raise errors.BusTimeout(
                f"no answer within {_AUTHENTICATION:g} s", operation="connect to", object=name
            ) from None  # fmt: skip
        if error.matches(Gio.io_error_quark(), Gio.IOErrorEnum.PERMISSION_DENIED):
            raise errors.AccessDenied(error.message, operation="connect to", object=name) from None
        raise errors.NoBus("nobody listens there", operation="connect to", object=name, cause=error.message) from None
    finally:
        timer.cancel()
