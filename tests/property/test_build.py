"""Layers that are written, and texts that are taken apart, with generated input."""

from __future__ import annotations

import io
import os
import tarfile
import threading

from hypothesis import given, strategies as st

from sandbox.build.dockerfile import parse, parse_instruction
from sandbox.build.errors import BuildError
from sandbox.build.ignore import Ignore, PatternError
from sandbox.build.stages import plan
from sandbox.build.tarwriter import Member, TarWriter
from sandbox.build.words import WordError, expand, split
from sandbox.images import tar
from sandbox.images.limits import DEFAULT_LIMITS

PART = st.binary(min_size=1, max_size=120).filter(lambda part: not {47, 0} & set(part) and part not in (b".", b".."))
NAME = st.lists(PART, min_size=1, max_size=4).map(b"/".join).filter(lambda name: b".wh." not in name)
NUMBER = st.one_of(st.integers(0, 5), st.integers(0, 2**32 - 2))
XATTRS = st.dictionaries(st.sampled_from([b"user.a", b"security.capability"]), st.binary(max_size=40), max_size=2)
MEMBER = st.builds(
    Member, NAME, st.sampled_from([b"0", b"1", b"2", b"5", b"6"]), st.integers(0, 0o7777), NUMBER, NUMBER,
    st.integers(-(2**33), 2**36), st.just(0), NAME, XATTRS,
)  # fmt: skip
CONTENT = st.binary(max_size=2000)


def written(members: list[tuple[Member, bytes]]) -> bytes:
    out = io.BytesIO()
    writer = TarWriter(out.write)
    for member, content in members:
        writer.add(member)
        if member.kind == b"0":
            writer.data(content)
    writer.close()
    return out.getvalue()


def as_stored(member: Member, content: bytes) -> Member:
    """What there is no place for is left out."""
    link = member.link if member.kind in (b"1", b"2") else b""
    return member._replace(link=link, size=len(content) if member.kind == b"0" else 0)


@given(st.lists(st.tuples(MEMBER, CONTENT), max_size=5))
def test_our_own_reader_reads_what_was_written(pairs: list[tuple[Member, bytes]]) -> None:
    members = [(as_stored(member, content), content) for member, content in pairs]
    data = written(members)
    read_end, write_end = os.pipe()

    def feed() -> None:
        with open(write_end, "wb") as pipe:
            pipe.write(data)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        for (member, _), entry in zip(members, tar.TarStream(read_end, DEFAULT_LIMITS), strict=True):
            assert entry.name.rstrip(b"/") == member.name.rstrip(b"/")
            assert (entry.type, entry.mode, entry.uid, entry.gid) == (member.kind, member.mode, member.uid, member.gid)
            assert entry.mtime_ns == member.mtime * 10**9
            assert (entry.size, entry.xattrs) == (member.size, dict(member.xattrs))
            assert entry.link == member.link
    finally:
        while os.read(read_end, 1 << 16):
            pass
        feeder.join()
        os.close(read_end)


@given(st.lists(st.tuples(MEMBER, CONTENT), max_size=5))
def test_python_reads_what_was_written(pairs: list[tuple[Member, bytes]]) -> None:
    members = [(as_stored(member, content), content) for member, content in pairs]
    with tarfile.open(fileobj=io.BytesIO(written(members)), encoding="utf-8", errors="surrogateescape") as archive:
        for (member, content), found in zip(members, archive, strict=True):
            assert os.fsencode(found.name).rstrip(b"/") == member.name.rstrip(b"/")
            assert (found.mode, found.uid, found.gid, found.mtime) == (member.mode, member.uid, member.gid, member.mtime)
            if member.kind == b"0":
                file = archive.extractfile(found)
                assert file is not None
                assert file.read() == content


@given(st.text(alphabet=st.sampled_from("ab$ {}:-+?#%/'\"\\\n\t*"), max_size=40))
def test_words_are_expanded_or_refused(text: str) -> None:
    try:
        expand(text, {"a": "x y", "b": ""})
        split(text, {"a": "x y", "b": ""})
    except WordError:
        pass


@given(st.text(alphabet=st.characters(exclude_characters="\n\r"), max_size=30))
def test_single_quotes_keep_everything(text: str) -> None:
    quoted = "'" + text.replace("'", "'\\''") + "'"
    assert expand(quoted, {}) == text


LINES = st.lists(
    st.one_of(
        st.sampled_from(["FROM a AS b", "RUN <<E", "E", "COPY --from=b x y", "ARG a=1", "ENV a=$a", "# c", "", "\\", "CMD ["]),
        st.text(max_size=20),
    ),
    max_size=8,
).map("\n".join)


@given(LINES)
def test_files_are_taken_apart_or_refused_with_a_place(text: str) -> None:
    try:
        plan(parse(text, "F"))
    except BuildError as error:
        assert (error.line or "").startswith("F")  # noqa: PT017 - there may be none


@given(st.text(alphabet=st.sampled_from("ab/*?[]!-^\\.# "), max_size=20), st.sampled_from(["a", "a/b", "ab/a.b", ".a"]))
def test_patterns_decide_or_are_refused(text: str, path: str) -> None:
    try:
        assert Ignore.parse(text).excludes(path) in (True, False)
    except PatternError:
        pass


@given(st.lists(st.text(alphabet="abc $'\"\\", min_size=1, max_size=6), min_size=2, max_size=4))
def test_the_exec_form_keeps_its_words(words: list[str]) -> None:
    import json

    assert parse_instruction(f"RUN {json.dumps(words)}").json == tuple(words)
