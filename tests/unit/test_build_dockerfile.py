"""Dockerfiles taken apart, stages, and what instructions do to a configuration."""

from __future__ import annotations

import json

import pytest

from sandbox.build import meta
from sandbox.build.dockerfile import Instruction, parse, parse_instruction
from sandbox.build.draft import Draft, LayerRef
from sandbox.build.errors import DockerfileError
from sandbox.build.stages import plan
from sandbox.errors import ImageError, SandboxError
from sandbox.images.documents import Descriptor

WHOLE = """\
# syntax=docker/dockerfile:1
# escape=\\

# a comment
ARG V=12
from --platform=linux/amd64 debian:$V as base
RUN apt-get update \\
    # in between

    && apt-get install -y x
RUN ["a", "b c"]
RUN <<EOF
echo a \\
  echo $b
EOF
COPY --chown=1:2 --chmod="644" <<-"A" <<B /dest/
\t\tx
\tA
$y
B
RUN --mount=type=cache,target=/x --network=none cat <<E | sort
b
E
CMD
RUN [ -e /x ] && echo y
\tUSER\tapp
ENV a=b\\
c
"""


def test_a_whole_file() -> None:
    file = parse(WHOLE, "F")
    assert file.directives == {"syntax": "docker/dockerfile:1", "escape": "\\"}
    assert [(each.keyword, each.text, each.place) for each in file.instructions] == [
        ("ARG", "V=12", "F:5"), ("FROM", "debian:$V as base", "F:6"),
        ("RUN", "apt-get update     && apt-get install -y x", "F:7"), ("RUN", '["a", "b c"]', "F:11"), ("RUN", "<<EOF", "F:12"),
        ("COPY", '<<-"A" <<B /dest/', "F:16"), ("RUN", "cat <<E | sort", "F:21"), ("CMD", "", "F:24"),
        ("RUN", "[ -e /x ] && echo y", "F:25"), ("USER", "app", "F:26"), ("ENV", "a=bc", "F:27"),
    ]  # fmt: skip
    by_line = {each.place: each for each in file.instructions}
    assert by_line["F:11"].json == ("a", "b c")
    assert by_line["F:25"].json is None
    assert by_line["F:12"].heredocs[0].content == "echo a \\\n  echo $b\n"
    quoted, plain = by_line["F:16"].heredocs
    assert (quoted.content, quoted.expand, quoted.strip) == ("x\n", False, True)
    assert (plain.content, plain.expand) == ("$y\n", True)
    assert by_line["F:16"].flags == (("chown", "1:2"), ("chmod", "644"))
    assert by_line["F:21"].flag("network") == "none"
    assert by_line["F:6"].source == "FROM --platform=linux/amd64 debian:$V as base"


def test_another_escape_character() -> None:
    file = parse("#escape=`\nFROM x\nRUN a `\n b \\\nRUN c\n")
    assert [each.text for each in file.instructions] == ["x", "a  b \\", "c"]


def test_directives_end_at_the_first_other_line() -> None:
    assert parse("# a comment\n# escape=`\nFROM x\nRUN a \\\nb").instructions[1].text == "a b"


def test_windows_line_ends_and_a_byte_order_mark() -> None:
    assert parse("\ufeffFROM x\r\nRUN <<E\r\na\r\nE\r\n").instructions[1].heredocs[0].content == "a\n"


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("FROM x\nRUNN y", "F:2", "RUNN"), ("FROM x\n\nCOPY", "F:3", "needs an argument"), ("", "F", "no instructions"),
        ("FROM x\nRUN a \\\n b <<EOF\nc", "F:2", "the heredoc EOF has no end"), ("FROM x\nADD --=3 a b", "F:2", "a bad flag"),
        ("#escape=x\nFROM a", "F:1", "escape character"), ("#escape=`\n#escape=`\nFROM a", "F:2", "twice"),
    ],
)  # fmt: skip
def test_errors_have_their_line(text: str, where: str, what: str) -> None:
    with pytest.raises(DockerfileError, match=what) as caught:
        parse(text, "F")
    assert caught.value.line == where
    assert where in str(caught.value)


def test_a_near_miss_is_suggested_and_the_error_travels() -> None:
    with pytest.raises(DockerfileError) as caught:
        parse("FORM x")
    assert caught.value.hint == "did you mean FROM?"
    again = SandboxError.from_dict(json.loads(json.dumps(caught.value.to_dict())))
    assert str(again) == str(caught.value)


# -- stages -----------------------------------------------------------------------------------------------------------


def test_stages_and_arguments_before_them() -> None:
    file = parse("ARG A=1\nARG B=$A-x\nARG C\nFROM i:${B} AS One\nRUN a\nFROM one\nFROM ${C:-scratch} AS last\nRUN b")
    found = plan(file, {"A": "2"})
    assert [(stage.name, stage.base, len(stage.instructions)) for stage in found.stages] == [
        ("One", "i:2-x", 1), ("", "one", 0), ("last", "scratch", 1),
    ]  # fmt: skip
    assert found.target(None).name == "last"
    assert found.target("ONE").index == 0
    assert found.find("one", 0) is None
    assert found.find("1", 2) is found.stages[1]
    with pytest.raises(DockerfileError, match="there is no stage `two`"):
        found.target("two")


@pytest.mark.parametrize(
    "text", ["RUN x\nFROM a", "ARG a", "FROM", "FROM a b", "FROM a AS", "FROM $none", "FROM a AS 1x", "FROM --x=1 a",
             "ARG 1a=2\nFROM a", "FROM --platform=linux/sparc64 a"],
)  # fmt: skip
def test_bad_beginnings(text: str) -> None:
    with pytest.raises(DockerfileError):
        plan(parse(text))


# -- configuration ----------------------------------------------------------------------------------------------------


def config_after(*lines: str, start: Draft | None = None) -> dict[str, object]:
    draft = start or Draft.scratch()
    own = False
    for line in lines:
        instruction = parse_instruction(line)
        own |= instruction.keyword == "CMD"
        draft = meta.apply(draft, instruction, {"v": "value", **draft.env}, own_command=own)
    return dict(draft.config)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["CMD a b"], {"Cmd": ["/bin/sh", "-c", "a b"]}),
        (['CMD ["a", "$v"]'], {"Cmd": ["a", "$v"]}),
        (['SHELL ["bash", "-c"]', "CMD a"], {"Shell": ["bash", "-c"], "Cmd": ["bash", "-c", "a"]}),
        (["CMD a", 'ENTRYPOINT ["e"]'], {"Cmd": ["/bin/sh", "-c", "a"], "Entrypoint": ["e"]}),
        (["CMD a", "CMD"], {}),
        (["ENV a=1 b=\"x $v\" c='$v'", "ENV a=2"], {"Env": ["a=2", "b=x value", "c=$v"]}),
        (["ENV a some  text $v"], {"Env": ["a=some  text value"]}),
        (["ENV a=1", "ENV a=2 b=$a"], {"Env": ["a=2", "b=1"]}),
        (['LABEL a=b "c d"="e $v"', "LABEL a=x"], {"Labels": {"a": "x", "c d": "e value"}}),
        (["EXPOSE 80 53/UDP 8000-8002/tcp"],
         {"ExposedPorts": {"80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}, "8002/tcp": {}}}),
        (["VOLUME /a /$v", 'VOLUME ["/b c"]'], {"Volumes": {"/a": {}, "/value": {}, "/b c": {}}}),
        (["USER $v:1", "STOPSIGNAL SIG$v"], {"User": "value:1", "StopSignal": "SIGvalue"}),
        (["HEALTHCHECK NONE"], {"Healthcheck": {"Test": ["NONE"]}}),
        (["HEALTHCHECK --interval=1m30s --timeout=500ms --start-period=2s --retries=4 CMD curl $v"],
         {"Healthcheck": {"Test": ["CMD-SHELL", "curl $v"], "Interval": 90 * 10**9, "Timeout": 5 * 10**8,
                          "StartPeriod": 2 * 10**9, "Retries": 4}}),
        (['HEALTHCHECK CMD ["a", "b"]'], {"Healthcheck": {"Test": ["CMD", "a", "b"]}}),
        (["ONBUILD RUN a $v", "ONBUILD COPY a b"], {"OnBuild": ["RUN a $v", "COPY a b"]}),
    ],
)  # fmt: skip
def test_configuration(lines: list[str], expected: dict[str, object]) -> None:
    assert config_after(*lines) == expected


def test_an_inherited_command_goes_with_a_new_entrypoint() -> None:
    inherited = Draft.scratch().configured(Cmd=["old"], Entrypoint=["old"])
    assert config_after("ENTRYPOINT new", start=inherited) == {"Entrypoint": ["/bin/sh", "-c", "new"]}


@pytest.mark.parametrize(
    "line",
    [
        "ENV a", "ENV a=1 b", "LABEL a b", "EXPOSE x", "EXPOSE 99999", "EXPOSE 9-8", "SHELL bash", "HEALTHCHECK x",
        "HEALTHCHECK --interval=fast CMD x", "HEALTHCHECK --retries=x CMD y", "HEALTHCHECK --what=1 CMD y",
        "ONBUILD ONBUILD RUN x", "ONBUILD FROM x", "ONBUILD WHAT", "USER $none", 'VOLUME [""]', "ENV a='open", "ENV a=${b",
    ],
)  # fmt: skip
def test_malformed_instructions(line: str) -> None:
    with pytest.raises(DockerfileError):
        config_after(line)


def test_drafts_are_values_and_their_documents_agree() -> None:
    layer = LayerRef("sha256:" + 64 * "1", Descriptor("m", "sha256:" + 64 * "2", 3))
    draft = Draft.scratch().configured(Cmd=["x"]).noted("CMD x", created="2020-01-01T00:00:00Z").noted("RUN y", layer)
    document = json.loads(draft.config_bytes())
    assert document["rootfs"] == {"type": "layers", "diff_ids": [layer.diff_id]}
    assert [bool(entry.get("empty_layer")) for entry in document["history"]] == [True, False]
    assert document["config"] == {"Cmd": ["x"]}
    assert Draft.scratch().config == {}


def test_words_of_an_instruction() -> None:
    assert parse_instruction('COPY "a b" c\\ d /e').words == ('"a b"', "c\\ d", "/e")
    with pytest.raises(ImageError, match="is not closed"):
        _ = Instruction("COPY", (), "'a", None, (), "F:1").words
