"""Images of Debian packages: ``mmdebstrap:SUITE?include=PACKAGE,…``, made by mmdebstrap(1), once for the same words."""

from __future__ import annotations

import re
import shutil
import subprocess
import urllib.parse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sandbox.build.draft import LAYER_TYPE, Draft, LayerRef
from sandbox.build.errors import BuildError
from sandbox.build.workshop import Workshop, key_of
from sandbox.images.manifests import Manifests
from sandbox.images.stored import Images

if TYPE_CHECKING:
    from sandbox.images.image import Image
    from sandbox.images.references import Reference
    from sandbox.images.store import Store

__all__ = ["command", "draft", "is_harmless", "resolve"]

#: Parameter → whether it may be given more than once. All are options of mmdebstrap(1) but for the mirror.
_PARAMETERS = {
    "include": True, "variant": False, "components": True, "architectures": False, "mirror": True, "aptopt": True,
    "dpkgopt": True, "mode": False, "keyring": True,
}  # fmt: skip
#: What says which packages, not how or from where they are installed.
_HARMLESS = frozenset({"include", "variant", "components", "architectures"})
_WORDS = re.compile(r"[A-Za-z0-9][A-Za-z0-9+.:,~=_-]*")
_VARIANT = "minbase"
_CHUNK = 1 << 20
_LINES = 30
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def resolve(reference: Reference, store: Store) -> Image:
    """The image; made now if this store has none of the same words.

    :raises BuildError: mmdebstrap is not installed or failed; with its last lines
    """
    workshop = Workshop(store)
    argv = command(reference)
    digest = workshop.once(f"mmdebstrap:{key_of(argv)}", lambda: draft(reference, argv, workshop))
    return Manifests(store.blobs, reference.text, store).image(Images(store).get(digest).start)


def is_harmless(reference: Reference) -> bool:
    """Whether it names packages of the machine's own mirror, and nothing that mmdebstrap would execute, trust or read."""
    suite, _, query = reference.path.partition("?")
    given = urllib.parse.parse_qsl(query, keep_blank_values=True, separator="&")
    words = (suite, *(value for _, value in given))
    return all(name in _HARMLESS for name, _ in given) and all(_WORDS.fullmatch(word) for word in words)


def command(reference: Reference) -> list[str]:
    """The command line, which writes an archive to standard output. Pure.

    :raises BuildError: a parameter is not known, or given twice
    """
    suite, _, query = reference.path.partition("?")
    if not suite or suite.startswith("-"):
        raise _wrong(reference, "the suite is missing", "write mmdebstrap:bookworm?include=PACKAGE,…")
    given: dict[str, list[str]] = {}
    for name, value in urllib.parse.parse_qsl(query, keep_blank_values=True, separator="&"):
        if name not in _PARAMETERS:
            raise _wrong(reference, f"there is no parameter `{name}`", f"known are: {', '.join(_PARAMETERS)}")
        given.setdefault(name, []).append(value)
    for name, values in given.items():
        if len(values) > 1 and not _PARAMETERS[name]:
            raise _wrong(reference, f"`{name}` is given twice", "give it once")
    return ["mmdebstrap", *_options(given), suite, "-", *given.get("mirror", [])]


def _options(given: dict[str, list[str]]) -> Iterator[str]:
    yield f"--variant={given.get('variant', [_VARIANT])[0]}"
    yield "--format=tar"
    yield "--skip=output/dev"  # device nodes: every container has its own
    for name, values in given.items():
        if name not in ("variant", "mirror"):
            yield from (f"--{name}={value}" for value in values)


def _wrong(reference: Reference, detail: str, hint: str) -> BuildError:
    return BuildError(detail, operation="parse image reference", object=reference.text, hint=hint)


def draft(reference: Reference, argv: list[str], workshop: Workshop) -> Draft:
    """Run it: its archive is the one layer."""
    if shutil.which(argv[0]) is None:
        raise BuildError(
            "mmdebstrap is not installed", operation="build image", object=reference.text, feature="mmdebstrap",
            hint="apt install mmdebstrap",
        )  # fmt: skip
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        layer, problem = _stored(process, workshop)
    if process.returncode:
        lines = problem.decode("utf-8", "replace").splitlines()[-_LINES:]
        raise BuildError(
            f"mmdebstrap ended with status {process.returncode}", operation="build image", object=reference.text, logs=lines,
        )  # fmt: skip
    assert layer is not None
    made = Draft.scratch().configured(Env=[f"PATH={_PATH}"], Cmd=["/bin/bash"])
    return made.noted(" ".join(argv), layer)


def _stored(process: subprocess.Popen[bytes], workshop: Workshop) -> tuple[LayerRef | None, bytes]:
    """Take the archive in while the messages are read; an archive of a failed run is forgotten."""
    import threading

    assert process.stdout is not None
    assert process.stderr is not None
    messages: list[bytes] = []
    stderr = process.stderr
    reader = threading.Thread(target=lambda: messages.append(stderr.read()), daemon=True)
    reader.start()
    with workshop.store.blobs.writer(image="mmdebstrap") as writer:
        while piece := process.stdout.read(_CHUNK):
            writer.write(piece)
        reader.join()
        if process.wait():
            return None, messages[0]
        blob = writer.commit(LAYER_TYPE)
    return LayerRef(blob.digest, blob), messages[0]
