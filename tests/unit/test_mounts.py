"""Mount options taken apart, and the mount table read."""

from __future__ import annotations

import pytest

from sandbox.linux import constants as c
from sandbox.linux.mounts import mount_table, parse_mountinfo, parse_options, propagation_flag


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {}),
        (["ro", "nosuid", "noexec"], {"flags": c.MS_RDONLY | c.MS_NOSUID | c.MS_NOEXEC}),
        (["ro", "rw"], {"cleared": c.MS_RDONLY}),
        (["rw", "ro"], {"flags": c.MS_RDONLY}),
        (["rbind"], {"flags": c.MS_BIND | c.MS_REC}),
        (["rslave"], {"propagation": c.MS_SLAVE | c.MS_REC}),
        (["private", "rshared"], {"propagation": c.MS_SHARED | c.MS_REC}),
        (["rro"], {"recursive_set": c.MOUNT_ATTR_RDONLY}),
        (["rsuid"], {"recursive_clear": c.MOUNT_ATTR_NOSUID}),
        (["idmap"], {"idmap": True}),
        (["ridmap"], {"idmap": True}),
        (["tmpcopyup"], {"copy_up": True}),
        (["mode=755", "size=1k", "nodev"], {"flags": c.MS_NODEV, "data": "mode=755,size=1k"}),
        (["defaults", "loud"], {}),
    ],
)
def test_options(options: list[str], expected: dict[str, object]) -> None:
    plain = {
        "flags": 0, "cleared": 0, "propagation": 0, "recursive_set": 0, "recursive_clear": 0, "data": "", "idmap": False,
        "copy_up": False,
    }  # fmt: skip
    found = parse_options(options)._asdict()
    expected = {**plain, **expected}
    if not {"rw", "ro"} & set(options):
        found["cleared"] = expected["cleared"]
    elif options == ["rw", "ro"]:
        expected["cleared"] = 0
    assert found == expected


def test_propagation() -> None:
    assert propagation_flag("rprivate") == c.MS_PRIVATE | c.MS_REC
    with pytest.raises(KeyError):
        propagation_flag("ro")


def test_mountinfo() -> None:
    text = (
        "36 35 98:0 /mnt1 /mnt2 rw,noatime shared:1 master:2 - ext3 /dev/root rw,errors=continue\n"
        "37 36 0:5 / /with\\040space\\134and\\303\\244 ro - tmpfs none rw\n"
        "38 36 0:5 / /x rw - fuse.x src\n"
    )
    first, second, third = parse_mountinfo(text)
    assert (first.id, first.parent, first.root, first.target) == (36, 35, "/mnt1", "/mnt2")
    assert (first.fstype, first.source, first.options) == ("ext3", "/dev/root", frozenset({"rw", "noatime"}))
    assert first.super_options == {"rw", "errors=continue"}
    assert second.target == "/with space\\andä"
    assert third.super_options == frozenset()


def test_our_own_mounts() -> None:
    table = mount_table()
    assert "/" in {mount.target for mount in table}
    assert "proc" in {mount.fstype for mount in table}
