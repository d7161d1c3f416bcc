"""Image references: the text a user writes, taken apart. Pure: no file is looked at here.

The words are those of containers-transports(5) (``oci:PATH[:TAG]``, ``docker-archive:PATH[:REF]`` …) and, for
registry names, the grammar of the distribution project: ``[HOST[:PORT]/]NAME[:TAG][@DIGEST]`` with
``docker.io``, ``library/`` and ``latest`` as what is meant when it is left out.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

import attrs

from sandbox.errors import ImageError

__all__ = ["BUILTIN_TRANSPORTS", "Reference", "parse", "parse_registry_name"]

#: Transports this version knows by itself, in the order in which messages list them.
BUILTIN_TRANSPORTS = (
    "host",
    "dir",
    "oci",
    "oci-archive",
    "docker-archive",
    "docker",
    "docker-daemon",
    "containers-storage",
    "build",
    "mmdebstrap",
)

_TRANSPORT = re.compile(r"([a-z][a-z0-9+.-]*):(.*)", re.DOTALL)
_DIGEST_AT_END = re.compile(r"(.*)@((?:sha256|sha384|sha512):[0-9a-f]+)", re.DOTALL)
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_LABEL = r"(?:[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9-]*[A-Za-z0-9])"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?")
_NAME_LENGTH = 255  # of host and repository together, as registries have it


@attrs.frozen
class Reference:
    """A reference, taken apart. Fields that its transport does not have are empty.

    >>> parse("postgres:16").canonical
    'docker.io/library/postgres:16'
    """

    #: The reference as the user wrote it.
    text: str
    #: ``host``, ``dir``, ``oci``, ``oci-archive``, ``docker-archive``, ``docker`` (a registry), ``docker-daemon``,
    #: ``containers-storage``, ``path`` (what is there decides) or the name of a registered source.
    transport: str
    #: File system path; for a registered source everything after ``name:``.
    path: str = ""
    #: Tag in a layout or registry; in a docker-archive the name to look for.
    tag: str = ""
    #: Digest that was asked for, ``sha256:…``.
    digest: str = ""
    #: Registry host, ``docker.io``.
    domain: str = ""
    #: Repository in the registry, ``library/postgres``.
    repository: str = ""
    #: No registry host was written, so registries.conf(5) may have an alias for it.
    short: bool = False

    @property
    def canonical(self) -> str:
        """The reference with everything that was implied written out."""
        if self.transport != "docker":
            return self.text
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.domain}/{self.repository}{tag}{digest}"

    def __str__(self) -> str:
        return self.text


def parse(text: str, transports: Iterable[str] = ()) -> Reference:
    """Take a reference apart.

    :param text: what the user wrote
    :param transports: names of registered sources, beside those this version knows itself
    :raises ImageError: it is no reference; an unknown transport is answered with the known ones
    """
    _check_text(text)
    return _parsed(text, tuple(transports))


@functools.lru_cache(maxsize=128)
def _parsed(text: str, transports: tuple[str, ...]) -> Reference:
    """Each start of a pod parses its references, and they are few."""
    if text == "host":
        return Reference(text, "host")
    if _is_path(text):
        return Reference(text, "path", path=text)
    known = (*BUILTIN_TRANSPORTS, *transports)
    if (match := _TRANSPORT.fullmatch(text)) is None:
        return parse_registry_name(text)
    transport, rest = match.groups()
    if transport not in known or (transport in ("host", "docker") and not rest.startswith("//")):
        return _registry_or_unknown(text, transport, rest, known)
    return _with_transport(text, transport, rest)


@functools.lru_cache(maxsize=128)
def parse_registry_name(text: str, name: str | None = None) -> Reference:
    """Take a docker-style name apart: ``postgres:16`` is ``docker.io/library/postgres:16``.

    :param name: the name, where ``text`` has something in front of it
    :raises ImageError: it breaks the grammar
    """
    rest = text if name is None else name
    rest, _, digest = rest.partition("@")
    if digest and not _DIGEST.fullmatch(digest):
        raise _invalid(
            text, f"`{digest}` is not a digest", "a digest looks like sha256:<64 hexadecimal digits>"
        )
    rest, tag = _split_tag(text, rest)
    domain, repository = _split_domain(rest)
    short = name is None and not rest.startswith((f"{domain}/", "index.docker.io/"))
    _check_name(text, domain, repository)
    if not tag and not digest:
        tag = "latest"
    return Reference(
        text, "docker", tag=tag, digest=digest, domain=domain, repository=repository, short=short
    )


def _with_transport(text: str, transport: str, rest: str) -> Reference:
    if transport == "docker":
        return parse_registry_name(text, rest.removeprefix("//"))
    if transport in ("oci", "oci-archive", "docker-archive"):
        return _file_reference(text, transport, rest)
    if transport == "dir" and not rest:
        raise _invalid(text, "the path is missing", "write dir:PATH")
    if transport in ("docker-daemon", "containers-storage") and not rest:
        raise _invalid(text, "the name is missing", f"write {transport}:NAME[:TAG]")
    return Reference(text, transport, path=rest)


def _file_reference(text: str, transport: str, rest: str) -> Reference:
    """``PATH[:TAG][@DIGEST]``; as in containers-transports(5) the first colon ends the path."""
    digest = ""
    if match := _DIGEST_AT_END.fullmatch(rest):
        rest, digest = match.groups()
    path, _, tag = rest.partition(":")
    if not path:
        raise _invalid(text, "the path is missing", f"write {transport}:PATH[:TAG]")
    return Reference(text, transport, path=path, tag=tag, digest=digest)


def _registry_or_unknown(text: str, transport: str, rest: str, known: tuple[str, ...]) -> Reference:
    """``redis:7`` is a name with a tag, ``biuld:./app`` a transport that nobody knows."""
    try:
        return parse_registry_name(text)
    except ImageError:
        if "/" not in rest.split("@", maxsplit=1)[0].rpartition(":")[0] and not rest.startswith(
            (".", "/", "~")
        ):
            raise
    import difflib

    near = difflib.get_close_matches(transport, known, n=1)
    meant = f"did you mean {near[0]}:? " if near else ""
    raise ImageError(
        f"unknown transport `{transport}`",
        operation="parse image reference",
        object=text,
        hint=f"{meant}known are: {', '.join(known)}",
    )


def _is_path(text: str) -> bool:
    return text in (".", "..") or text.startswith(("./", "../", "/"))


def _split_tag(text: str, rest: str) -> tuple[str, str]:
    name, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        return rest, ""
    if not _TAG.fullmatch(tag):
        raise _invalid(
            text, f"`{tag}` is not a tag", "tags have letters, digits, _ . - and at most 128 of them"
        )
    return name, tag


def _split_domain(rest: str) -> tuple[str, str]:
    """The first component is a host if it looks like one, as docker decides it."""
    first, slash, remainder = rest.partition("/")
    if slash and (any(c in first for c in ".:[") or first == "localhost" or first != first.lower()):
        domain, repository = first, remainder
    else:
        domain, repository = "docker.io", rest
    if domain == "index.docker.io":
        domain = "docker.io"
    if domain == "docker.io" and "/" not in repository:
        repository = f"library/{repository}"
    return domain, repository


def _check_name(text: str, domain: str, repository: str) -> None:
    if not _HOST.fullmatch(domain):
        raise _invalid(text, f"`{domain}` is not a registry host", "a host looks like registry.example:5000")
    for component in repository.removeprefix("library/").split("/"):
        if not _COMPONENT.fullmatch(component):
            hint = "repository names are lower case: letters, digits and single . _ - between them"
            raise _invalid(text, f"`{component}` cannot be part of a repository name", hint)
    if len(domain) + 1 + len(repository) > _NAME_LENGTH:
        raise _invalid(text, f"the name is longer than {_NAME_LENGTH} characters", "use a shorter name")


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise ImageError(
            f"an image reference is text, not {type(text).__name__}", operation="parse image reference"
        )
    if not text or text != text.strip() or "\0" in text or "\n" in text:
        raise _invalid(
            text, "it is empty or has blanks around it", "write for example host, dir:PATH or oci:PATH:TAG"
        )


def _invalid(text: object, detail: str, hint: str) -> ImageError:
    return ImageError(detail, operation="parse image reference", object=str(text), hint=hint)
