"""Where a name is fetched from: registries.conf, containers-registries.conf(5), as podman and skopeo read it.

What it may say: aliases of short names, mirrors, other locations, ``insecure``, ``blocked``. Search
registries are not consulted: a name without a host means the same on every machine, an alias or docker.io.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from sandbox.errors import ImageError
from sandbox.images.errors import RegistryError
from sandbox.images.references import Reference, parse_registry_name

__all__ = ["Endpoint", "RegistriesConf", "canonical"]

_SYSTEM = Path("/etc/containers")
_MIRROR_USES = ("", "all", "digest-only", "tag-only")


@attrs.frozen
class Endpoint:
    """A repository as one server has it."""

    #: ``host[:port]`` as configured, ``docker.io``.
    host: str
    repository: str
    #: Plain HTTP and certificates that nobody vouches for are accepted.
    insecure: bool = False

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}"


@attrs.frozen
class Mirror:
    """Another place for what begins with a prefix."""

    location: str
    insecure: bool
    #: ``all``, ``digest-only`` or ``tag-only``.
    use: str

    def serves(self, reference: Reference) -> bool:
        """Whether this reference may be asked of it."""
        return self.use == "all" or (self.use == "digest-only") == bool(reference.digest)


@attrs.frozen
class Registry:
    """One ``[[registry]]`` table."""

    prefix: str
    location: str
    insecure: bool
    blocked: bool
    mirrors: tuple[Mirror, ...]

    def matches(self, name: str) -> int:
        """How many characters of the rule match ``host/repository``; 0 if it is about something else."""
        if self.prefix.startswith("*."):
            host = name.partition("/")[0].partition(":")[0]
            return len(self.prefix) if host.endswith(self.prefix[1:]) else 0
        after = name[len(self.prefix) :]
        return len(self.prefix) if name.startswith(self.prefix) and after[:1] in {"", "/", ":"} else 0


@attrs.frozen
class RegistriesConf:
    """What all the files together say."""

    registries: tuple[Registry, ...] = ()
    aliases: Mapping[str, str] = attrs.field(factory=dict)

    @classmethod
    def load(cls) -> RegistriesConf:
        """Read the files: ``$CONTAINERS_REGISTRIES_CONF`` alone, or the user's or else the system's, then drop-ins.

        :raises ImageError: a file is not what containers-registries.conf(5) describes
        """
        tables: dict[str, Registry] = {}
        aliases: dict[str, str] = {}
        for path in _files():
            document = _read(path)
            try:
                tables |= {registry.prefix: registry for registry in _registries(document)}
                aliases |= _aliases(document)
            except (TypeError, ValueError, AttributeError) as error:
                raise _bad(path, error) from error
        return cls(tuple(tables.values()), {name: to for name, to in aliases.items() if to})

    def canonical(self, reference: Reference) -> Reference:
        """The reference with an alias of a short name applied.

        :raises ImageError: the alias is no name
        """
        if not reference.short:
            return reference
        name = reference.repository.removeprefix("library/")
        if (alias := self.aliases.get(name)) is None:
            return reference
        target = parse_registry_name(reference.text, alias)
        return attrs.evolve(reference, domain=target.domain, repository=target.repository, short=False)

    def endpoints(self, reference: Reference) -> list[Endpoint]:
        """Where to ask, in order: mirrors, then the registry itself.

        :raises RegistryError: the name is blocked
        """
        name = f"{reference.domain}/{reference.repository}"
        rule = max(self.registries, key=lambda registry: registry.matches(name), default=None)
        if rule is None or not rule.matches(name):
            return [Endpoint(reference.domain, reference.repository)]
        if rule.blocked:
            raise RegistryError(
                f"registries.conf blocks `{rule.prefix}`", operation="pull", object=reference.text,
                registry=reference.domain,
                hint="take `blocked` off that entry of registries.conf, or use an image from elsewhere",
            )  # fmt: skip
        mirrors = [mirror for mirror in rule.mirrors if mirror.serves(reference)]
        places = [(mirror.location, mirror.insecure) for mirror in mirrors] + [(rule.location, rule.insecure)]
        return [_endpoint(name, rule.prefix, location, insecure) for location, insecure in places]


def canonical(reference: Reference) -> Reference:
    """The reference with this machine's aliases applied; files are read only for a short name."""
    return RegistriesConf.load().canonical(reference) if reference.short else reference


def _endpoint(name: str, prefix: str, location: str, insecure: bool) -> Endpoint:
    if location and not prefix.startswith("*."):
        name = location + name[len(prefix) :]
    host, _, repository = name.partition("/")
    return Endpoint(host, repository, insecure)


def _files() -> list[Path]:
    if given := os.environ.get("CONTAINERS_REGISTRIES_CONF"):
        return [Path(given)]
    places = [_SYSTEM]
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    if config.startswith("/"):
        places.append(Path(config) / "containers")
    mains = [main for place in places if os.path.isfile(main := place / "registries.conf")]
    drops = [sorted((place / "registries.conf.d").glob("*.conf")) for place in places]
    return [*mains[-1:], *(path for each in drops for path in each)]


def _read(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ImageError(operation="read registry settings", path=path, errno=error.errno) from error
    except ValueError as error:  # tomllib.TOMLDecodeError and UnicodeDecodeError
        raise _bad(path, error) from error


def _bad(path: Path, cause: object) -> ImageError:
    return ImageError(
        "it is not as containers-registries.conf(5) has it", operation="read registry settings", path=path,
        cause=str(cause), hint="correct the file, or name another one in CONTAINERS_REGISTRIES_CONF",
    )  # fmt: skip


def _registries(document: Mapping[str, Any]) -> Iterable[Registry]:
    for table in document.get("registry", ()):
        location = _text(table, "location")
        prefix = _text(table, "prefix") or location
        if not prefix:
            raise ValueError("a [[registry]] has neither prefix nor location")
        default = "digest-only" if _flag(table, "mirror-by-digest-only") else "all"
        mirrors = tuple(_mirror(each, default) for each in table.get("mirror", ()))
        yield Registry(
            prefix.rstrip("/"), location.rstrip("/"), _flag(table, "insecure"), _flag(table, "blocked"), mirrors
        )
    # Version 1 of the format: lists of hosts.
    old = document.get("registries", {})
    hosts = {kind: set(old.get(kind, {}).get("registries", ())) for kind in ("insecure", "block")}
    for host in sorted(hosts["insecure"] | hosts["block"]):
        yield Registry(host, host, host in hosts["insecure"], host in hosts["block"], ())


def _mirror(table: Mapping[str, Any], default: str) -> Mirror:
    use = _text(table, "pull-from-mirror")
    if use not in _MIRROR_USES or not _text(table, "location"):
        raise ValueError(f"a mirror without a location, or pull-from-mirror = {use!r}")
    return Mirror(_text(table, "location").rstrip("/"), _flag(table, "insecure"), use or default)


def _aliases(document: Mapping[str, Any]) -> dict[str, str]:
    found = document.get("aliases", {})
    return {str(name): _text(found, name) for name in found}


def _text(table: Mapping[str, Any], key: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str):
        raise TypeError(f"`{key}` is not text")
    return value


def _flag(table: Mapping[str, Any], key: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise TypeError(f"`{key}` is neither true nor false")
    return value
