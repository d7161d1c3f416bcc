"""The user files of an image, read from the stack of its layers without mounting it."""

from __future__ import annotations

from pathlib import Path

import images_helpers as make
import pytest
from gate import requires

from sandbox.errors import ImageError
from sandbox.images import Image, Store, resolve

pytestmark = requires("userns")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def image_of(store: Store, *layers: list[make.Member]) -> Image:
    found = store.layers([make.blob_of(make.tar(members)) for members in layers])
    config = resolve("host").config
    return Image("test", "layers", layers=tuple(layer.path for layer in found), config=config)


PASSWD = "real:x:1:1::/:/bin/sh\n"


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([[make.file("etc/passwd", "old")], [make.file("etc/passwd", PASSWD)]], PASSWD),
        ([[make.file("etc/passwd", PASSWD)], [make.file("etc/other")]], PASSWD),
        ([[make.file("etc/passwd", "old")], [make.file("etc/.wh.passwd")]], ""),
        ([[make.file("etc/passwd", "old")], [make.file(".wh.etc")]], ""),
        ([[make.file("etc/passwd", "old")], [make.directory("etc"), make.file("etc/.wh..wh..opq")]], ""),
        ([[make.file("etc/passwd", "old")], [make.symlink("etc", "usr/etc")], [make.file("usr/etc/passwd", PASSWD)]],
         PASSWD),
        ([[make.symlink("etc/passwd", "/usr/share/pw")], [make.file("usr/share/pw", PASSWD)]], PASSWD),
        ([[make.symlink("etc/passwd", "../../../../pw"), make.file("pw", PASSWD)]], PASSWD),
        ([[make.symlink("etc/passwd", "/absent")]], ""),
        ([[make.file("etc", "a file")]], ""),
        ([[make.file("etc/passwd/x", "a directory below")], [make.file("etc/passwd", PASSWD)]], PASSWD),
        ([[make.file("etc/passwd", b"caf\xe9:x:1:1\n")]], "caf\udce9:x:1:1\n"),
    ],
)  # fmt: skip
def test_user_files_of_the_merged_root(store: Store, layers: list[list[make.Member]], expected: str) -> None:
    assert image_of(store, *layers).users.passwd == expected


def test_both_files_are_found_by_their_own_ways(store: Store) -> None:
    image = image_of(
        store,
        [make.directory("usr/etc"), make.file("usr/etc/group", "g:x:1:\n"), make.file("usr/passwd", "old")],
        [
            make.symlink("etc", "usr/etc"),
            make.symlink("usr/etc/passwd", "../passwd"),
            make.file("usr/passwd", PASSWD),
        ],
    )
    assert (image.users.passwd, image.users.group) == (PASSWD, "g:x:1:\n")


def test_an_image_without_layers_has_no_users(store: Store) -> None:
    assert Image("test", "layers", layers=(), config=resolve("host", store=store).config).users.passwd == ""


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ([make.fifo("etc/passwd")], "not a regular file"),
        ([make.directory("etc/passwd")], "Is a directory"),
        ([make.symlink("etc/passwd", "passwd")], "Too many levels of symbolic links"),
        ([make.file("etc/passwd", bytes((4 << 20) + 1))], "larger than"),
    ],
)
def test_user_files_that_are_traps(store: Store, members: list[make.Member], complaint: str) -> None:
    image = image_of(store, members)
    with pytest.raises(ImageError) as caught:
        image.users.passwd  # noqa: B018 - read for its error
    assert complaint in str(caught.value)
    assert "/etc/passwd" in str(caught.value)


def test_user_files_are_not_read_from_outside(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("root:secret\n")
    (tmp_path / "rootfs/etc").mkdir(parents=True)
    (tmp_path / "rootfs/etc/passwd").symlink_to(tmp_path / "secret")
    (tmp_path / "rootfs/etc/group").symlink_to("../../secret")
    assert resolve(f"dir:{tmp_path}/rootfs").users.passwd == ""
    assert resolve(f"dir:{tmp_path}/rootfs").users.group == ""
