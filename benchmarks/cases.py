"""What is compared with every peer: a start and an exec."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import sandbox
from sandbox.pods import Options, RunningPod

from .daemon import Daemon, Docker, Testcontainers
from .elsewhere import PeerError
from .measure import Effort, Row, Run, block, compared, pairs, timed
from .peers import FOREVER, TRUE, Bubblewrap, Crun, CrunWithOurs, Peer, Place, Podman, PodmanBridge, Runc

#: What is looked for, by the name it has in the table.
PEERS: dict[str, type[Peer]] = {
    "crun (crun spec)": Crun,
    "crun (our spec)": CrunWithOurs,
    "runc (runc spec)": Runc,
    "bwrap": Bubblewrap,
    "podman (no network)": Podman,
    "podman": PodmanBridge,
    "docker": Docker,
    "testcontainers": Testcontainers,
}
#: Runs without a pause between them.
_BLOCK = 10
#: Cgroups at the top of the trees that docker and podman leave behind.
_LEFT_BY_PEERS = ("docker", "libpod_parent", "user.slice")


class Subject:
    """Ours."""

    def __init__(self, root: Path) -> None:
        self.image = f"dir:{root}"

    def run(self, options: Options | None = None) -> float:
        """``sandbox.run`` of ``true``: seconds until it is gone."""
        return timed(lambda: sandbox.run(TRUE, image=self.image, options=options, check=True))

    def stay(self) -> float:
        """A pod that would stay, started and closed."""

        def once() -> None:
            with self.pod():
                pass

        return timed(once)

    def pod(self) -> RunningPod:
        """A pod that stays."""
        return sandbox.start(image=self.image, command=FOREVER)


def against_peers(
    subject: Subject, work: Path, effort: Effort, wanted: Iterable[str], tell: Callable[[str], None]
) -> tuple[list[Row], dict[str, str]]:  # fmt: skip
    """The rows, and why a peer is missing."""
    rows: list[Row] = []
    missing: dict[str, str] = {}
    (work / "daemon").mkdir()
    place = Place(work / "root", Daemon(work / "daemon", work / "root"))
    with _cgroups_as_before():
        for number, name in enumerate(wanted):
            folder = work / f"peer-{number}"
            folder.mkdir()
            peer = PEERS[name](place, folder)
            tell(name)
            try:
                if reason := peer.why_not():
                    missing[name] = reason
                else:
                    rows += _one_peer(subject, name, peer, effort)
            except PeerError as error:
                missing[name] = str(error)
    order = {measure: position for position, measure in enumerate(dict.fromkeys(row.measure for row in rows))}
    return sorted(rows, key=lambda row: order[row.measure]), missing


def _one_peer(subject: Subject, name: str, peer: Peer, effort: Effort) -> Iterator[Row]:
    count = effort.slow_pairs if peer.slow else effort.pairs
    try:
        peer.prepare()
        ours: Run = subject.stay if peer.stays else subject.run
        found = pairs(ours, peer.start, count, effort.patience)
        yield compared("start to gone", name, found, peer.start_target, peer.note)
        if isinstance(peer, Crun):
            blocks = pairs(block(ours, _BLOCK), block(peer.start, _BLOCK), max(count // _BLOCK, 3), effort.patience)
            yield compared("start to gone, back to back", name, blocks, None, f"{_BLOCK} in a row without a pause")
        with contextlib.suppress(PeerError), subject.pod() as pod, peer.container():
            found = pairs(lambda: timed(lambda: pod.exec(TRUE, check=True)), peer.exec, count, effort.patience)
            yield compared("exec", name, found, peer.exec_target)
    finally:
        peer.close()


def without_cgroups(subject: Subject, effort: Effort) -> Row:
    """What our cgroups cost: crun makes none here. In blocks, for a spare pod is made like the one before."""
    bare = Options(cgroups="none")
    kinds: list[Run] = [block(subject.run, _BLOCK), block(lambda: subject.run(bare), _BLOCK)]
    found = pairs(kinds[0], kinds[1], max(effort.pairs // _BLOCK, 3), effort.patience)
    note = f"ours with and without cgroups; {_BLOCK} in a row without a pause"
    return compared("start to gone, back to back", "ours, cgroups=none", found, None, note)


@contextlib.contextmanager
def _cgroups_as_before() -> Iterator[None]:
    """Take away what peers leave, unless it was there before."""
    top = Path("/sys/fs/cgroup")
    places = [Path(folder, name) for folder in (top, *top.glob("*")) for name in _LEFT_BY_PEERS]
    there = {place for place in places if place.exists()}
    try:
        yield
    finally:
        for place in places:
            if place not in there and place.is_dir():
                for folder, _, _ in os.walk(place, topdown=False):
                    with contextlib.suppress(OSError):
                        os.rmdir(folder)
