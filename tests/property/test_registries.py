"""Parsers of what registries and users write, with generated input: they answer, or refuse in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings, strategies as st

from sandbox.errors import ImageError
from sandbox.images.distribution.addresses import joined
from sandbox.images.distribution.auth import parse_challenges
from sandbox.images.distribution.client import media_type_of
from sandbox.images.distribution.credentials import _in_file
from sandbox.images.distribution.pins import Pin, Pins
from sandbox.images.distribution.registries_conf import RegistriesConf, _aliases, _registries
from sandbox.images.errors import RegistryError
from sandbox.images.references import parse_registry_name

#: Machines of CI are shared, and stand still now and then.
PATIENT = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=12,
)
TOKEN = st.text("abcXYZ019_-", min_size=1, max_size=10)
QUOTED = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
DIGEST = st.text("0123456789abcdef", min_size=64, max_size=64).map("sha256:{}".format)
HOST = st.from_regex(r"[a-z]{1,8}\.[a-z]{2,3}(:[1-9][0-9]{0,3})?", fullmatch=True)
REPOSITORY = st.lists(st.from_regex(r"[a-z0-9]{1,6}", fullmatch=True), min_size=1, max_size=4).map("/".join)


@PATIENT
@given(st.lists(st.text(max_size=200), max_size=4))
def test_any_challenge_is_survived(headers: list[str]) -> None:
    for challenge in parse_challenges(headers):
        assert challenge.scheme == challenge.scheme.lower()


@PATIENT
@given(st.lists(st.tuples(TOKEN, st.dictionaries(TOKEN.map(str.lower), QUOTED, min_size=1, max_size=4)), max_size=3))
def test_challenges_are_read_as_they_were_meant(challenges: list[tuple[str, dict[str, str]]]) -> None:
    def quote(text: str) -> str:
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'

    header = ", ".join(
        f"{scheme} " + ", ".join(f"{key}={quote(value)}" for key, value in parameters.items())
        for scheme, parameters in challenges
    )
    found = [(each.scheme, each.parameters) for each in parse_challenges([header])]
    assert found == [(scheme.lower(), parameters) for scheme, parameters in challenges]


@PATIENT
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()), st.text(max_size=20))
def test_any_manifest_has_a_type_or_is_refused(content: bytes, said: str) -> None:
    try:
        assert isinstance(media_type_of(content, said, "image"), str)
    except ImageError:
        pass


@PATIENT
@given(st.text(max_size=60))
def test_any_address_is_one_of_http_or_refused(target: str) -> None:
    try:
        assert joined("https://r.example/v2/x/", target).startswith(("http://", "https://"))
    except RegistryError:
        pass


@PATIENT
@given(st.dictionaries(st.sampled_from(["auths", "credsStore", "credHelpers"]), JSON), HOST, REPOSITORY)
def test_any_credential_file_is_survived(document: dict[str, Any], host: str, repository: str) -> None:
    document.pop("credsStore", None)  # no programs are started here
    document.pop("credHelpers", None)
    try:
        _in_file(document, Path("/config.json"), host, repository)
    except ImageError:
        pass


@PATIENT
@given(st.dictionaries(st.sampled_from(["registry", "registries", "aliases"]), JSON))
def test_any_registries_conf_is_survived(document: dict[str, Any]) -> None:
    try:
        list(_registries(document))
        _aliases(document)
    except (TypeError, ValueError, AttributeError):
        pass  # what load() turns into an error that names the file


@PATIENT
@given(HOST, REPOSITORY, HOST, REPOSITORY)
def test_a_location_replaces_its_prefix_and_nothing_else(host: str, path: str, other: str, place: str) -> None:
    table = {"registry": [{"prefix": host, "location": f"{other}/{place}"}]}
    conf = RegistriesConf(tuple(_registries(table)))
    (found,) = conf.endpoints(parse_registry_name(f"{host}/{path}"))
    assert str(found) == f"{other}/{place}/{path}"
    (found,) = conf.endpoints(parse_registry_name(f"x{host}/{path}"))
    assert str(found) == f"x{host}/{path}"


@PATIENT
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
                       st.builds(Pin, DIGEST, st.dictionaries(TOKEN, DIGEST, max_size=2)), max_size=4))  # fmt: skip
def test_pins_come_back_as_they_were(tmp_path_factory: Any, images: dict[str, Pin]) -> None:
    path = tmp_path_factory.mktemp("pins") / "sandbox.lock"
    Pins(path, images).save()
    assert dict(Pins.load(path).images) == images
