"""Words of Dockerfiles, and the patterns of .dockerignore."""

from __future__ import annotations

import pytest

from sandbox.build.ignore import Ignore, PatternError, read_patterns
from sandbox.build.words import WordError, expand, expand_text, split, split_raw

VARIABLES = {"name": "world", "words": "x y", "version": "1.2.3", "empty": "", "path": "/a/b/c.tar.gz"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"), ("$name", "world"), ("${name}s", "worlds"), ("$names", ""), ("'$name'", "$name"),
        ('"$name"', "world"), (r"\$name", "$name"), (r'"\$name"', "$name"), (r'"a\"b"', 'a"b'), (r'"a\b"', r"a\b"),
        ("a b", "a b"), (r"a\ b", "a b"), ("${none:-d$name}", "dworld"), ("${empty:-d}", "d"), ("${empty-d}", ""),
        ("${none-d}", "d"), ("${name:+there}", "there"), ("${empty:+there}", ""), ("${empty+there}", "there"),
        ("${none:-${empty:-deep}}", "deep"), ("${name:?}", "world"), ("${version#*.}", "2.3"), ("${version##*.}", "3"),
        ("${version%.*}", "1.2"), ("${version%%.*}", "1"), ("${path##*/}", "c.tar.gz"), ("${path%%.tar*}", "/a/b/c"),
        ("${version/./_}", "1_2.3"), ("${version//./_}", "1_2_3"), ("${version//}", "1.2.3"), ("${version/?/}", ".2.3"),
        ("$", "$"), ("$ name", "$ name"), ("$1", ""), ("cost: 5$", "cost: 5$"), (r"\\", "\\"), ("${name:-'x y'}", "world"),
    ],
)  # fmt: skip
def test_expand(text: str, value: str) -> None:
    assert expand(text, VARIABLES) == value


@pytest.mark.parametrize("text", ["'open", '"open', "${name", "${name:-x", "${}", "${na!me}", "${none:?}", "${empty:?gone}"])
def test_expand_refuses(text: str) -> None:
    with pytest.raises(WordError):
        expand(text, VARIABLES)


def test_a_variable_that_must_be_set_is_named() -> None:
    with pytest.raises(WordError, match=r"none: must be given"):
        expand("${none:?must be given}", VARIABLES)


def test_words_that_variables_bring() -> None:
    assert split('a "$words" $words \'b c\' $none', VARIABLES) == ["a", "x y", "x", "y", "b c"]


def test_raw_words_keep_quotes() -> None:
    assert split_raw(r"""a="b c" d\ e 'x y' $z""") == ['a="b c"', r"d\ e", "'x y'", "$z"]


def test_the_text_of_a_heredoc_keeps_its_quotes() -> None:
    assert expand_text(r"""'$name' "$name" \$name \n""", VARIABLES) == r"""'world' "world" $name \n"""


def test_another_escape_character() -> None:
    assert expand("C:\\x `$name", VARIABLES, escape="`") == "C:\\x $name"


IGNORED = """
# comment
*/temp*
*/*/temp*
temp?
**/*.log
!keep/this.log
docs
!docs/README.md
/root-only
sub/
[a-c]z
weird[\\]]x
"""


@pytest.mark.parametrize(
    ("path", "excluded"),
    [
        ("a/temp1", True), ("a/b/temp1", True), ("a/b/c/temp1", False), ("tempa", True), ("tempab", False), ("temp", False),
        ("x.log", True), ("a/b/x.log", True), ("keep/this.log", False), ("keep/other.log", True), ("docs", True),
        ("docs/a/b", True), ("docs/README.md", False), ("root-only", True), ("a/root-only", False), ("sub/x", True),
        ("bz", True), ("dz", False), ("weird]x", True), ("# comment", False),
    ],
)  # fmt: skip
def test_dockerignore(path: str, excluded: bool) -> None:
    assert Ignore.parse(IGNORED).excludes(path) is excluded


def test_the_last_pattern_that_fits_decides() -> None:
    assert Ignore.parse("*\n!a\na/b").excludes("a/b")
    assert not Ignore.parse("*\n!a\na/b").excludes("a/c")
    assert not Ignore.parse("a/b\n!a").excludes("a/b")


def test_patterns_are_cleaned() -> None:
    assert read_patterns("  ./a/../b/  \n//c\n.\n! d \n") == ["b", "c", "!d"]


@pytest.mark.parametrize("pattern", ["a[", "a[]", "[b-a]", "x\\", "!"])
def test_malformed_patterns_are_refused_with_their_line(pattern: str) -> None:
    with pytest.raises(PatternError, match="line 2: "):
        read_patterns(f"fine\n{pattern}\n")
