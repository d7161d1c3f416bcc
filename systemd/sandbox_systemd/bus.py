"""The D-Bus as far as it takes to talk to systemd: :class:`Bus` is the Protocol, :func:`connect` picks a binding.

Two bindings keep it: ``pydbus`` (GLib's D-Bus, what distributions ship as python3-pydbus) and ``jeepney`` (pure Python).
They are used for connections, messages and signals only: objects that are made by introspection cost 40 ms and
tell nothing new about an interface as stable as systemd's.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol, Self, TypeVar

from .errors import BusTimeout, NoBus
from .frames import Frame, needle

__all__ = [
    "BINDINGS",
    "MANAGER_PATH",
    "PROPERTIES",
    "SYSTEMD",
    "Address",
    "Bus",
    "Pending",
    "Signal",
    "Subscription",
    "Variant",
    "available_bindings",
    "connect",
    "system_address",
    "types",
    "user_address",
]

SYSTEMD = "org.freedesktop.systemd1"
MANAGER_PATH = "/org/freedesktop/systemd1"
PROPERTIES = "org.freedesktop.DBus.Properties"
#: Seconds until a call counts as unanswered; what libdbus and sd-bus take.
TIMEOUT = 25.0
#: Seconds until a manager that was greeted is greeted again.
_GREETING = 0.002
#: In the order of preference.
BINDINGS = ("pydbus", "jeepney")

T = TypeVar("T")


class Variant(NamedTuple):
    """A D-Bus variant: a value and its type.

    Values are plain Python: int, bool, float, str, bytes for ``ay``, list, tuple for structs, dict.

    >>> Variant("t", 64 << 20)
    Variant(signature='t', value=67108864)
    """

    signature: str
    value: Any


class Signal:
    """A signal that came in. Its body is read when somebody looks at it."""

    __slots__ = ("_body", "_frame", "_read", "interface", "member", "path")

    def __init__(
        self, path: str, interface: str, member: str, read: Callable[[], tuple[Any, ...]], frame: Frame | None = None
    ) -> None:
        self.path = path
        self.interface = interface
        self.member = member
        self._read = read
        self._frame = frame
        self._body: tuple[Any, ...] | None = None

    @property
    def body(self) -> tuple[Any, ...]:
        """Its values."""
        if self._body is None:
            self._body = self._read()
        return self._body

    @property
    def first(self) -> Any:
        """The first value, a string: of PropertiesChanged, the interface. Costs less than the body."""
        return self.body[0] if self._frame is None else self._frame.first

    def mentions(self, *texts: str) -> bool:
        """False if none of these is anywhere in the body; a quick look, that may be True for nothing."""
        return self._frame is None or any(self._frame.mentions(text.encode()) for text in texts)


class Address(NamedTuple):
    """Where a bus listens: a socket, and whether it is a message bus or a manager's own (private) socket."""

    path: str
    message_bus: bool = True


class Pending(Protocol):
    """A call on its way."""

    def result(self, timeout: float | None = TIMEOUT) -> tuple[Any, ...]:
        """The reply's values. Raises the error reply's class, :class:`BusTimeout` or :class:`ConnectionLost`."""
        ...


class Bus(Protocol):
    """A connection. Safe to use from any thread."""

    #: ``jeepney`` or ``pydbus``.
    binding: str
    address: Address

    def begin(
        self, path: str, interface: str, member: str, signature: str = "", arguments: Sequence[Any] = (), *,
        destination: str = SYSTEMD,
    ) -> Pending:  # fmt: skip
        """Send a method call. ``h`` arguments are file descriptors; they may be closed when this has returned."""
        ...

    def call(
        self, path: str, interface: str, member: str, signature: str = "", arguments: Sequence[Any] = (), *,
        destination: str = SYSTEMD, timeout: float | None = TIMEOUT,
    ) -> tuple[Any, ...]:  # fmt: skip
        """Send a method call and wait for its reply's values."""
        ...

    def subscribe(
        self, path: str | None, interface: str, member: str, handler: Callable[[Signal], None] | None = None
    ) -> Subscription:  # fmt: skip
        """Signals of this kind from now on, to ``handler`` (in whichever thread reads) or to be fetched.

        ``path`` None: of every object.
        """
        ...

    def wait_for(self, ready: Callable[[], T | None], timeout: float | None) -> T:
        """Receive until ``ready`` returns something. Raises :class:`BusTimeout` or :class:`ConnectionLost`."""
        ...

    def close(self) -> None:
        """End the connection; may be called again."""
        ...


class Subscription:
    """Signals that were asked for."""

    def __init__(
        self, bus: Bus, path: str | None, interface: str, member: str, handler: Callable[[Signal], None] | None,
        end: Callable[[Subscription], None],
    ) -> None:  # fmt: skip
        self._bus, self._end = bus, end
        self.path, self.interface, self.member = path, interface, member
        self._needles = tuple(needle(text) for text in (path, interface, member) if text)
        self._queue: deque[Signal] = deque()
        self._handler = handler or self._queue.append

    def wants(self, signal: Signal) -> bool:
        """True if it is of the kind that was asked for."""
        kind = (signal.interface, signal.member)
        return (self.interface, self.member) == kind and self.path in (None, signal.path)

    @property
    def needles(self) -> tuple[bytes, ...]:
        """What is found in the header of a message that :meth:`wants` it."""
        return self._needles

    def deliver(self, signal: Signal) -> None:
        """It came in."""
        self._handler(signal)

    def get(self, timeout: float | None = TIMEOUT) -> Signal:
        """The next one. Raises :class:`BusTimeout` or :class:`ConnectionLost`."""
        return self._bus.wait_for(lambda: self._queue.popleft() if self._queue else None, timeout)

    def close(self) -> None:
        """No more of them."""
        self._end(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def match_rule(subscription: Subscription) -> str:
    """What a message bus is told about it (D-Bus specification, "Match Rules")."""
    path = f",path='{subscription.path}'" if subscription.path else ""
    return f"type='signal',interface='{subscription.interface}',member='{subscription.member}'{path}"


def types(signature: str) -> Iterator[str]:
    """The complete types of a signature, one after another.

    >>> list(types("sa(sv)a{sv}ay"))
    ['s', 'a(sv)', 'a{sv}', 'ay']
    """
    start = 0
    while start < len(signature):
        end = _end_of_type(signature, start)
        yield signature[start:end]
        start = end


def _end_of_type(signature: str, start: int) -> int:
    if signature[start] == "a":
        return _end_of_type(signature, start + 1)
    depth = 0
    for index in range(start, len(signature)):
        depth += (signature[index] in "({") - (signature[index] in ")}")
        if depth == 0:
            return index + 1
    raise ValueError(f"not a D-Bus signature: {signature!r}")


def system_address() -> Address:
    """The system bus (sd_bus_open_system(3))."""
    return Address(_unix_path(os.environ.get("DBUS_SYSTEM_BUS_ADDRESS")) or "/run/dbus/system_bus_socket")


def user_address() -> Address:
    """The bus of this user. Raises :class:`NoBus` if nothing says where it is."""
    given = _unix_path(os.environ.get("DBUS_SESSION_BUS_ADDRESS"))
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    if given is None and not os.path.exists(f"{runtime}/bus"):
        raise NoBus("there is no bus of this user", operation="find", object=f"{runtime}/bus",
                    hint="install dbus-user-session, and log in through logind (or `loginctl enable-linger`)")  # fmt: skip
    return Address(given or f"{runtime}/bus")


def _unix_path(addresses: str | None) -> str | None:
    """The first unix socket in a list of D-Bus addresses; an abstract one begins with a NUL byte."""
    for address in (addresses or "").split(";"):
        transport, _, rest = address.partition(":")
        keys = dict(pair.split("=", 1) for pair in rest.split(",") if "=" in pair)
        if transport == "unix" and ("path" in keys or "abstract" in keys):
            return keys.get("path") or f"\0{keys['abstract']}"
    return None


def available_bindings() -> dict[str, str | None]:
    """Each binding and why it cannot be used here; None if it can."""
    needs = {"pydbus": ("pydbus", "gi"), "jeepney": ("jeepney",)}
    missing = {name: [module for module in modules if find_spec(module) is None] for name, modules in needs.items()}
    return {name: f"{', '.join(modules)} cannot be imported" if modules else None for name, modules in missing.items()}


def connect(address: Address, binding: str | None = None) -> Bus:
    """A connection to ``address``.

    :param binding: ``pydbus`` or ``jeepney``; by default ``$SANDBOX_DBUS``, else the first that can be imported
    :raises NoBus: nobody listens there, or the binding is not there
    """
    wanted = binding or os.environ.get("SANDBOX_DBUS") or None
    found = available_bindings()
    if wanted is not None and wanted not in found:
        raise NoBus("there is no such binding", operation="use D-Bus through", object=wanted,
                    hint=f"known: {', '.join(BINDINGS)}")  # fmt: skip
    usable = [name for name in BINDINGS if found[name] is None and wanted in (None, name)]
    if not usable:
        raise NoBus("it is not installed", operation="use D-Bus through", object=wanted or " or ".join(BINDINGS),
                    cause="; ".join(f"{name}: {why}" for name, why in found.items() if why),
                    hint="pip install jeepney, or apt install python3-pydbus")  # fmt: skip
    bus = _first(usable, address)
    if not address.message_bus:
        try:
            _greet(bus)
        except BaseException:
            bus.close()
            raise
    return bus


def _first(usable: list[str], address: Address) -> Bus:
    """Through the first binding that can really be imported.

    The GObject introspection of Debian 12 warns while it is imported by Python 3.11, which fails where warnings are
    errors (pytest's filterwarnings).
    """
    *preferred, last = usable
    for binding in preferred:
        with contextlib.suppress(ImportError, Warning):
            return _bus(binding, address)
    return _bus(last, address)


def _bus(binding: str, address: Address) -> Bus:
    if binding == "pydbus":
        from .pydbus_binding import PydbusBus

        return PydbusBus(address)
    from .jeepney_binding import JeepneyBus

    return JeepneyBus(address)


def _greet(bus: Bus) -> None:
    """Call until something is answered.

    What a manager has read together with the end of the authentication, it looks at when it reads again, not before.
    """
    deadline, patience = time.monotonic() + TIMEOUT, _GREETING
    while True:
        try:
            bus.call("/", "org.freedesktop.DBus.Peer", "Ping", timeout=patience)
            return
        except BusTimeout:
            if time.monotonic() > deadline:
                raise
            patience = min(patience * 2, 1.0)
