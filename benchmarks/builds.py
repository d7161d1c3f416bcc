"""Builds that have nothing to do, and what a preparation saves: PostgreSQL with a schema, cloned for each test."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sandbox
from sandbox.build.executor import Settings
from sandbox.build.source import build
from sandbox.images import Store

from .measure import Effort, Row, alone, compared, pairs, timed

#: As many clones as a test session of middling size has.
_CLONES = 50
_STEPS = 10

_START = """
set -e
data=/var/lib/postgresql/data
as_postgres="setpriv --reuid=postgres --regid=postgres --init-groups"
mkdir -p /run/postgresql && chown postgres /run/postgresql
if [ ! -e $data/PG_VERSION ]; then
  mkdir -p $data && chown -R postgres $data
  $as_postgres "$0"/initdb -D $data -A trust -N > /dev/null
fi
exec $as_postgres "$0"/postgres -D $data -c listen_addresses=127.0.0.1 -c fsync=off
"""
_TABLE = """
create table t{0} (id serial primary key, name text not null, n integer unique);
insert into t{0} (name, n) select 'row ' || g, g from generate_series(1, 1000) g;
create index on t{0} (name);
"""
_SCHEMA = "".join(_TABLE.format(number) for number in range(20))


def rows(work: Path, root: Path, effort: Effort) -> Iterator[Row]:
    """Both, in a store of their own."""
    with _store(work / "builds") as store:
        yield _second_build(work / "context", root, store, effort)
        if (programs := _postgres()) is not None:
            yield from _prepared(programs, effort)


@contextlib.contextmanager
def _store(path: Path) -> Iterator[Store]:
    before = os.environ.get("SANDBOX_STORE")
    os.environ["SANDBOX_STORE"] = str(path)
    try:
        yield Store(path)
    finally:
        if before is None:
            del os.environ["SANDBOX_STORE"]
        else:
            os.environ["SANDBOX_STORE"] = before


def _second_build(context: Path, root: Path, store: Store, effort: Effort) -> Row:
    context.mkdir()
    (context / "file").write_text("content\n")
    steps = "".join(f"RUN echo {number} > /step-{number}\nCOPY file /copy-{number}\n" for number in range(_STEPS // 2))
    (context / "Dockerfile").write_text(f"FROM dir:{root}\nENV A=b\nWORKDIR /work\n{steps}CMD [\"true\"]\n")
    settings = Settings(local_images=True)
    build(context, store=store, settings=settings)
    values = [timed(lambda: build(context, store=store, settings=settings)) * 1e3 for _ in range(effort.pairs)]
    return alone("second build", values, target=100, note=f"{_STEPS} steps that make layers, all of them known")


def _postgres() -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    return str(found[0].parent) if found and shutil.which("psql") else None


def _load(pod: Any) -> None:
    pod.exec(["psql", "-h", "127.0.0.1", "-U", "postgres", "-q", "-v", "ON_ERROR_STOP=1"], input=_SCHEMA, check=True)


def _prepared(programs: str, effort: Effort) -> Iterator[Row]:
    ready = sandbox.Log("ready to accept connections")
    plain = sandbox.Container("db", command=["sh", "-c", _START, programs], ready=ready, stop_signal="INT")
    prepared = sandbox.prepare(plain, run=_load)

    found = pairs(lambda: _until(prepared), lambda: _until(plain, _load), effort.slow_pairs, effort.patience)
    note = "a copy-on-write clone against doing it all again; 20 tables of 1000 rows"
    yield compared("PostgreSQL ready, prepared", "initdb and schema", found, 0.25, note)
    values = [_until(prepared) * 1e3 for _ in range(_CLONES)]
    yield alone(f"{_CLONES} clones of PostgreSQL, one after another", values, note="each until it accepts connections")


def _until(container: sandbox.Container, work: Callable[[Any], object] = lambda _pod: None) -> float:
    """Seconds until it is ready and ``work`` is done; its end does not count."""
    with contextlib.ExitStack() as stack:
        return timed(lambda: work(stack.enter_context(sandbox.start(container))))
