"""What the models are checked with: converters that name the class, field and value; an immutable mapping.

A converter here is an ordinary function from what people write to what is stored; it raises
:class:`ValueError` or
:class:`TypeError`, and :func:`checked` turns that into a :class:`~sandbox.errors.ModelError` with the
field's name.
Converters accept their own results, so that ``attrs.evolve`` works.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Hashable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any, TypeVar

import attrs

from sandbox._units import UNLIMITED, parse_int
from sandbox.errors import ModelError

K = TypeVar("K")
V = TypeVar("V")

#: NAME_MAX of Linux file systems; names here become directory names.
MAX_NAME = 63
#: HOST_NAME_MAX, see sethostname(2).
MAX_HOSTNAME = 64
#: PATH_MAX including the terminating NUL.
MAX_PATH = 4095

#: The resource limits of setrlimit(2), lower case and without RLIMIT_.
RLIMITS = frozenset({
    "as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss",
    "rtprio", "rttime", "sigpending", "stack",
})  # fmt: skip

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?", re.ASCII)
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", re.ASCII)
_USER = re.compile(r"[^\s:/\0]+(:[^\s:/\0]+)?")
_SYSCTL = re.compile(r"[a-z0-9_]+([./][A-Za-z0-9_-]+)+", re.ASCII)

#: The sysctls that belong to a namespace: all others would change the host (see sysctl sources and
#: namespaces(7)).
_NAMESPACED = re.compile(
    r"net\..+|fs\.mqueue\..+|user\.max_.+|kernel\.(msg(max|mnb|mni)|msg_next_id|sem|sem_next_id|"
    r"shm(all|max|mni|_next_id|_rmid_forced)|domainname|hostname)"
)


class FrozenDict(Mapping[K, V]):
    """A mapping that cannot change: hashable (if its values are), picklable, equal to a dict of its items."""

    __slots__ = ("_items",)

    _items: dict[K, V]

    def __init__(self, items: Mapping[K, V] | Iterable[tuple[K, V]] = ()) -> None:
        object.__setattr__(self, "_items", dict(items))

    def __getitem__(self, key: K) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    # Those of Mapping would do, and take several times as long; models are full of mappings.
    def keys(self) -> KeysView[K]:
        return self._items.keys()

    def values(self) -> ValuesView[V]:
        return self._items.values()

    def items(self) -> ItemsView[K, V]:
        return self._items.items()

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, FrozenDict):
            return self._items == other._items
        return self._items == other

    def __repr__(self) -> str:
        return repr(self._items)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed")

    def __or__(self, other: Mapping[K, V]) -> FrozenDict[K, V]:
        return FrozenDict({**self._items, **other})

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (self._items,)


def freeze(value: Any) -> Any:
    """A JSON-like value with tuples for lists and :class:`FrozenDict` for mappings, all the way down."""
    if isinstance(value, Mapping):
        return FrozenDict({key: freeze(item) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return tuple(freeze(item) for item in value)
    if not isinstance(value, Hashable):
        raise TypeError(f"cannot hold a {type(value).__name__}")
    return value


def thaw(value: Any) -> Any:
    """The opposite of :func:`freeze`: plain dicts and lists, as :mod:`json` writes them."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [thaw(item) for item in value]
    return value


def named_errors(cls: type, fields: list[attrs.Attribute[Any]]) -> list[attrs.Attribute[Any]]:
    """What a converter raises becomes a ModelError with the field's name; a field_transformer for attrs."""
    return [
        field.evolve(converter=_checked(cls.__name__, field.name, field.converter, field.default))
        if field.converter
        else field
        for field in fields
    ]


def _checked(class_name: str, name: str, convert: Any, default: Any) -> Callable[[Any], Any]:
    """Most fields of most models are left out, so a default is not converted each time: it is written as it is stored."""
    usual = object() if default is attrs.NOTHING else default
    assert default is attrs.NOTHING or convert(default) == default

    def run(value: Any) -> Any:
        if value is usual:
            return value
        try:
            return convert(value)
        except ModelError:
            raise  # of a model inside this one: already exact
        except (ValueError, TypeError) as error:
            raise ModelError(str(error), class_name=class_name, field=name, value=value) from None

    return run


def model_error(
    instance: object, field: str, value: object, detail: str, hint: str | None = None
) -> ModelError:
    """The error for a field of ``instance``."""
    return ModelError(detail, class_name=type(instance).__name__, field=field, value=value, hint=hint)


def text(value: str) -> str:
    """A string a C program can take: no NUL."""
    if not isinstance(value, str):
        raise TypeError("expected a string")
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    return value


def flag(value: bool) -> bool:
    """A truth value; strings such as "no" would be true by accident."""
    if not isinstance(value, bool):
        raise TypeError("expected True or False")
    return value


def choice(value: str, *choices: str) -> str:
    """A string out of a few."""
    if value not in choices:
        raise ValueError(f"expected one of {', '.join(repr(item) for item in choices)}")
    return value


def name(value: Any) -> str:
    """A name that can be a directory, a cgroup and a host name: letters, digits, ``-`` and ``_`` inside."""
    if not isinstance(value, str) or len(value) > MAX_NAME or _NAME.fullmatch(value) is None:
        raise ValueError(
            f"expected 1 to {MAX_NAME} letters, digits, '-' or '_', starting and ending with neither sign"
        )
    return value


def hostname(value: str) -> str:
    """A host name: letters, digits, ``-`` and ``.``."""
    if not isinstance(value, str):
        raise TypeError("expected a host name")
    if len(value) > MAX_HOSTNAME:
        raise ValueError(f"a host name has at most {MAX_HOSTNAME} characters (see sethostname(2))")
    if _HOSTNAME.fullmatch(value) is None:
        raise ValueError("not a host name; use letters, digits, '-' and '.'")
    return value


def absolute(value: str | os.PathLike[str]) -> str:
    """An absolute path without ``..``: where something is in a container."""
    path = any_path(value)
    if not path.startswith("/"):
        raise ValueError("must be an absolute path")
    if ".." in path.split("/"):
        raise ValueError("must not contain '..'")
    return "/" + "/".join(part for part in path.split("/") if part not in {"", "."})


def any_path(value: str | os.PathLike[str]) -> str:
    """A path, as text."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError("expected a path")
    path = os.fspath(value)
    if not isinstance(path, str):
        raise TypeError("expected a path as text, not bytes")
    if not path or len(os.fsencode(path)) > MAX_PATH:
        raise ValueError(f"a path has 1 to {MAX_PATH} bytes")
    return text(path)


def host_path(value: str | os.PathLike[str]) -> str:
    """A path on the host, made absolute now: what a declaration means must not change with a later chdir."""
    path = any_path(value)
    return (
        path if path.startswith("/") else os.path.join(os.getcwd(), path)
    )  # not abspath(): ".." after a link


def words(value: str | Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """A command line: words, or one string that is split as a shell would (but no shell ever runs)."""
    if isinstance(value, str):
        import shlex

        return tuple(shlex.split(text(value)))
    return tuple(_word(item) for item in _iterable(value))


def _word(value: Any) -> str:
    if isinstance(value, str):
        return text(value)
    return text(os.fspath(value)) if isinstance(value, os.PathLike) else text(value)


def _iterable(value: Any) -> Iterable[Any]:
    if isinstance(value, (list, tuple)):
        return value  # nearly always; to ask abstract classes takes longer than all the rest
    if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
        raise TypeError("expected a list")
    return value


def texts(value: str | Iterable[str]) -> tuple[str, ...]:
    """Strings; a single one may stand alone."""
    return (text(value),) if isinstance(value, str) else tuple(text(item) for item in _iterable(value))


def names(value: str | Iterable[str]) -> tuple[str, ...]:
    """Names, see :func:`name`; a single one may stand alone."""
    return tuple(name(item) for item in texts(value))


def host_paths(value: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Paths on the host; a single one may stand alone."""
    if isinstance(value, (str, os.PathLike)):
        return (host_path(value),)
    return tuple(host_path(item) for item in _iterable(value))


def absolutes(value: Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Absolute paths in a container."""
    if isinstance(value, str):
        raise TypeError("expected a list of paths")
    return tuple(absolute(item) for item in _iterable(value))


def pairs(value: Any, separator: str = "=") -> dict[str, Any]:
    """The items of a mapping, or of a list of ``"key=value"`` strings."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, str):
        raise TypeError(f"expected a mapping or a list of 'key{separator}value' strings")
    split = [text(item).partition(separator) for item in _iterable(value)]
    if not all(mark for _, mark, _ in split):
        raise ValueError(f"expected 'key{separator}value' strings")
    return {key: item for key, _, item in split}


def environment(value: Mapping[str, Any] | Iterable[str]) -> FrozenDict[str, str]:
    """Environment variables; numbers and paths as values become text."""
    return FrozenDict({_variable(key): _value(key, item) for key, item in pairs(value).items()})


def _variable(key: str) -> str:
    if not text(key) or "=" in key:
        raise ValueError(f"{key!r} cannot be the name of an environment variable")
    return key


def _value(key: str, item: Any) -> str:
    if isinstance(item, (int, float)) and not isinstance(item, bool):
        return str(item)
    if not isinstance(item, (str, os.PathLike)):
        raise TypeError(f"the value of {key!r} must be a string, a number or a path")
    return _word(item)


def labels(value: Mapping[str, str] | Iterable[str]) -> FrozenDict[str, str]:
    """Free-form string pairs."""
    return FrozenDict({text(key): text(item) for key, item in pairs(value).items()})


def user(value: Any) -> str:
    """``1000``, ``"name"``, ``"1000:100"`` or ``"name:group"``."""
    if isinstance(value, int):
        return str(parse_int(value, 0, 2**32 - 2))  # the last id means "none" to chown(2)
    if not isinstance(value, str) or len(value) > 2 * MAX_NAME or _USER.fullmatch(value) is None:
        raise ValueError("expected a user such as 1000, 'name', '1000:100' or 'name:group'")
    for part in value.split(":"):
        if part.lstrip("+-").isdecimal():
            parse_int(part, 0, 2**32 - 2)
    return value


def groups(value: Iterable[str | int]) -> tuple[str, ...]:
    """Groups by name or number."""
    if isinstance(value, (str, int)):
        raise TypeError("expected a list of groups")
    found = tuple(user(item) for item in _iterable(value))
    if any(":" in item for item in found):
        raise ValueError("expected groups by name or number")
    return found


def ulimits(value: Mapping[str, Any] | Iterable[str]) -> FrozenDict[str, tuple[int, int]]:
    """Resource limits as (soft, hard), -1 for none, from numbers, pairs or docker's ``"soft:hard"``."""
    return FrozenDict({_rlimit(key): _soft_hard(key, item) for key, item in pairs(value).items()})


def _rlimit(key: str) -> str:
    found = text(key).lower().removeprefix("rlimit_").removeprefix("limit")
    if found not in RLIMITS:
        raise ValueError(f"there is no limit {key!r}; known: {', '.join(sorted(RLIMITS))}")
    return found


def _soft_hard(key: str, value: Any) -> tuple[int, int]:
    parts = (
        value.split(":") if isinstance(value, str) else value if isinstance(value, (tuple, list)) else [value]
    )
    limits = [_limit(part) for part in parts]
    if len(limits) not in {1, 2}:
        raise ValueError(f"{key!r} takes one limit or a (soft, hard) pair")
    soft, hard = limits[0], limits[-1]
    if hard != UNLIMITED and (soft == UNLIMITED or soft > hard):
        raise ValueError(f"the soft limit of {key!r} is above the hard one")
    return soft, hard


def _limit(value: Any) -> int:
    if value in {"unlimited", "infinity", "max", "-1"} or value == UNLIMITED:
        return UNLIMITED
    return parse_int(value, 0, 2**63 - 1)


def sysctls(value: Mapping[str, Any] | Iterable[str]) -> FrozenDict[str, str]:
    """Kernel parameters of the pod's own namespaces, by dotted name."""
    return FrozenDict({_sysctl(key): _value(key, item) for key, item in pairs(value).items()})


def _sysctl(key: str) -> str:
    if _SYSCTL.fullmatch(text(key)) is None:
        raise ValueError(f"{key!r} is not the name of a sysctl")
    # sysctl(8): with "/" as separator, a "." belongs to the name (an interface eth0.1) and is swapped
    dotted = key.translate({ord("/"): ".", ord("."): "/"}) if "/" in key.partition(".")[0] else key
    if _NAMESPACED.fullmatch(dotted) is None:
        raise ValueError(f"{key!r} belongs to no namespace: it would change the host")
    return dotted


def hosts(value: Mapping[str, str] | Iterable[str]) -> FrozenDict[str, str]:
    """Lines for /etc/hosts: name → address; also docker's ``"name:address"``."""
    return FrozenDict({hostname(key): _address(item) for key, item in pairs(value, ":").items()})


def _address(value: str) -> str:
    import ipaddress

    return str(ipaddress.ip_address(text(value).strip("[]")))


def short_repr(self: Any) -> str:
    """The repr of a model: what differs from the defaults, so that a failing test's report stays readable."""
    shown = []
    for field in attrs.fields(type(self)):
        value = getattr(self, field.name)
        if field.repr and (field.default is attrs.NOTHING or value != _default(field)):
            shown.append(f"{field.name}={value!r}")
    return f"{type(self).__name__}({', '.join(shown)})"


def _default(field: attrs.Attribute[Any]) -> Any:
    factory = getattr(field.default, "factory", None)
    return factory() if factory else field.default
