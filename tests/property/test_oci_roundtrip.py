"""Loading and dumping loses nothing, whatever the document says."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sandbox import oci
from sandbox.errors import SpecError
from sandbox.oci import converter, image, runtime

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats(-1e9, 1e9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def documents(kind: Any) -> st.SearchStrategy[Any]:
    """JSON values that fit a type of the models: made from the very annotations that the converter reads."""
    if isinstance(kind, types.UnionType):
        (kind,) = (part for part in typing.get_args(kind) if part is not types.NoneType)
    if kind in LEAVES:
        return LEAVES[kind]
    if typing.get_origin(kind) is tuple:
        return st.lists(documents(typing.get_args(kind)[0]), max_size=3)
    if typing.get_origin(kind) is not None:
        return st.dictionaries(st.text(max_size=6), documents(typing.get_args(kind)[1]), max_size=3)
    return st.deferred(lambda: objects(kind))


LEAVES: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=6),
    int: st.integers(-(2**63), 2**64 - 1),
    bool: st.booleans(),
    Any: JSON,
}


def objects(cls: type) -> st.SearchStrategy[dict[str, Any]]:
    hints = typing.get_type_hints(cls)
    fields = [field for field in attrs.fields(cls) if field.name != "extra"]
    required = {
        converter.json_name(f): documents(hints[f.name]) for f in fields if f.default is attrs.NOTHING
    }
    optional = {
        converter.json_name(f): st.none() | documents(hints[f.name])
        for f in fields
        if f.default is not attrs.NOTHING
    }
    names = {converter.json_name(f) for f in fields}
    unknown = st.dictionaries(st.text(max_size=5).filter(lambda name: name not in names), JSON, max_size=2)
    return st.builds(
        lambda known, new: {**new, **known}, st.fixed_dictionaries(required, optional=optional), unknown
    )


@pytest.mark.parametrize("cls", [runtime.Spec, image.ImageConfig, image.Manifest, image.Index])
def test_any_document_comes_back_as_it_was(cls: type) -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(objects(cls))
    def check(document: dict[str, Any]) -> None:
        text = json.dumps(document)
        loaded: Any = converter.from_json(text, cls, "document")
        assert json.loads(oci.dumps(loaded)) == json.loads(text)
        assert converter.from_dict(converter.to_dict(loaded), cls, "document") == loaded

    check()


@settings(max_examples=100, deadline=None)
@given(JSON)
def test_any_other_json_is_a_spec_error(document: Any) -> None:
    if isinstance(document, Mapping) and isinstance(document.get("ociVersion"), str):
        return
    with pytest.raises(SpecError):
        oci.loads(json.dumps(document))


@given(st.text(max_size=30) | st.binary(max_size=30))
def test_any_text_is_a_document_or_a_spec_error(text: str | bytes) -> None:
    with pytest.raises(SpecError):
        oci.loads(text)
