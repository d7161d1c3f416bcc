"""COPY, ADD and WORKDIR, seen from the client: what is copied, from where, and what the result depends on."""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import os
import posixpath
import re
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from sandbox.build.context import Context
from sandbox.build.copying import Order
from sandbox.build.dockerfile import HEREDOC, Heredoc, Instruction
from sandbox.build.meta import expanded
from sandbox.build.words import WordError, expand_text
from sandbox.build.workshop import Workshop, layers_of
from sandbox.linux.users import UserDatabase, UserNotFoundError

if TYPE_CHECKING:
    from sandbox.build.draft import Draft
    from sandbox.images.image import Image
    from sandbox.images.store import Store

__all__ = ["CopyJob", "Source", "directory", "downloaded", "from_context", "from_image", "prepare", "settled"]

_URL = re.compile(r"https?://", re.IGNORECASE)
_GIT = re.compile(r"git@|git://|ssh://|https?://.*\.git(?:#.*)?$")
_DOWNLOADED_MODE = 0o600  # Dockerfile reference, "ADD": files from URLs
_TIMEOUT = 60.0


@attrs.frozen
class CopyJob:
    """COPY or ADD with its variables replaced."""

    patterns: tuple[str, ...]
    #: Files that come with the instruction: (name, content).
    texts: tuple[tuple[str, str], ...]
    urls: tuple[str, ...]
    #: Absolute; ends with a slash where it has to be a directory.
    target: str
    #: ``user[:group]`` of ``--chown``.
    owner: str | None
    mode: int | None
    exclude: tuple[str, ...]
    #: The stage or image of ``--from``.
    origin: str | None
    #: Local archives are unpacked.
    archives: bool
    checksum: str | None

    @property
    def key(self) -> list[object]:
        """What the result depends on, beside the root and the content of the sources."""
        return [self.patterns, self.texts, self.target, self.owner, self.mode, self.exclude, self.archives]


@attrs.frozen
class Source:
    """Where files come from. ``place`` is only asked for if they have to be read."""

    place: Callable[[], Sequence[str] | Path | None]
    key: str | Sequence[str]
    ignore: Sequence[str] = ()
    #: Files keep the owners that they have there.
    keeps_owners: bool = False
    #: What files get as their mode unless the instruction says otherwise.
    mode: int | None = None
    #: The names to copy, where they are not those of the instruction.
    patterns: tuple[str, ...] | None = None


def prepare(instruction: Instruction, variables: Mapping[str, str], cwd: str) -> CopyJob:
    """Take the instruction apart.

    :raises DockerfileError: it is malformed, or wants what there is not
    """
    adding = instruction.keyword == "ADD"
    if adding:
        instruction.allow("chown", "chmod", "link", "exclude", "checksum", "keep-git-dir")
    else:
        instruction.allow("from", "chown", "chmod", "link", "exclude")
    words = [expanded(instruction, word, variables) if not HEREDOC.fullmatch(word) else word for word in instruction.words]
    if len(words) < 2:
        raise instruction.error(f"{instruction.keyword} needs a source and a target")
    *sources, target = words
    documents = list(instruction.heredocs)
    texts, urls, patterns = [], [], []
    for source in sources:
        if HEREDOC.fullmatch(source) and documents:
            texts.append(_text(instruction, documents.pop(0), variables))
        elif adding and _GIT.match(source):
            raise instruction.error(f"`{source}`: git repositories are not supported", hint="clone it into the context")
        elif adding and _URL.match(source):
            urls.append(source)
        else:
            patterns.append(source)
    if urls and patterns:
        raise instruction.error("URLs and files in one ADD", hint="write two")
    return CopyJob(
        tuple(patterns), tuple(texts), tuple(urls), _target(target, cwd), _flag(instruction, "chown", variables),
        _mode(instruction, variables), _all(instruction, "exclude"), _flag(instruction, "from", variables), adding,
        _flag(instruction, "checksum", variables),
    )  # fmt: skip


def _text(instruction: Instruction, document: Heredoc, variables: Mapping[str, str]) -> tuple[str, str]:
    if not document.expand:
        return document.name, document.content
    try:
        return document.name, expand_text(document.content, variables, escape=instruction.escape)
    except WordError as error:
        raise instruction.error(str(error)) from None


def _target(text: str, cwd: str) -> str:
    path = posixpath.normpath(posixpath.join("/", cwd, text)).replace("//", "/")
    as_directory = text.endswith(("/", "/.")) or text in (".", "..")
    return f"{path.rstrip('/')}/" if as_directory else path


def _flag(instruction: Instruction, name: str, variables: Mapping[str, str]) -> str | None:
    value = instruction.flag(name)
    return expanded(instruction, value, variables) if value else None


def _all(instruction: Instruction, name: str) -> tuple[str, ...]:
    return tuple(value for flag, value in instruction.flags if flag == name)


def _mode(instruction: Instruction, variables: Mapping[str, str]) -> int | None:
    text = _flag(instruction, "chmod", variables)
    if text is None:
        return None
    if not re.fullmatch(r"[0-7]{3,4}", text):
        raise instruction.error(f"--chmod={text}: not an octal mode", hint="write 755 or 0644")
    return int(text, 8)


def settled(job: CopyJob, instruction: Instruction, image: Image | None, source: Source) -> Order:
    """The order for the helper.

    :param image: in which users are looked up; None for one without files
    """
    owner = _owner(job.owner, instruction, image) if job.owner else None
    return Order(
        target=job.target, patterns=source.patterns if source.patterns is not None else job.patterns,
        owner=owner or (None if source.keeps_owners else (0, 0)), archive_owner=owner,
        mode=job.mode if job.mode is not None else source.mode, texts=job.texts,
        archives=job.archives and source.mode is None, exclude=job.exclude, parents=owner or (0, 0), mtime=int(time.time()),
    )  # fmt: skip


def directory(path: str, user: str, instruction: Instruction, image: Image | None) -> Order:
    """The order for a directory that is there afterwards; what has to be made belongs to the user, as docker has it."""
    try:
        found = _users(image).lookup(user or "0")
    except UserNotFoundError as error:
        raise instruction.error(str(error), hint="add it before USER") from None
    return Order(target=path, parents=(found.uid, found.gid), mtime=int(time.time()))


def _users(image: Image | None) -> UserDatabase:
    return UserDatabase(image.users.passwd, image.users.group) if image is not None else UserDatabase("", "")


def _owner(text: str, instruction: Instruction, image: Image | None) -> tuple[int, int]:
    """``user[:group]``; without a group the one of the user's name or number, as docker has it."""
    user, colon, group = text.partition(":")
    database = _users(image)
    try:
        found = database.lookup(user)
        if colon:
            return found.uid, database.lookup(f"0:{group}").gid
        return found.uid, found.uid if user.isdecimal() else found.gid
    except UserNotFoundError as error:
        raise instruction.error(f"--chown={text}: {error}", hint="add it before, or give numbers") from None


# -- sources --------------------------------------------------------------------------------------------------------


def from_context(context: Context, job: CopyJob, digest: Callable[[Context, Sequence[str], Sequence[str]], str]) -> Source:
    """The build context. Its content is what counts, not its times.

    :param digest: what files of it come to
    """
    if not job.patterns:
        return Source(lambda: None, "")
    return Source(context.need, digest(context, job.patterns, job.exclude), context.ignore)


def from_image(draft: Draft, store: Store, job: CopyJob) -> Source:
    """Another stage, or an image."""

    def place() -> Sequence[str]:
        return layers_of(draft.image(store, job.origin or "")) if draft.layers else []

    return Source(place, draft.identity, keeps_owners=True)


def downloaded(instruction: Instruction, job: CopyJob, workshop: Workshop, stack: contextlib.ExitStack) -> Source:
    """Files behind URLs. With a checksum they are only fetched if the step has to be done."""
    names = tuple(_name(instruction, url, job.target) for url in job.urls)
    folder: list[Path] = []

    def place() -> Path:
        if not folder:
            top = stack.enter_context(workshop.folder())
            for url, name in zip(job.urls, names, strict=True):
                _fetch(instruction, url, top / name, job.checksum)
            folder.append(top)
        return folder[0]

    if job.checksum is not None:
        key = [*job.urls, job.checksum]
    else:
        key = [hashlib.sha256((place() / name).read_bytes()).hexdigest() for name in names]
    return Source(place, key, mode=_DOWNLOADED_MODE, patterns=tuple(re.sub(r"([*?\[\\])", r"\\\1", name) for name in names))


def _name(instruction: Instruction, url: str, target: str) -> str:
    name = urllib.parse.unquote(posixpath.basename(urllib.parse.urlsplit(url).path))
    if name in ("", ".", "..") or "/" in name:
        if target.endswith("/"):
            raise instruction.error(f"`{url}` has no file name", hint="give the file's name in the target")
        return "download"
    return name


def _fetch(instruction: Instruction, url: str, path: Path, checksum: str | None) -> None:
    import urllib.error
    import urllib.request

    request = urllib.request.Request(url, headers={"User-Agent": "sandbox"})  # noqa: S310 - http and https only
    hashed = hashlib.sha256()
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer, path.open("wb") as file:  # noqa: S310
            while piece := answer.read(1 << 20):
                hashed.update(piece)
                file.write(piece)
            changed = email.utils.parsedate_to_datetime(answer.headers.get("Last-Modified") or _EPOCH)
    except urllib.error.HTTPError as error:
        raise instruction.error(f"{url}: the server answered {error.code} {error.reason}") from None
    except OSError as error:
        raise instruction.error(f"{url}: {getattr(error, 'reason', error)}") from None
    if checksum is not None and checksum != (actual := f"sha256:{hashed.hexdigest()}"):
        raise instruction.error(f"{url} is {actual}, not {checksum}", hint="the file has changed, or the checksum is wrong")
    os.utime(path, (changed.timestamp(), changed.timestamp()))


_EPOCH = "Thu, 01 Jan 1970 00:00:00 GMT"
