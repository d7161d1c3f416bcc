"""Image references: what each spelling means, and what is said about spellings that mean nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from sandbox.errors import ImageError
from sandbox.images.references import parse

REGISTRY_NAMES = [
    ("postgres", "docker.io", "library/postgres", "latest", ""),
    ("postgres:16", "docker.io", "library/postgres", "16", ""),
    ("bitnami/redis:7.2", "docker.io", "bitnami/redis", "7.2", ""),
    ("index.docker.io/redis", "docker.io", "library/redis", "latest", ""),
    ("docker.io/library/redis", "docker.io", "library/redis", "latest", ""),
    ("docker://redis:7", "docker.io", "library/redis", "7", ""),
    ("ghcr.io/astral-sh/uv:0.4", "ghcr.io", "astral-sh/uv", "0.4", ""),
    ("localhost/app", "localhost", "app", "latest", ""),
    ("localhost:5000/a/b/c:x_1.2-3", "localhost:5000", "a/b/c", "x_1.2-3", ""),
    ("registry:5000/app", "registry:5000", "app", "latest", ""),
    ("[::1]:5000/app", "[::1]:5000", "app", "latest", ""),
    ("HOST/app", "HOST", "app", "latest", ""),
    (f"redis@sha256:{'a' * 64}", "docker.io", "library/redis", "", f"sha256:{'a' * 64}"),
    (f"quay.io/x/y:1@sha256:{'0' * 64}", "quay.io", "x/y", "1", f"sha256:{'0' * 64}"),
    ("oci", "docker.io", "library/oci", "latest", ""),
    ("dir", "docker.io", "library/dir", "latest", ""),
    ("host:1", "docker.io", "library/host", "1", ""),
]


@pytest.mark.parametrize(("text", "domain", "repository", "tag", "digest"), REGISTRY_NAMES)
def test_docker_style_names_get_dockers_defaults(
    text: str, domain: str, repository: str, tag: str, digest: str
) -> None:
    found = parse(text)
    assert (found.transport, found.domain, found.repository) == ("docker", domain, repository)
    assert (found.tag, found.digest, found.text) == (tag, digest, text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("postgres:16", "docker.io/library/postgres:16"),
        ("docker://ghcr.io/a/b", "ghcr.io/a/b:latest"),
        (f"a/b:1@sha256:{'a' * 64}", f"docker.io/a/b:1@sha256:{'a' * 64}"),
        ("oci:x:1", "oci:x:1"),
        ("host", "host"),
    ],
)
def test_canonical_spells_out_what_was_implied(text: str, canonical: str) -> None:
    assert parse(text).canonical == canonical


@pytest.mark.parametrize(
    ("text", "transport", "path", "tag"),
    [
        ("host", "host", "", ""),
        ("dir:/srv/root", "dir", "/srv/root", ""),
        ("dir:a:b", "dir", "a:b", ""),
        ("oci:./layout", "oci", "./layout", ""),
        ("oci:layout:1.0", "oci", "layout", "1.0"),
        ("oci:/a/b:docker.io/library/busybox:latest", "oci", "/a/b", "docker.io/library/busybox:latest"),
        ("oci-archive:x.tar:v1", "oci-archive", "x.tar", "v1"),
        ("docker-archive:x.tar", "docker-archive", "x.tar", ""),
        ("docker-archive:x.tar:busybox:1.36", "docker-archive", "x.tar", "busybox:1.36"),
        ("./rootfs", "path", "./rootfs", ""),
        ("../rootfs", "path", "../rootfs", ""),
        ("/srv/rootfs:1", "path", "/srv/rootfs:1", ""),
        (".", "path", ".", ""),
    ],
)
def test_local_transports(text: str, transport: str, path: str, tag: str) -> None:
    found = parse(text)
    assert (found.transport, found.path, found.tag) == (transport, path, tag)


def test_a_layout_can_be_asked_for_by_digest() -> None:
    digest = "sha256:" + "ab" * 32
    found = parse(f"oci:dir:tag@{digest}")
    assert (found.path, found.tag, found.digest) == ("dir", "tag", digest)


def test_a_registered_transport_gets_everything_after_its_name() -> None:
    found = parse("build:./Dockerfile:x?y", transports=["build"])
    assert (found.transport, found.path) == ("build", "./Dockerfile:x?y")


def test_an_unknown_transport_lists_the_known_ones() -> None:
    with pytest.raises(ImageError) as caught:
        parse("oci-archiv:./x.tar", transports=["mmdebstrap"])
    text = str(caught.value)
    assert "unknown transport `oci-archiv`" in text
    assert "did you mean oci-archive:?" in text
    for name in ("host", "dir", "oci", "docker-archive", "mmdebstrap"):
        assert name in text.partition("known are: ")[2]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "empty"),
        (" postgres", "blanks"),
        ("post\0gres", "blanks"),
        ("Postgres", "`Postgres` cannot be part of a repository name"),
        ("a//b", "`` cannot be part"),
        ("a/../b", "`..` cannot be part"),
        ("redis:", "`` is not a tag"),
        ("redis:-x", "`-x` is not a tag"),
        (f"redis:{'x' * 129}", "is not a tag"),
        ("redis@sha256:123", "`sha256:123` is not a digest"),
        ("-bad.example/redis", "is not a registry host"),
        ("a" * 256, "longer than 255"),
        ("dir:", "the path is missing"),
        ("oci::tag", "the path is missing"),
        ("docker-archive:", "the path is missing"),
    ],
)
def test_bad_references_are_refused_with_the_part_that_is_bad(text: str, complaint: str) -> None:
    with pytest.raises(ImageError) as caught:
        parse(text)
    assert complaint in str(caught.value)
    assert caught.value.hint


@given(st.text(max_size=60))
def test_any_text_parses_or_is_an_image_error(text: str) -> None:
    try:
        found = parse(text)
    except ImageError:
        return
    assert found.text == text
    assert found.transport


@given(
    st.from_regex(r"[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,2}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,9})?", fullmatch=True)
)
def test_the_canonical_form_means_the_same(text: str) -> None:
    first = parse(text)
    again = parse(first.canonical)
    assert (again.domain, again.repository, again.tag) == (first.domain, first.repository, first.tag)
