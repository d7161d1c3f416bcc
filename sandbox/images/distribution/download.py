"""Blobs on their way into the store: counted and hashed as they come, resumed, each fetched once.

::

    partial/sha256-<hex>      what has arrived of a blob; `locks/blob-sha256:<hex>` is held by whoever fetches it
    blobs/sha256/<hex>        all of it, verified, on disk

A process that dies loses its lock; the next one that wants the blob goes on where the file ends. What is there
of it is hashed again, so nothing depends on how its last bytes got to the disk.

A layer can be read while it arrives (:meth:`Downloads.open`): unpacking goes on beside fetching.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, Self, cast

from sandbox.errors import ImageError, ImageNotFound, ImageVerificationError
from sandbox.images.blobs import new_hash
from sandbox.images.blobstore import path_of
from sandbox.images.distribution.client import Cancelled
from sandbox.images.distribution.progress import PATIENCE
from sandbox.images.documents import INDEXES, MANIFESTS, Descriptor, descriptor, parse_json
from sandbox.images.errors import ImageTooLarge, RegistryError
from sandbox.images.places import store_errors

if TYPE_CHECKING:
    from sandbox.images.distribution.client import Repository
    from sandbox.images.distribution.progress import Progress
    from sandbox.images.distribution.transport import Answer
    from sandbox.images.store import Store

__all__ = ["AT_ONCE", "Downloads", "Interrupted", "lock"]

#: Blobs fetched at once; docker takes three, podman six.
AT_ONCE = 4
_CHUNK = 256 << 10
#: A connection that brought less than this before it broke counts as a failed attempt.
_SOME = 1 << 20


class Interrupted(Exception):
    """What was being read turned out wrong, and is fetched again: read it again."""


@contextmanager
def lock(store: Store, name: str, stop: threading.Event, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock of the store; the wait for it ends when the work is given up.

    :param waiting: called once if somebody else has it for longer than a person wonders
    :raises Cancelled: ``stop`` was set
    """
    held = contextlib.ExitStack()
    pause, patient = 0.01, time.monotonic() + PATIENCE
    while True:
        try:
            held.enter_context(store.places.lock(name, wait=False))
            break
        except BlockingIOError:
            if time.monotonic() > patient:
                waiting()
                waiting = _nothing
            if stop.wait(pause):
                raise Cancelled from None
            pause = min(pause * 1.5, 0.1)
    with held:
        yield


def _nothing() -> None:
    pass


class Arrival:
    """A blob that somebody waits for. ``state`` goes from waiting to arriving (it can be read) to here or failed."""

    def __init__(self, blob: Descriptor) -> None:
        self.blob = blob
        self.changed = threading.Condition()
        self.state = "waiting"
        self.error: BaseException | None = None
        #: How much of ``file`` can be read.
        self.position = 0
        self.file = -1
        #: How often it was begun anew.
        self.generation = 0

    def set(self, state: str, error: BaseException | None = None) -> None:
        """Tell everybody who waits."""
        with self.changed:
            self.state, self.error = state, error
            self._close()
            self.changed.notify_all()

    def arriving(self, file: int) -> None:
        """From now on it can be read while it grows; whoever read along before has to begin anew."""
        with self.changed:
            self._close()
            self.state, self.file, self.position = "arriving", os.dup(file), 0
            self.generation += 1
            self.changed.notify_all()

    def _close(self) -> None:
        if self.file >= 0:
            os.close(self.file)
        self.file = -1

    def advance(self, position: int) -> None:
        """So much is there."""
        with self.changed:
            self.position = position
            self.changed.notify_all()

    def open(self, store: Store) -> BinaryIO:
        """Its bytes, now or as they come. Raises what fetching it raises."""
        with self.changed:
            self.changed.wait_for(lambda: self.state != "waiting")
            if self.state == "arriving":
                return cast("BinaryIO", _Growing(self, os.dup(self.file)))
            if self.error is not None:
                raise self.error
        return store.blobs.open(path_of(self.blob.digest))


class _Growing(io.RawIOBase):
    """The bytes of a blob as they arrive; a read at the end of what is there waits for more."""

    def __init__(self, arrival: Arrival, file: int) -> None:
        self._arrival = arrival
        self._file = file
        self._generation = arrival.generation
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        arrival = self._arrival
        with arrival.changed:
            arrival.changed.wait_for(self._may_go_on)
            if arrival.error is not None:
                raise arrival.error
            if arrival.generation != self._generation:
                raise Interrupted
            ready = arrival.blob.size if arrival.state == "here" else arrival.position
        view = memoryview(buffer)[: ready - self._position]
        count = os.preadv(self._file, [view], self._position)
        self._position += count
        return count

    def _may_go_on(self) -> bool:
        arrival = self._arrival
        return (
            arrival.state in {"here", "failed"}
            or arrival.generation != self._generation
            or self._position < arrival.position
        )

    def close(self) -> None:
        if not self.closed:
            os.close(self._file)
        super().close()


class Partial:
    """The file that a blob grows in. Its lock is held by the caller."""

    def __init__(self, store: Store, blob: Descriptor, image: str) -> None:
        self._store = store
        self._blob = blob
        self._image = image
        self._hash = new_hash(blob.digest, image)
        self._path = store.places.directory("partial") / blob.digest.replace(":", "-")
        #: Bytes that are there.
        self.size = 0

    def __enter__(self) -> Self:
        with self._errors():
            self.file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            if os.fstat(self.file).st_size > self._blob.size:
                os.ftruncate(self.file, 0)
            while piece := os.pread(self.file, _CHUNK, self.size):
                self._hash.update(piece)
                self.size += len(piece)
            os.lseek(self.file, self.size, os.SEEK_SET)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.file)
        if not self.size:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()

    def write(self, piece: bytes) -> None:
        """Append. Raises ImageVerificationError if that is more than the blob has."""
        if self.size + len(piece) > self._blob.size:
            raise self._wrong(self._blob.size, f"more than {self._blob.size}")
        self._hash.update(piece)
        view = memoryview(piece)
        with self._errors():
            while view:
                view = view[os.write(self.file, view) :]
        self.size += len(piece)

    def reset(self) -> None:
        """Begin anew."""
        with self._errors():
            os.ftruncate(self.file, 0)
            os.lseek(self.file, 0, os.SEEK_SET)
        self._hash = new_hash(self._blob.digest, self._image)
        self.size = 0

    def verify(self) -> None:
        """Compare with what was promised. Raises ImageVerificationError."""
        actual = f"{self._blob.digest.partition(':')[0]}:{self._hash.hexdigest()}"
        if actual != self._blob.digest:
            raise self._wrong(self._blob.digest, actual)

    def commit(self) -> None:
        """Put it where everybody finds it. Its bytes reach the disk before its name does."""
        name = path_of(self._blob.digest)
        with self._errors():
            os.fdatasync(self.file)
            self._store.places.directory(os.path.dirname(name))
            self._path.rename(self._store.root / name)

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return store_errors("write blob", self._image, self._store.root)

    def _wrong(self, expected: str | int, actual: str | int) -> ImageVerificationError:
        return ImageVerificationError(
            operation="verify", object=self._image, digest=self._blob.digest, expected=expected, actual=actual,
            hint="the registry, or something between it and this machine, damages or forges images",
        )  # fmt: skip


class Downloads:
    """The blobs of one image, from the endpoints that have it; :class:`~sandbox.images.blobs.Blobs` of all of it.

    A context manager: leaving it ends what is still going on.
    """

    def __init__(
        self, store: Store, sources: Sequence[Repository], image: str, progress: Progress, stop: threading.Event
    ) -> None:
        """Nothing is fetched yet.

        :param sources: repositories that may have it, best first
        :param image: what the user calls it, for errors
        :param stop: set to give everything up
        """
        self._store = store
        self._sources = sources
        self._image = image
        self._progress = progress
        self._stop = stop
        self._known: dict[str, Descriptor] = {}
        self._arrivals: dict[str, Arrival] = {}
        self._running: dict[str, Future[None]] = {}
        self._guard = threading.Lock()
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="sandbox-pull")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.cancel()
        self._pool.shutdown(wait=True)

    def cancel(self) -> None:
        """Give up: whoever waits for a blob is told."""
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._guard:
            for digest, future in self._running.items():
                if future.cancelled():
                    self._arrivals[digest].set("failed", Cancelled())

    # -- documents
    # -----------------------------------------------------------------------------------------------

    def take(self, content: bytes, media_type: str, digest: str) -> Descriptor:
        """Put a manifest or index into the store, and remember what it describes."""
        found = self._store.blobs.add(
            content, digest, size=len(content), media_type=media_type, image=self._image
        )
        self._note(content)
        return found

    def _note(self, content: bytes) -> None:
        """Remember descriptors by their digests; what is wrong with them is for others to say."""
        with contextlib.suppress(ImageError):
            document = parse_json(content, self._image, "manifest")
            for member in ("manifests", "layers"):
                entries = document.get(member)
                for entry in entries if isinstance(entries, list) else ():
                    self._remember(entry)
            self._remember(document.get("config"))

    def _remember(self, entry: object) -> None:
        with contextlib.suppress(ImageError):
            found = descriptor(entry, self._image, "manifest")
            self._known.setdefault(found.digest, found)

    def open(self, name: str) -> BinaryIO:
        """A blob by its path, ``blobs/sha256/…``: from the store, or fetched now. Raises what fetching raises."""
        digest = name.removeprefix("blobs/").replace("/", ":", 1)
        with self._guard:
            arrival = self._arrivals.get(digest)
        if arrival is not None:
            return arrival.open(self._store)
        blob = self._known.get(digest)
        if blob is None or self._store.blobs.has(digest, blob.size):
            with self._store.blobs.open(name) as file:
                self._note_if_document(blob, file)
            return self._store.blobs.open(name)
        if blob.media_type in INDEXES + MANIFESTS:
            self._document(blob)
            return self._store.blobs.open(name)
        self.start([blob])
        return self.open(name)

    def _note_if_document(self, blob: Descriptor | None, file: BinaryIO) -> None:
        if blob is None or blob.media_type in INDEXES + MANIFESTS:
            self._note(file.read(self._store.limits.manifest))

    def _document(self, blob: Descriptor) -> None:
        """A manifest or index by its digest: registries keep those apart from other blobs."""
        new_hash(blob.digest, self._image)  # the address is made of it
        problems: list[ImageError] = []
        for source in self._sources:
            try:
                found = source.manifest(blob.digest, self._store.limits.manifest)
            except (RegistryError, ImageNotFound, ImageVerificationError) as error:
                problems.append(error)
                continue
            self.take(found.content, blob.media_type, blob.digest)
            return
        raise together(problems)

    # -- blobs
    # ---------------------------------------------------------------------------------------------------

    def start(self, blobs: Iterable[Descriptor]) -> None:
        """Begin to fetch blobs, in this order, unless that is going on already."""
        for blob in blobs:
            new_hash(blob.digest, self._image)
            self._known.setdefault(blob.digest, blob)
            if blob.size > self._store.limits.layer:
                raise ImageTooLarge(
                    f"{blob.digest} has {blob.size} bytes, more than {self._store.limits.layer}", operation="pull",
                    object=self._image, feature="layer",
                )  # fmt: skip
            with self._guard:
                if self._stop.is_set():
                    raise Cancelled
                if blob.digest not in self._arrivals:
                    arrival = self._arrivals[blob.digest] = Arrival(blob)
                    self._progress.begin(blob.digest, blob.size, 0)
                    self._running[blob.digest] = self._pool.submit(self._fetch, arrival)

    def wait(self) -> None:
        """Until everything that was started is here.

        :raises SandboxError: the first failure; that others were given up for it is none
        """
        with self._guard:
            running = list(self._running.values())
        wait(running)
        failures = [error for future in running if not future.cancelled() and (error := future.exception())]
        if failures:
            raise next((error for error in failures if not isinstance(error, Cancelled)), failures[0])

    def _fetch(self, arrival: Arrival) -> None:
        blob = arrival.blob
        try:
            with lock(self._store, f"blob-{blob.digest}", self._stop):
                if not self._store.blobs.has(blob.digest, blob.size):
                    with Partial(self._store, blob, self._image) as partial:
                        self._progress.begin(blob.digest, blob.size, partial.size)
                        self._fill(partial, arrival)
                        partial.commit()
            self._progress.end(blob.digest)
            arrival.set("here")
        except BaseException as error:
            arrival.set("failed", error)
            self.cancel()
            raise

    def _fill(self, partial: Partial, arrival: Arrival) -> None:
        """Fetch from one source after the other until it is right.

        What a dead process left is not shown to readers until it has proved right, and if it proves wrong, that says
        nothing about the source.
        """
        problems: list[ImageError] = []
        inherited, begun = bool(partial.size), False
        sources = list(self._sources)
        while sources:
            if not inherited and not begun:
                arrival.arriving(partial.file)
                begun = True
            try:
                self._from(sources[0], partial, arrival, visible=not inherited)
                return
            except ImageVerificationError as error:
                partial.reset()
                begun = False
                self._progress.begin(arrival.blob.digest, arrival.blob.size, 0)
                if inherited:
                    inherited = False
                    continue
                problems.append(error)
            except (RegistryError, ImageNotFound) as error:
                problems.append(error)
            del sources[0]
        raise together(problems)

    def _from(self, source: Repository, partial: Partial, arrival: Arrival, *, visible: bool) -> None:
        """Fetch what is missing from one source, however often the connection breaks."""
        attempt = 1
        while partial.size < arrival.blob.size:
            before = partial.size
            try:
                answer, start = source.blob(arrival.blob.digest, partial.size)
                with answer:
                    self._receive(answer, start, partial, arrival, visible=visible)
            except RegistryError as error:
                attempt = 1 if partial.size >= before + _SOME else attempt
                source.wait(error, attempt)
                attempt += 1
        partial.verify()

    def _receive(self, answer: Answer, start: int, partial: Partial, arrival: Arrival, *, visible: bool) -> None:
        blob, skip = arrival.blob, partial.size - start
        if answer.length is not None and start + answer.length != blob.size:
            raise ImageVerificationError(
                operation="verify", object=self._image, digest=blob.digest, expected=blob.size,
                actual=start + answer.length, hint=f"{answer.origin.host} is damaged, or lies",
            )  # fmt: skip
        while piece := answer.read1(_CHUNK):
            if self._stop.is_set():
                raise Cancelled
            if skip:  # it knows no ranges: what we have comes again
                piece, skip = piece[skip:], max(0, skip - len(piece))
            partial.write(piece)
            self._progress.advance(blob.digest, len(piece))
            if visible:
                arrival.advance(partial.size)
        if partial.size < blob.size:
            raise RegistryError(
                f"the connection broke after {partial.size} of {blob.size} bytes", operation="pull",
                object=self._image, registry=str(answer.origin), temporary=True,
            )  # fmt: skip


def together(problems: Sequence[ImageError]) -> ImageError:
    """One error for what several endpoints said: the last one's, which is the registry itself; notes have the rest.

    An endpoint that has the image broken says more than one that does not have it.
    """
    telling = [each for each in problems if isinstance(each, ImageVerificationError)]
    error = (telling or problems)[-1]
    for other in problems:
        if other is not error:
            error.add_note(f"  before that: {other}")
    return error
