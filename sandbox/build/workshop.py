"""Where layers are made: trees go in, blobs of the store come out. The helper process (:mod:`.helper`) does the reading."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from sandbox._launch import Options
from sandbox.build.draft import LAYER_TYPE, LayerRef
from sandbox.build.errors import BuildError
from sandbox.build.helper import command
from sandbox.images.names import Names
from sandbox.linux.idmap import host_map, run_in_mapped_namespace

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox.build.copying import Order
    from sandbox.build.draft import Draft
    from sandbox.images.image import Image
    from sandbox.images.store import Store

__all__ = ["Workshop", "key_of", "layers_of"]

_CHUNK = 1 << 20
#: An archive without entries: the end and nothing before.
_NOTHING = 1024


def key_of(*inputs: Any) -> str:
    """A name for everything that a result depends on, given as JSON values."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def layers_of(image: Image) -> list[str]:
    """The directories of an unpacked image, lowest first."""
    return [os.fspath(layer) for layer in image.layers]


class Workshop:
    """Makes layers in one store, and remembers what was made of what."""

    def __init__(self, store: Store, options: Options | None = None) -> None:
        """Nothing is made yet.

        :param options: how base images are pulled and what pods of steps run under; the environment's, if not given
        """
        self.store = store
        #: Layers are read from the native engine's overlays.
        self.options = attrs.evolve(options or Options.from_environment(), engine="native", store=os.fspath(store.root))
        self._known = Names(store, "cache")

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """A directory for files that are needed for a while; if this process is killed, the store's next sweep removes it."""
        name = f"build-files-{uuid.uuid4().hex[:12]}"
        with self.store.places.lock(name):
            path = self.store.scratch() / f"{name}~0"
            path.mkdir(mode=0o755)
            try:
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)

    def recall(self, key: str) -> str | None:
        """The digest of what was made under this key, if it is still here."""
        digest = self._known.get(key)
        return digest if digest is not None and self.store.blobs.has(digest) else None

    def remember(self, key: str, digest: str) -> None:
        """Note it for the next time."""
        self._known.set(key, digest)

    def once(self, key: str, make: Callable[[], Draft]) -> str:
        """What was made under this key, or is now: one process makes it while others wait. The digest of its manifest."""
        digest = self.recall(key)
        if digest is None:
            with self.store.places.lock(f"build-{key.partition(':')[2]}"):
                digest = self.recall(key)
                if digest is None:
                    digest = make().save(self.store).digest
                    self.remember(key, digest)
        return digest

    def copy(self, root: Sequence[str], source: Sequence[str] | Path | None, order: Order, *, ignore: Sequence[str] = (),
             ) -> LayerRef | None:  # fmt: skip
        """The layer that copying makes on top of unpacked layers.

        :param source: unpacked layers, lowest first, or a directory
        :raises BuildError: it cannot be copied; ``detail`` says why
        """
        document = {
            **order._asdict(), "root": list(root), "ignore": list(ignore),
            "source": os.fspath(source) if isinstance(source, os.PathLike) else source,
        }  # fmt: skip
        argv = command("copy", json.dumps(document))
        if self.store.id_mapped:
            return self._layer(subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE), "copy")
        # One id map for everything of this user: that of the layers in the store.
        process = run_in_mapped_namespace(argv, host_map(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return self._layer(process, "copy")

    def changes(self, scratch: int, user_namespace: int) -> LayerRef | None:
        """The layer that a container has made.

        :param scratch: what the shim gave for ``container.changes``
        :param user_namespace: that of the container, whose ids the layer gets
        """
        argv = command("changes", f"{scratch} {user_namespace}")
        given = scratch, user_namespace
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=given)
        return self._layer(process, "read the changes of the container")

    def _layer(self, process: subprocess.Popen[bytes], operation: str) -> LayerRef | None:
        """Take a blob from a helper; None if there is nothing in it."""
        assert process.stdout is not None
        assert process.stderr is not None
        with process, self.store.blobs.writer(image="a layer") as writer:
            while piece := process.stdout.read(_CHUNK):
                writer.write(piece)
            problem = process.stderr.read()
            if process.wait():
                raise _problem(problem, process.returncode, operation)
            if writer.size <= _NOTHING:
                return None
            blob = writer.commit(LAYER_TYPE)
        return LayerRef(blob.digest, blob)


def _problem(text: bytes, returncode: int, operation: str) -> BuildError:
    try:
        facts = dict(json.loads(text))
    except ValueError:
        return BuildError(f"the helper process ended with status {returncode}", operation=operation, logs=text)
    return BuildError(operation=operation, **facts)
