"""OCI documents: real ones come back as they were, bad ones are refused by path."""

from __future__ import annotations

import doctest
import importlib
import json
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from sandbox import oci
from sandbox.errors import SpecError
from sandbox.oci import converter, runtime
from sandbox.oci.resources import LinuxPids

DATA = Path(__file__).parents[1] / "data" / "oci"
LOADERS: dict[str, Callable[[str], Any]] = {
    "image": oci.load_image_config,
    "manifest": oci.load_manifest,
    "index": oci.load_index,
}
DOCUMENTS = sorted(DATA.glob("*.json"))


def load(path: Path) -> Any:
    return LOADERS.get(path.stem.split("-")[0], oci.loads)(path.read_text("utf-8"))


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(oci.__path__)] + [""])
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(f"sandbox.oci.{name}".rstrip("."))
    assert doctest.testmod(module).failed == 0


def test_there_are_documents_of_every_writer() -> None:
    assert {path.stem.split("-")[0] for path in DOCUMENTS} == {
        "containerd", "crun", "docker", "everything", "image", "index", "manifest", "podman", "runc",
    }  # fmt: skip


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_a_document_comes_back_as_it_was(path: Path) -> None:
    assert json.loads(oci.dumps(load(path))) == json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_dumping_is_stable(path: Path) -> None:
    once = oci.dumps(load(path), indent=2)
    loader = LOADERS.get(path.stem.split("-")[0], oci.loads)
    assert oci.dumps(loader(once), indent=2) == once


def walk(value: Any, known: set[str], unknown: set[str]) -> None:
    """Which fields have a value, and which members no class knows."""
    if attrs.has(type(value)):
        for field in attrs.fields(type(value)):
            if field.name != "extra" and getattr(value, field.name) is not None:
                known.add(f"{type(value).__name__}.{field.name}")
                walk(getattr(value, field.name), known, unknown)
        unknown |= {name for name, item in value.extra.items() if item is not None}
    elif isinstance(value, (tuple, list)):
        for item in value:
            walk(item, known, unknown)
    elif isinstance(value, dict):
        for item in value.values():
            walk(item, known, unknown)


def test_every_field_is_exercised_and_only_new_members_are_unknown() -> None:
    """Guards the spelling of JSON names: a misspelt field would land in ``extra`` and never be set."""
    known: set[str] = set()
    unknown: set[str] = set()
    for path in DOCUMENTS:
        walk(load(path), known, unknown)
    modules = [
        importlib.import_module(f"sandbox.oci.{name}")
        for name in ("runtime", "resources", "seccomp", "image")
    ]
    fields = {
        f"{cls.__name__}.{field.name}"
        for module in modules
        for cls in vars(module).values()
        if isinstance(cls, type) and attrs.has(cls) and cls.__module__ == module.__name__
        for field in attrs.fields(cls)
        if field.name != "extra"
    }
    assert fields - known == set()
    assert unknown == {
        "org.example.unknown", "future", "netDevices", "memoryPolicy", "schemata",  # runtime
        "container", "docker_version", "moby.buildkit.cache.v0", "newer",  # image
        "Hostname", "Domainname", "AttachStdin", "AttachStdout", "AttachStderr", "Tty", "OpenStdin", "StdinOnce",
        "ArgsEscaped", "Image", "Shell",
    }  # fmt: skip


def test_absent_null_and_empty_stay_apart() -> None:
    text = '{"ociVersion": "1.2.0", "mounts": [], "hostname": "", "hooks": null, "linux": {"resources": {}}}'
    spec = oci.loads(text)
    assert (spec.mounts, spec.hostname, spec.hooks, spec.process) == ((), "", None, None)
    assert spec.extra == {"hooks": None}
    assert json.loads(oci.dumps(spec)) == json.loads(text)
    assert "hooks" in json.loads(oci.dumps(attrs.evolve(spec, hooks=runtime.Hooks())))
    assert json.loads(oci.dumps(attrs.evolve(spec, hooks=runtime.Hooks())))["hooks"] == {}


BAD = [
    ("", "not JSON", None),
    ("{", "not JSON", None),
    ("[" * 100_000, "not JSON", None),
    ('{"ociVersion": "1", "x": NaN}', "NaN is no JSON number", None),
    (b"\xff\xfe\x00", "not JSON", None),
    ("[]", "expected an object, got an array", "$"),
    ("{}", "the member `ociVersion` is missing", "$"),
    ('{"ociVersion": null}', "the member `ociVersion` is missing", "$"),
    ('{"ociVersion": 1.2}', "expected a string, got 1.2", "$.ociVersion"),
    ('{"ociVersion": "1", "process": {}}', "the member `cwd` is missing", "$.process"),
    (
        '{"ociVersion": "1", "process": {"cwd": "/", "args": "sh"}}',
        'expected an array, got "sh"',
        "$.process.args",
    ),
    (
        '{"ociVersion": "1", "process": {"cwd": "/", "args": ["a", null]}}',
        "expected a string, got null",
        "$.process.args[1]",
    ),
    (
        '{"ociVersion": "1", "process": {"cwd": "/", "user": {"uid": true}}}',
        "expected a whole number, got true",
        "$.process.user.uid",
    ),
    (
        '{"ociVersion": "1", "process": {"cwd": "/", "terminal": 1}}',
        "expected true or false, got 1",
        "$.process.terminal",
    ),
    (
        '{"ociVersion": "1", "annotations": {"a.b": []}}',
        "expected a string, got an array",
        "$.annotations['a.b']",
    ),
    (
        '{"ociVersion": "1", "linux": {"seccomp": {"defaultAction": "x", "syscalls": [{"names": ["a"]}]}}}',
        "the member `action` is missing",
        "$.linux.seccomp.syscalls[0]",
    ),
]


@pytest.mark.parametrize(("text", "words", "path"), BAD)
def test_a_bad_document_is_refused_by_path(text: str | bytes, words: str, path: str | None) -> None:
    with pytest.raises(SpecError) as caught:
        oci.loads(text)
    assert words in str(caught.value)
    assert caught.value.path == path
    assert caught.value.object == "runtime configuration"


def test_a_long_wrong_value_is_cut() -> None:
    with pytest.raises(SpecError) as caught:
        oci.loads(json.dumps({"ociVersion": "1", "process": {"cwd": "/", "args": "x" * 10_000}}))
    assert len(str(caught.value)) < 200


def test_what_json_cannot_say_is_refused() -> None:
    for value in (float("inf"), {1, 2}):
        with pytest.raises(SpecError, match="cannot be written as JSON"):
            oci.dumps(runtime.Spec(oci_version="1.0.2", extra={"x": value}))


def test_plain_dicts_go_in_and_out() -> None:
    document = {"ociVersion": "1.0.2", "linux": {"resources": {"pids": {"limit": 3}}}}
    spec = oci.from_dict(document)
    assert spec.linux is not None
    assert spec.linux.resources is not None
    assert spec.linux.resources.pids == LinuxPids(limit=3)
    assert oci.to_dict(spec) == document
    with pytest.raises(SpecError, match="expected an object"):
        converter.from_dict(None, runtime.Spec, "x")


def test_the_door_is_complete() -> None:
    for name in oci.__all__:
        assert getattr(oci, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        oci.nonsense  # type: ignore[attr-defined] # noqa: B018
