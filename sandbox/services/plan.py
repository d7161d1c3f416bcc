"""What a service will be: arguments → settings, checked. No manager is asked for anything."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from sandbox.errors import CommandNotFound, ModelError
from sandbox.services.errors import PropertyError
from sandbox.services.profiles import profile as profile_called
from sandbox.services.settings import Assignment, Settings, assignments_of, split_assignment
from sandbox.services.syscalls import IO_URING

__all__ = ["Plan", "plan", "split_command"]

#: What we say ourselves: how it is started, watched and cleaned up.
_OURS = frozenset({
    "AddRef", "BindsTo", "CollectMode", "ExecStart", "ExecStartEx", "FileDescriptorStoreMax", "RemainAfterExit",
    "StandardErrorFileDescriptor", "StandardInputFileDescriptor", "StandardOutputFileDescriptor",
})  # fmt: skip
#: What our own arguments are for.
_ARGUMENTS = {
    "StandardInput": "stdin", "StandardOutput": "stdout", "StandardError": "stderr", "RootDirectory": "image",
    "Sockets": "sockets",
}  # fmt: skip
_TYPES = ("exec", "simple", "notify", "forking", "dbus")
#: What every service gets that does not say otherwise: it is counted, so that there is something to tell.
_DEFAULTS = (
    ("CPUAccounting", "yes"), ("MemoryAccounting", "yes"), ("TasksAccounting", "yes"), ("IOAccounting", "yes"),
    ("Slice", "sandbox.slice"), ("TimeoutStopSec", "10s"), ("Type", "exec"),
)  # fmt: skip
_OF_IMAGES = (("ProtectSystem", "strict"), ("MountAPIVFS", "yes"))
#: Lists that close places. Who closes (or covers) one more does not mean to open those of the profile; an empty value does.
_ADDED = frozenset({"InaccessiblePaths", "ReadOnlyPaths", "TemporaryFileSystem"})


@attrs.frozen
class Plan:
    """A service that could be started."""

    #: The command; its first word is the program's path, or a name that is looked up in the image.
    args: tuple[str, ...]
    #: What is set as text: the profile's, then what was given.
    written: tuple[Assignment, ...]
    #: The names of what was given as Python values, with those values.
    keywords: Mapping[str, Any]
    #: What we add, after all of that.
    added: tuple[Assignment, ...] = ()
    #: The image whose root it has.
    image: str | None = None

    @property
    def assignments(self) -> tuple[Assignment, ...]:
        """Everything that is set, in text, in the order in which the manager is told."""
        return (*self.written, *assignments_of(self.keywords), *self.added)

    @property
    def settings(self) -> Settings:
        """The assignments, put together."""
        return Settings(self.assignments)

    @property
    def texts(self) -> list[str]:
        """What is set as text, as ``Name=text``."""
        return [f"{name}={value}" for name, value in self.written]


def plan(
    command: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, profile: str | None = "default",
    lines: Sequence[str] = (), properties: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None, image: str | None = None, root: bool = True,
) -> Plan:  # fmt: skip
    """Put a service together.

    :param lines: properties as text, ``"MemoryMax=64M"``; they override the profile's of the same name
    :param properties: properties as Python values; they override both
    :param root: the manager runs as root
    :raises PropertyError: one that is not for the caller to set
    :raises CommandNotFound: there is no such program on this host (nor an image to look into)
    """
    args = split_command(command)
    keywords = dict(properties or {})
    if env is not None:
        keywords["Environment"] = {**dict(keywords.get("Environment") or {}), **{k: str(v) for k, v in env.items()}}
    given = [split_assignment(line) for line in lines]
    for name in (*keywords, *(name for name, _ in given)):
        _check_name(name)
    _check_root(image, Settings([*given, *assignments_of(keywords)]))
    chosen = profile_called(profile).assignments(root=root) if profile is not None else []
    if image is not None:
        chosen = [*(pair for pair in chosen if pair[0] not in dict(_OF_IMAGES)), *_OF_IMAGES]
    written = _written(chosen, given, keywords)
    settings = Settings([*written, *assignments_of(keywords)])
    added = [*_fixed(settings, cwd, image), *_kept(Settings(chosen), settings)]
    return Plan(_resolved(args, image), tuple(written), keywords, tuple(added), image)


def _written(
    chosen: Sequence[Assignment], given: Sequence[Assignment], keywords: Mapping[str, Any]
) -> list[Assignment]:  # fmt: skip
    """Those of a later kind take the place of those before, name by name."""
    emptied = {name for name, value in assignments_of(keywords) if not value}
    replaced = {*keywords, *(name for name, _ in given)} - (_ADDED - emptied)
    return [*(pair for pair in chosen if pair[0] not in replaced), *(pair for pair in given if pair[0] not in keywords)]


def _kept(chosen: Settings, settings: Settings) -> list[Assignment]:
    """Another SystemCallFilter= than the profile's does not open what its other properties close, unless it says so."""
    named = {word.partition(":")[0] for word in settings.words("SystemCallFilter")}
    if chosen.given("SystemCallFilter") and settings.io_uring and settings.io_uring_matters and named.isdisjoint(IO_URING):
        return [("SystemCallFilter", f"~{' '.join(IO_URING)}")]
    return []


def _fixed(settings: Settings, cwd: str | os.PathLike[str] | None, image: str | None) -> list[Assignment]:
    if settings.last("Type", "exec") not in _TYPES:
        raise _refused("Type", settings.last("Type"), f"services here are of type {', '.join(_TYPES)}",
                       "leave it out: the service counts as started when the command is executed")  # fmt: skip
    found = [pair for pair in _DEFAULTS if pair[0] not in settings.names]
    if cwd is not None:
        found.append(("WorkingDirectory", os.path.abspath(cwd) if image is None else os.fspath(cwd)))
    elif "WorkingDirectory" not in settings.names:
        found.append(("WorkingDirectory", "/"))  # a user's manager would take the home directory, which may be hidden
    return found


def _check_root(image: str | None, settings: Settings) -> None:
    """An image's files are shared with whoever else uses it, and never written to."""
    value = settings.protect_system
    if image is not None and "ProtectSystem" in settings.names and value != "strict":
        raise _refused("ProtectSystem", value, "an image is never written to",
                       "leave it out, and give it places to write to with BindPaths= or TemporaryFileSystem=")  # fmt: skip


def _check_name(name: str) -> None:
    if name in _OURS:
        raise _refused(name, "", "it is set by sandbox itself", "leave it out")
    if name in _ARGUMENTS:
        raise _refused(name, "", f"there is an argument for it: {_ARGUMENTS[name]}=", f"use {_ARGUMENTS[name]}=")


def _refused(name: str, value: str, why: str, hint: str) -> PropertyError:
    return PropertyError(why, class_name="service", field=name, value=value, hint=hint)


def split_command(command: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    """A command as words; a string is split as shells do, and never given to one. Raises ModelError if it is empty."""
    if isinstance(command, str):
        words = shlex.split(command)
    else:
        words = [os.fspath(word) for word in ([command] if isinstance(command, os.PathLike) else command)]
    if not words or not words[0]:
        raise ModelError("the command has no words", class_name="service", field="command", value=command)
    if bad := next((word for word in words if "\0" in word), None):
        raise ModelError("a NUL byte cannot be passed on", class_name="service", field="command", value=bad)
    return tuple(words)


def _resolved(args: tuple[str, ...], image: str | None) -> tuple[str, ...]:
    """The program as the path that a shell would find it by; systemd itself does not look where we do."""
    if image is not None:
        return args
    found = shutil.which(args[0])
    if found is None and "/" in args[0] and Path(args[0]).exists():
        found = args[0]  # systemd, and after it we, will say what is wrong with it
    if found is None:
        raise CommandNotFound(
            "there is no such program" if "/" in args[0] else f"it is in no directory of PATH ({os.environ.get('PATH')})",
            operation="start service", object=args[0], hint="install it, or give its path",
        )  # fmt: skip
    return (os.path.abspath(found), *args[1:])
