"""From JSON to the classes of this package and back, without loss. All hooks are registered here.

A document's members are fields; the name in JSON is the field's name in camel case, or what its metadata says under
``"json"``. What a class has no field for goes to its ``extra`` mapping, as does an explicit ``null``: a field that is
``None`` means that the member is absent. So absent, null and empty stay three different things.
"""

from __future__ import annotations

import functools
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs
import cattrs

from sandbox.errors import SpecError

T = TypeVar("T")
Structure = Callable[[Any, Any], Any]

#: Members with a plain name read better after a dot.
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


class Misfit(Exception):
    """A value that is not what the specification says; ``path`` grows on the way out."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.path: list[str] = []


def member(name: str) -> Any:
    """Metadata for a field whose name in JSON is not its own in camel case."""
    return {"json": name}


def json_name(field: attrs.Attribute[Any]) -> str:
    """What the field is called in a document."""
    if "json" in field.metadata:
        return str(field.metadata["json"])
    first, *others = field.name.split("_")
    return first + "".join(word.capitalize() for word in others)


@functools.cache
def converter() -> cattrs.Converter:
    """The converter of all OCI documents."""
    made = cattrs.Converter(detailed_validation=False)
    for kind, words in ((str, "a string"), (bool, "true or false"), (int, "a whole number")):
        made.register_structure_hook(kind, _exactly(kind, words))
    made.register_structure_hook_func(lambda kind: kind is Any, lambda value, _: value)
    made.register_structure_hook_factory(_is(tuple), lambda kind: _structure_list(made, kind))
    made.register_structure_hook_factory(_is(Mapping), lambda kind: _structure_mapping(made, kind))
    made.register_structure_hook_factory(attrs.has, lambda cls: _structure_class(made, cls))
    made.register_unstructure_hook_factory(_is(tuple), lambda kind: _unstructure_list(made, kind))
    made.register_unstructure_hook_factory(_is(Mapping), lambda kind: _unstructure_mapping(made, kind))
    made.register_unstructure_hook_factory(attrs.has, lambda cls: _unstructure_class(made, cls))
    return made


def _is(origin: type) -> Callable[[Any], bool]:
    return lambda kind: (
        typing.get_origin(kind) is origin
        or (origin is Mapping and typing.get_origin(kind) is typing.get_origin(Mapping[str, str]))
    )


def _exactly(kind: type, words: str) -> Structure:
    """Of this very type: true is no number, and "1" is not 1."""

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not kind:
            raise Misfit(f"expected {words}, got {_shown(value)}")
        return value

    return structure


def _shown(value: Any) -> str:
    if isinstance(value, (Mapping, list)):
        return "an object" if isinstance(value, Mapping) else "an array"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _structure_list(made: cattrs.Converter, kind: Any) -> Structure:
    (item_kind, _) = typing.get_args(kind)
    hook = made.get_structure_hook(item_kind)

    def structure(value: Any, _: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise Misfit(f"expected an array, got {_shown(value)}")
        return tuple(_at(f"[{index}]", hook, item, item_kind) for index, item in enumerate(value))

    return structure


def _structure_mapping(made: cattrs.Converter, kind: Any) -> Structure:
    item_kind = typing.get_args(kind)[1]
    hook = made.get_structure_hook(item_kind)

    def structure(value: Any, _: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Misfit(f"expected an object, got {_shown(value)}")
        return {key: _at(_step(key), hook, item, item_kind) for key, item in value.items()}

    return structure


def _structure_class(made: cattrs.Converter, cls: type) -> Structure:
    fields = {
        json_name(field): (field.name, made.get_structure_hook(kind), kind) for field, kind in _fields_of(cls)
    }
    required = [json_name(field) for field, _ in _fields_of(cls) if field.default is attrs.NOTHING]

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise Misfit(f"expected an object, got {_shown(value)}")
        given: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        for key, item in value.items():
            if key in fields and item is not None:
                name, hook, kind = fields[key]
                given[name] = _at(_step(key), hook, item, kind)
            else:
                extra[key] = item
        for key in required:
            if fields[key][0] not in given:
                raise Misfit(f"the member `{key}` is missing")
        return cls(**given, extra=extra)

    return structure


def _fields_of(cls: type) -> list[tuple[attrs.Attribute[Any], Any]]:
    """The fields of a class but ``extra``, with the type that a present member has."""
    hints = typing.get_type_hints(cls)
    return [(field, _present(hints[field.name])) for field in attrs.fields(cls) if field.name != "extra"]


def _present(kind: Any) -> Any:
    """``X`` from ``X | None``."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        (kind,) = (part for part in typing.get_args(kind) if part is not types.NoneType)
    return kind


def _at(step: str, hook: Structure, value: Any, kind: Any) -> Any:
    try:
        return hook(value, kind)
    except Misfit as misfit:
        misfit.path.insert(0, step)
        raise


def _step(key: str) -> str:
    return f".{key}" if _PLAIN.fullmatch(key) else f"[{key!r}]"


def _unstructure_list(made: cattrs.Converter, kind: Any) -> Callable[[Any], Any]:
    (item_kind, _) = typing.get_args(kind)
    if item_kind in {str, int, Any}:
        return list
    hook = made.get_unstructure_hook(item_kind)
    return lambda value: [hook(item) for item in value]


def _unstructure_mapping(made: cattrs.Converter, kind: Any) -> Callable[[Any], Any]:
    item_kind = typing.get_args(kind)[1]
    if item_kind in {str, int, Any}:
        return dict
    hook = made.get_unstructure_hook(item_kind)
    return lambda value: {key: hook(item) for key, item in value.items()}


def _unstructure_class(made: cattrs.Converter, cls: type) -> Callable[[Any], dict[str, Any]]:
    fields = [
        (
            json_name(field),
            field.name,
            None if kind in {str, int, bool, Any} else made.get_unstructure_hook(kind),
        )
        for field, kind in _fields_of(cls)
    ]

    def unstructure(value: Any) -> dict[str, Any]:
        document: dict[str, Any] = {}
        for key, name, hook in fields:
            item = getattr(value, name)
            if item is not None:
                document[key] = item if hook is None else hook(item)
        if value.extra:
            # A member that was null and has since been given a value is no longer null.
            document = {**value.extra, **document}
        return document

    return unstructure


def from_json(text: str | bytes, cls: type[T], what: str) -> T:
    """The document in ``text``. Raises :class:`SpecError` with the path of what is wrong in it."""
    try:
        document = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"not JSON: {error}", object=what) from None
    return from_dict(document, cls, what)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def from_dict(document: Any, cls: type[T], what: str) -> T:
    """The document in plain dicts and lists. Raises :class:`SpecError` with the path of what is wrong in it."""
    try:
        structured: T = converter().structure(document, cls)
    except Misfit as misfit:
        raise SpecError(misfit.detail, object=what, path="$" + "".join(misfit.path)) from None
    return structured


def to_dict(document: Any) -> dict[str, Any]:
    """A document as plain dicts and lists."""
    plain: dict[str, Any] = converter().unstructure(document)
    return plain


def to_json(document: Any, indent: int | None = None) -> str:
    """A document as JSON text, in ASCII."""
    try:
        return json.dumps(to_dict(document), indent=indent, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise SpecError(f"cannot be written as JSON: {error}", object=type(document).__name__) from None
