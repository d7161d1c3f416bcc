"""User and group files of a root file system (passwd(5), group(5)), read without the name service switch."""

from __future__ import annotations

from typing import NamedTuple


class User(NamedTuple):
    """What a process needs to become a user: ids, supplementary groups, home directory, name."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    name: str


class UserNotFoundError(LookupError):
    """A user or group that the files do not hold."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"no {kind} named `{name}`")
        self.kind = kind
        self.name = name


class UserDatabase:
    """The users and groups of one root file system.

    Malformed lines are passed over, as the C library does.

    >>> UserDatabase("app:x:10:20::/srv:/bin/sh", "adm:x:4:app").lookup("app")
    User(uid=10, gid=20, groups=(4,), home='/srv', name='app')
    """

    def __init__(self, passwd: str, group: str) -> None:
        self._users = [f for f in _rows(passwd, 7) if f[2].isdecimal() and f[3].isdecimal()]
        self._groups = [f for f in _rows(group, 4) if f[2].isdecimal()]

    def lookup(self, user: str | int) -> User:
        """Resolve ``name``, ``uid``, ``name:group`` or ``uid:gid`` (numbers need no entry).

        Without a group the user's primary group and its supplementary groups are used; a number without an entry
        gets group 0 and home ``/``. Raises :class:`UserNotFoundError`.
        """
        name, _, group = str(user).partition(":")
        found = self._user(name or "0")
        if group:
            return found._replace(gid=self._group(group), groups=())
        return found

    def _user(self, name: str) -> User:
        for fields in self._users:
            if fields[0] == name or (name.isdecimal() and int(fields[2]) == int(name)):
                groups = tuple(int(g[2]) for g in self._groups if fields[0] in g[3].split(","))
                return User(int(fields[2]), int(fields[3]), groups, fields[5] or "/", fields[0])
        if not name.isdecimal():
            raise UserNotFoundError("user", name)
        return User(int(name), 0, (), "/", name)

    def _group(self, name: str) -> int:
        if name.isdecimal():
            return int(name)
        for fields in self._groups:
            if fields[0] == name:
                return int(fields[2])
        raise UserNotFoundError("group", name)


def _rows(text: str, width: int) -> list[list[str]]:
    rows = (line.split(":") for line in text.splitlines() if line and not line.startswith("#"))
    return [row for row in rows if len(row) >= width]
