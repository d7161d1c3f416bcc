"""registries.conf, and where a name is fetched from."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.errors import ImageError
from sandbox.images.distribution.registries_conf import RegistriesConf
from sandbox.images.errors import RegistryError
from sandbox.images.references import parse


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("CONTAINERS_REGISTRIES_CONF", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    place = tmp_path / "containers"
    (place / "registries.conf.d").mkdir(parents=True)
    return place


def places(text: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    path = tmp_path / "only.conf"
    path.write_text(text)
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(path))
    conf = RegistriesConf.load()
    found = conf.endpoints(conf.canonical(parse(name)))
    return [f"{each}{' insecure' if each.insecure else ''}" for each in found]


EXAMPLE = """
unqualified-search-registries = ["search.example"]
[[registry]]
prefix = "example.com/foo"
location = "internal.example:5000/bar"
[[registry.mirror]]
location = "one.local/mirror-for-foo"
insecure = true
[[registry.mirror]]
location = "two.local/foo"
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "three.local"
pull-from-mirror = "tag-only"
[[registry]]
prefix = "example.com/foo/deep"
location = "deep.example"
[[registry]]
prefix = "*.wild.example"
insecure = true
[[registry]]
location = "by-digest.example"
mirror-by-digest-only = true
[[registry.mirror]]
location = "mirror.example"
[aliases]
ubi8 = "registry.access.example/ubi8/ubi"
"tools/make" = "quay.example/x/make"
gone = ""
"""
DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("redis:7", ["docker.io/library/redis"]),
        ("example.com/food:1", ["example.com/food"]),
        (
            "example.com/foo/app:1",
            ["one.local/mirror-for-foo/app insecure", "three.local/app", "internal.example:5000/bar/app"],
        ),
        (
            f"example.com/foo/app@{DIGEST}",
            ["one.local/mirror-for-foo/app insecure", "two.local/foo/app", "internal.example:5000/bar/app"],
        ),
        ("example.com/foo/deep/x", ["deep.example/x"]),
        ("a.b.wild.example/x", ["a.b.wild.example/x insecure"]),
        ("a.wild.example:5000/x", ["a.wild.example:5000/x insecure"]),
        ("wild.example/x", ["wild.example/x"]),
        ("by-digest.example/x:1", ["by-digest.example/x"]),
        (f"by-digest.example/x@{DIGEST}", ["mirror.example/x", "by-digest.example/x"]),
        ("ubi8:8", ["registry.access.example/ubi8/ubi"]),
        ("tools/make", ["quay.example/x/make"]),
        ("docker.io/library/ubi8:8", ["docker.io/library/ubi8"]),
        ("docker://ubi8", ["docker.io/library/ubi8"]),
        ("gone", ["docker.io/library/gone"]),
    ],
)
def test_where_to_ask(
    name: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert places(EXAMPLE, name, monkeypatch, tmp_path) == expected


def test_an_alias_keeps_tag_and_digest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "only.conf"
    path.write_text(EXAMPLE)
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(path))
    found = RegistriesConf.load().canonical(parse(f"ubi8:8@{DIGEST}"))
    assert (found.canonical, found.text) == (f"registry.access.example/ubi8/ubi:8@{DIGEST}", f"ubi8:8@{DIGEST}")


def test_blocked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = '[[registry]]\nprefix = "evil.example"\nblocked = true\n'
    with pytest.raises(RegistryError, match=r"blocks `evil\.example`"):
        places(text, "evil.example/x", monkeypatch, tmp_path)
    assert places(text, "evil.example.org/x", monkeypatch, tmp_path) == ["evil.example.org/x"]


def test_version_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = "[registries.insecure]\nregistries = ['a.example']\n[registries.block]\nregistries = ['b.example']\n"
    assert places(text, "a.example/x", monkeypatch, tmp_path) == ["a.example/x insecure"]
    with pytest.raises(RegistryError, match="blocks"):
        places(text, "b.example/x", monkeypatch, tmp_path)


def test_drop_ins_come_on_top(files: Path) -> None:
    (files / "registries.conf").write_text(
        '[[registry]]\nprefix = "a.example"\nlocation = "old.example"\n[aliases]\nx = "a.example/x"\ny = "a.example/y"\n'
    )
    (files / "registries.conf.d/10.conf").write_text(
        '[[registry]]\nprefix = "a.example"\nlocation = "new.example"\n[aliases]\nx = "a.example/z"\n'
    )
    conf = RegistriesConf.load()
    assert str(conf.endpoints(conf.canonical(parse("x")))[0]) == "new.example/z"
    assert str(conf.endpoints(conf.canonical(parse("y")))[0]) == "new.example/y"


@pytest.mark.parametrize(
    "text",
    [
        "not toml",
        '[[registry]]\ninsecure = "yes"\nlocation = "x"\n',
        "[[registry]]\nlocation = 7\n",
        "[[registry]]\ninsecure = true\n",
        'registry = "x"\n',
        '[[registry]]\nlocation = "x"\n[[registry.mirror]]\ninsecure = true\n',
        '[[registry]]\nlocation = "x"\n[[registry.mirror]]\nlocation = "y"\npull-from-mirror = "sometimes"\n',
        "[aliases]\nx = 7\n",
        "\xff",
    ],
)
def test_what_is_wrong_is_told(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "bad.conf"
    path.write_bytes(text.encode("latin-1"))
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(path))
    with pytest.raises(ImageError) as caught:
        RegistriesConf.load()
    assert str(path) in str(caught.value)
    assert caught.value.cause


def test_a_file_that_was_named_has_to_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(tmp_path / "none"))
    with pytest.raises(ImageError, match="No such file"):
        RegistriesConf.load()
