"""The store: blobs and unpacked layers, each once, for all images and all processes of a user.

::

    blobs/sha256/<digest>                          manifests, configurations, layers as they came
    images/, names/, cache/                        which manifests there are, and what they are called
    layers/sha256/<diff id>[+variant]/diff/        the files, in overlayfs form, never written to again
                                      layer.json   what unpacking came to
    tmp/, locks/, leases/                          see :mod:`sandbox.images.places`

A layer appears by rename(2), whole or not at all. Who wants one that is not there takes the layer's lock,
looks again, and unpacks it. A process that is killed loses its lock with its life: what it left in ``tmp``
is then recognised as dead (its lock is free) and removed by the next one that unpacks something.

Root keeps layers under the ids they have in the image. Everyone else has them unpacked in a user namespace,
so that on disk they carry this user's sub-ids; the id map is part of the layer's name.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs

from sandbox.errors import ImageError
from sandbox.images.blobs import LayerBlob, PlainLayer
from sandbox.images.blobstore import BlobStore
from sandbox.images.errors import ImageTooLarge, LayerError, StoreError
from sandbox.images.limits import DEFAULT_LIMITS, Limits
from sandbox.images.places import Places, store_errors
from sandbox.images.removal import remove
from sandbox.images.unpack import command
from sandbox.linux.idmap import IdMap, host_map, is_privileged, run_in_mapped_namespace

__all__ = ["Layer", "Store"]

_PIPE_SIZE = 1 << 20  # what an ordinary user may ask for, pipe(7)
_F_SETPIPE_SZ = 1031


@attrs.frozen
class Layer:
    """An unpacked layer."""

    #: The directory to mount.
    path: Path
    #: Entries of the archive.
    entries: int
    #: Bytes of the uncompressed archive.
    size: int
    #: What was left out: ``name [attribute]``.
    skipped: tuple[str, ...]
    #: Directories that the archive had no entry for.
    implicit: tuple[str, ...]
    #: Nothing below this layer shows.
    opaque: bool


class Store:
    """Blobs and unpacked layers below one directory. What images it has is told by :mod:`sandbox.images.stored`.

    >>> Store.default().layers([blob])[0].path
    PosixPath('/var/lib/sandbox/layers/sha256/…/diff')
    """

    def __init__(self, root: str | os.PathLike[str] | None = None, limits: Limits = DEFAULT_LIMITS) -> None:
        """A store in a directory, which is made when it is first needed; by default this user's store."""
        self._given = root
        self.limits = limits

    @classmethod
    def default(cls) -> Store:
        """``$SANDBOX_STORE``, else /var/lib/sandbox for root and ``$XDG_DATA_HOME/sandbox`` for everyone else."""
        return cls()

    @cached_property
    def root(self) -> Path:
        """Where the store is.

        :raises StoreError: this user has no home directory to put it in
        """
        return (_default_root() if self._given is None else Path(self._given)).absolute()

    @cached_property
    def places(self) -> Places:
        """Its directories, locks and leases."""
        return Places(self.root)

    @cached_property
    def blobs(self) -> BlobStore:
        """Its blobs."""
        return BlobStore(self.places)

    @cached_property
    def id_mapped(self) -> bool:
        """Whether files carry container ids and need an idmapped mount."""
        return is_privileged()

    @property
    def ownership_lost(self) -> bool:
        """Whether all files belong to one user, because there are no sub-ids to tell owners apart with."""
        return not self.id_mapped and self._id_map.single

    @cached_property
    def _id_map(self) -> IdMap:
        return host_map()

    @cached_property
    def _variant(self) -> str:
        """Tells layers apart whose files carry different ids on disk."""
        if self.id_mapped:
            return ""
        ids = json.dumps(self._id_map.to_json()).encode()
        return f"+{hashlib.sha256(ids).hexdigest()[:16]}"

    def layers(self, blobs: Sequence[LayerBlob]) -> tuple[Layer, ...]:
        """The layers of an image, lowest first, unpacked now if they are not there yet.

        Layers that an opaque one hides completely are left out.

        :raises ImageVerificationError: a blob is not what was promised
        :raises LayerError: a layer is broken, hostile or too large; nothing of it stays
        :raises StoreError: the store cannot be written
        """
        if len(blobs) > self.limits.layers:
            raise ImageTooLarge(
                f"{len(blobs)} layers, more than {self.limits.layers}",
                operation="unpack",
                object=blobs[0].image,
            )
        with store_errors("unpack", blobs[0].image, self.root):
            return self._stack(blobs)

    def unpacked(self, diff_id: str) -> Layer | None:
        """A layer, if it is unpacked already; looking at it does not keep it."""
        return self._find(f"{diff_id.replace(':', '/')}{self._variant}")

    def scratch(self) -> Path:
        """A directory for files without a name, on the store's file system."""
        return self.places.directory("tmp")

    # -- finding and making
    # ----------------------------------------------------------------------------------------

    def _stack(self, blobs: Sequence[LayerBlob]) -> tuple[Layer, ...]:
        found = self._all(blobs)
        for index, layer in enumerate(found[1:], 1):
            if layer.implicit and not layer.opaque:
                found[index] = self._with_parents(blobs[: index + 1], found[:index])
        start = max((index for index, layer in enumerate(found) if layer.opaque), default=0)
        return tuple(found[start:])

    def _all(self, blobs: Sequence[LayerBlob]) -> list[Layer]:
        """Each layer by itself. Those that are missing are unpacked in parallel."""
        names = [self._name(blob) for blob in blobs]
        self.places.use(*(f"layers/{name}" for name in names))
        found = {name: self._find(name) for name in names}
        missing = {name: blob for name, blob in zip(names, blobs, strict=True) if found[name] is None}
        if len(missing) == 1:
            for name, blob in missing.items():
                self._make(name, blob, ())
        elif missing:
            with ThreadPoolExecutor(min(len(missing), os.cpu_count() or 1)) as workers:
                running = [workers.submit(self._make, name, blob, ()) for name, blob in missing.items()]
                for each in running:
                    try:
                        each.result()
                    except BaseException:
                        workers.shutdown(wait=True, cancel_futures=True)
                        raise
        return [found[name] or self._load(name) for name in names]

    def _with_parents(self, blobs: Sequence[LayerBlob], below: Sequence[Layer]) -> Layer:
        """A layer whose implicit directories look like those of the layers below: it depends on all of them."""
        chain = hashlib.sha256(" ".join(blob.diff_id for blob in blobs).encode()).hexdigest()[:16]
        name = f"{self._name(blobs[-1])}+on-{chain}"
        self.places.use(f"layers/{name}")
        return self._find(name) or self._make(name, blobs[-1], [layer.path for layer in reversed(below)])

    def _name(self, blob: LayerBlob) -> str:
        algorithm, _, value = blob.diff_id.partition(":")
        if not algorithm.isalnum() or not value.isalnum():
            raise ImageError(f"`{blob.diff_id[:150]}` is not a digest", operation="unpack", object=blob.image)
        return f"{algorithm}/{value}{self._variant}"

    def _find(self, name: str) -> Layer | None:
        try:
            return self._load(name)
        except FileNotFoundError:
            return None

    def _load(self, name: str) -> Layer:
        home = f"{self.root}/layers/{name}"
        with open(f"{home}/layer.json", "rb") as file:
            facts = json.loads(file.read())
        return Layer(
            path=Path(home, "diff"),
            entries=facts["entries"],
            size=facts["size"],
            skipped=tuple(facts["skipped"]),
            implicit=tuple(facts["implicit"]),
            opaque=facts["opaque"],
        )

    def _make(self, name: str, blob: LayerBlob, parents: Sequence[Path]) -> Layer:
        """Unpack a layer unless someone else just did."""
        with self.places.lock(name) as lock:
            found = self._find(name)
            if found is None:
                self.places.sweep(self.remove_tree, held=name)
                self._unpack(name, blob, parents, lock)
                found = self._load(name)
            return found

    def _unpack(self, name: str, blob: LayerBlob, parents: Sequence[Path], lock: int) -> None:
        flat = name.replace("/", "-")
        work = self.places.directory("tmp") / f"{flat}~{uuid.uuid4().hex[:12]}"
        work.mkdir(mode=0o700)
        try:
            (work / "diff").mkdir(mode=0o755)
            _plain_directory(work / "diff")
            facts = self._fill(work / "diff", blob, parents, lock)
            (work / "layer.json").write_text(json.dumps(facts))
            final = self.places.directory("layers") / name
            final.parent.mkdir(mode=0o700, exist_ok=True)
            work.rename(final)
        except BaseException:
            self.remove_tree(work)
            raise

    # -- the helper
    # ------------------------------------------------------------------------------------------------

    def _fill(self, target: Path, blob: LayerBlob, parents: Sequence[Path], lock: int) -> dict[str, Any]:
        """Feed a layer to the helper while verifying it, and return what the helper said and we measured."""
        options = {
            "limits": list(self.limits),
            "owners": not self.ownership_lost,
            "parents": [os.fspath(parent) for parent in parents],
        }
        with PlainLayer(blob, self.limits) as layer:
            helper = self.start_helper("unpack", str(target), json.dumps(options), lock=lock)
            try:
                _feed(helper, layer)
                answer = _answer(helper, blob)
            except BaseException as error:
                _stop(helper)
                if isinstance(error, LayerError):
                    layer.verify_stored()  # damage explains what looks like hostility
                raise
            if "error" not in answer:
                layer.verify()
                return {**answer, "diff_id": blob.diff_id, "size": layer.plain_size}
            layer.verify_stored()
            raise _layer_error(answer["error"], blob)

    def start_helper(self, verb: str, *arguments: str, lock: int = -1) -> subprocess.Popen[bytes]:
        """Start :mod:`sandbox.images.unpack` as whoever may give files the owners they need.

        :param lock: a descriptor that it holds while it lives
        """
        options: dict[str, Any] = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "pass_fds": (lock,) if lock >= 0 else (),
            "bufsize": 0,
        }
        argv = command(verb, *arguments)
        if self.id_mapped:
            return subprocess.Popen(argv, **options)
        return run_in_mapped_namespace(argv, self._id_map, **options)

    # -- housekeeping
    # ----------------------------------------------------------------------------------------------

    def remove_tree(self, tree: Path) -> None:
        """Remove files whose owners this user may have no power over; nothing happens if there are none.

        :raises StoreError: something of it is still there
        """
        if self.id_mapped:
            remove(os.fspath(tree))
            return
        _, problem = self.start_helper("remove", str(tree)).communicate()
        if os.path.lexists(tree):
            text = problem.decode(errors="replace").strip()
            raise StoreError(operation="remove", object=str(tree), cause=text or None)


def _default_root() -> Path:
    if given := os.environ.get("SANDBOX_STORE"):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/sandbox")
    data = os.environ.get("XDG_DATA_HOME", "")
    try:
        return Path(data if data.startswith("/") else Path.home() / ".local/share") / "sandbox"
    except RuntimeError:
        raise StoreError(
            "this user has no home directory",
            operation="open image store",
            hint="set SANDBOX_STORE to a directory",
        ) from None


def _plain_directory(path: Path) -> None:
    """Undo what a directory inherits: a set-group-id bit, a default ACL. All files would inherit it in turn."""
    path.chmod(0o755)
    with suppress(OSError):
        os.removexattr(path, "system.posix_acl_default")
    if os.geteuid() == 0:
        os.chown(path, 0, 0)


def _feed(helper: subprocess.Popen[bytes], layer: PlainLayer) -> None:
    """Write the archive to the helper. One that stopped reading has found something; it will say what."""
    assert helper.stdin is not None
    with suppress(OSError):
        fcntl.fcntl(helper.stdin, _F_SETPIPE_SZ, _PIPE_SIZE)
    pipe = helper.stdin.fileno()
    with helper.stdin:
        try:
            for piece in layer:
                view = memoryview(piece)
                while view:
                    view = view[os.write(pipe, view) :]
        except BrokenPipeError:
            return


def _answer(helper: subprocess.Popen[bytes], blob: LayerBlob) -> dict[str, Any]:
    helper.stdin = None
    output, problem = helper.communicate()
    try:
        answer: dict[str, Any] = json.loads(output)
    except ValueError:
        raise LayerError(
            f"the unpacking process ended with status {helper.returncode}",
            operation="unpack",
            object=blob.image,
            layer=blob.diff_id,
            logs=problem,
        ) from None
    return answer


def _stop(helper: subprocess.Popen[bytes]) -> None:
    helper.kill()
    for stream in (helper.stdin, helper.stdout, helper.stderr):
        if stream is not None:
            stream.close()
    helper.wait()


def _layer_error(facts: dict[str, Any], blob: LayerBlob) -> LayerError:
    kind = ImageTooLarge if "limit" in facts else LayerError
    return kind(
        facts.get("detail"),
        operation="unpack",
        object=blob.image,
        layer=blob.digest or blob.diff_id,
        entry=facts.get("entry"),
        errno=facts.get("errno"),
        hint=facts.get("hint"),
        feature=facts.get("limit"),
    )
