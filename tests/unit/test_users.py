"""Users and groups of a root file system."""

from __future__ import annotations

import pytest

from sandbox.linux.users import User, UserDatabase, UserNotFoundError

PASSWD = """\
# comment
root:x:0:0:root:/root:/bin/sh
app:x:10:20::/srv:/bin/sh
broken:x:ten:20::/srv:/bin/sh
short:x:1
homeless:x:11:21:::
app:x:99:99::/second:/bin/sh
"""
GROUP = "root:x:0:\nwheel:x:3:app,root\nadm:x:4: app\nextra:x:5:other,app\nbad:x:y:app\n"
DATABASE = UserDatabase(PASSWD, GROUP)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("app", User(10, 20, (3, 5), "/srv", "app")),
        ("10", User(10, 20, (3, 5), "/srv", "app")),
        (10, User(10, 20, (3, 5), "/srv", "app")),
        ("0", User(0, 0, (3,), "/root", "root")),
        ("", User(0, 0, (3,), "/root", "root")),
        ("homeless", User(11, 21, (), "/", "homeless")),
        ("app:wheel", User(10, 3, (), "/srv", "app")),
        ("app:77", User(10, 77, (), "/srv", "app")),
        ("1234", User(1234, 0, (), "/", "1234")),
        ("1234:5", User(1234, 5, (), "/", "1234")),
        (":wheel", User(0, 3, (), "/root", "root")),
    ],
)
def test_lookup(asked: str | int, found: User) -> None:
    assert DATABASE.lookup(asked) == found


@pytest.mark.parametrize(
    ("asked", "kind", "name"),
    [("nobody", "user", "nobody"), ("broken", "user", "broken"), ("short", "user", "short"), ("app:none", "group", "none"),
     ("app:bad", "group", "bad")],
)  # fmt: skip
def test_not_found(asked: str, kind: str, name: str) -> None:
    with pytest.raises(UserNotFoundError, match=f"no {kind} named `{name}`") as caught:
        DATABASE.lookup(asked)
    assert (caught.value.kind, caught.value.name) == (kind, name)


def test_numbers_need_no_files() -> None:
    assert UserDatabase("", "").lookup("7:8") == User(7, 8, (), "/", "7")
