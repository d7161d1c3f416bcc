"""Prepared once, cloned for each: a small program, PostgreSQL, many processes at once; and what makes it another one."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from build_helpers import own_store
from gate import requires

import sandbox
from sandbox import Container, Log, Options
from sandbox.images import Store
from sandbox.images.names import Names

pytestmark = requires("userns", "overlay", "busybox", "subuid")

#: Slow the first time, and a witness of how often that was.
TALK = """
mkdir -p /var/lib/talk
if [ -e /var/lib/talk/made ]; then echo known; else echo slow; cat /proc/sys/kernel/random/uuid > /var/lib/talk/made; fi
trap 'echo stopped >> /var/lib/talk/end; exit 0' TERM
echo ready
while :; do sleep 0.05; done
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with own_store(tmp_path / "store") as store:
        yield store


def talk(image: str = "localhost/base:1", **fields: Any) -> Container:
    return Container("talk", image=image, command=["sh", "-c", TALK], ready=Log("ready"), **fields)


def how_often(store: Store) -> int:
    return sum(name.name.startswith("prepared:") for name in Names(store, "cache").items())


@pytest.mark.parametrize("image", ["localhost/base:1", pytest.param("host", marks=requires("python"))])
def test_clones_start_where_it_got_to(store: Store, image: str) -> None:
    prepared = sandbox.prepare(talk(image), run=["sh", "-c", "echo schema > /var/lib/talk/schema; rm -f /etc/group"])
    assert how_often(store) == 0, "nothing happens before it is needed"
    seen = set()
    for number in range(3):
        with sandbox.start(prepared) as pod:
            assert pod.logs() == "known\nready\n"
            assert pod.read_text("/var/lib/talk/schema") == "schema\n"
            assert pod.read_text("/var/lib/talk/end") == "stopped\n"
            assert not pod.exists("/var/lib/talk/mine"), "clones do not see each other"
            assert not pod.exists("/etc/group")
            assert pod.read_text("/etc/hosts")
            pod.write_text("/var/lib/talk/mine", str(number))
            seen.add(pod.read_text("/var/lib/talk/made"))
    assert len(seen) == 1
    assert how_often(store) == 1


@requires("python")
def test_files_all_over_the_host_image(store: Store) -> None:
    """In trees of the host, between them, with owners and modes; and prepared again on top of it."""
    places = ("/usr/share/p", "/etc/p", "/var/lib/p", "/srv/p", "/home/p", "/run/p", "/tmp/p", "/var/log/p", "/root/p")
    make = " && ".join(f"echo x > {place} && chown 7:8 {place} && chmod 640 {place}" for place in places)
    command = ["sh", "-c", f"{make} && echo ready && exec sleep inf"]
    first = sandbox.prepare(Container(command=command, init=True, ready=Log("ready")))
    second = sandbox.prepare(first, run=["sh", "-c", "echo y > /srv/q && rm /srv/p && echo z >> /var/lib/p"])
    with sandbox.start(second, command=["sleep", "inf"], ready=None) as pod:
        for place in places:
            if place == "/srv/p":
                assert not pod.exists(place)
                continue
            state = pod.stat(place)
            assert (state["uid"], state["gid"], state["mode"]) == (7, 8, 0o640), place
        assert pod.read_text("/srv/q") == "y\n"
        assert pod.stat("/tmp")["mode"] == 0o1777
        assert pod.stat("/root")["mode"] == 0o700


def test_what_makes_it_another_one(store: Store, tmp_path: Path) -> None:
    schema = tmp_path / "schema"

    def load(pod: Any, text: str = "1") -> None:
        pod.write_text("/x", text)

    def load_more(pod: Any) -> None:
        pod.write_text("/x", "more")

    def name_of(**options: Any) -> str:
        container = options.pop("container", talk())
        prepared = sandbox.prepare(container, **options).image
        return str(prepared.name_of(prepared.below(Options(store=str(store.root)))))

    schema.write_text("a")
    base = name_of(run=load)
    assert name_of(run=load) == base
    schema_a = name_of(run=load, key=schema)
    schema.write_text("b")
    others = {
        base, schema_a, name_of(run=load, key=schema), name_of(run=load_more), name_of(run=functools.partial(load, text="2")),
        name_of(run=[load, "true"]), name_of(run="true"), name_of(run=["true", "x"]), name_of(run=load, key={"a": 1}),
        name_of(run=load, until=Log("other")), name_of(run=load, container=talk(env={"A": "b"})),
        name_of(run=load, container=talk(image="host")),
    }  # fmt: skip
    assert len(others) == 12
    with pytest.raises(sandbox.BuildError, match="in another process"):
        name_of(run=load, key=object())


def test_a_work_that_fails_is_not_kept(store: Store) -> None:
    prepared = sandbox.prepare(talk(), run=["false"])
    for _ in range(2):
        with pytest.raises(sandbox.CalledProcessError):
            sandbox.start(prepared)
    assert how_often(store) == 0


def test_a_container_that_does_not_stop(store: Store) -> None:
    deaf = Container(image="localhost/base:1", command=["sh", "-c", "trap '' TERM; echo ready; sleep inf"], ready=Log("ready"),
                     stop_timeout=0.3)  # fmt: skip
    with pytest.raises(sandbox.BuildError, match=r"had to be killed") as caught:
        sandbox.start(sandbox.prepare(deaf))
    assert "stop_signal" in (caught.value.hint or "")


def test_one_preparation_however_many_ask(store: Store) -> None:
    code = (
        "import sandbox, sys; from sandbox import Container, Log\n"
        f"c = Container('talk', image='localhost/base:1', command=['sh', '-c', {TALK!r}], ready=Log('ready'))\n"
        "with sandbox.start(sandbox.prepare(c, run='sleep 0.3')) as pod: print(pod.read_text('/var/lib/talk/made'))\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    made = {process.communicate(timeout=60)[0] for process in running}
    assert len(made) == 1
    assert made != {""}
    assert how_often(store) == 1


# -- PostgreSQL -------------------------------------------------------------------------------------------------------

POSTGRES = """
set -e
data=/var/lib/postgresql/data
as_postgres="setpriv --reuid=postgres --regid=postgres --init-groups"
mkdir -p /run/postgresql && chown postgres /run/postgresql
if [ ! -e $data/PG_VERSION ]; then
  mkdir -p $data && chown -R postgres $data
  $as_postgres "$0"/initdb -D $data -A trust -N > /dev/null
fi
exec $as_postgres "$0"/postgres -D $data -c listen_addresses=127.0.0.1
"""
ROWS = 200
SCHEMA = f"""
create table users (id serial primary key, name text not null unique);
create table orders (id serial primary key, buyer integer references users, item text);
insert into users (name) select 'user ' || n from generate_series(1, {ROWS}) n;
create index on orders (item);
"""


def psql(pod: Any, text: str) -> list[str]:
    command = ["psql", "-h", "127.0.0.1", "-U", "postgres", "-q", "-v", "ON_ERROR_STOP=1", "-At"]
    return str(pod.exec(command, input=text, check=True).stdout).split()


def load_schema(pod: Any) -> None:
    psql(pod, SCHEMA)


@requires("postgres")
def test_postgresql(store: Store) -> None:
    """Initialised with a schema once; every clone has it, and its own rows only: one after another, and at the same time."""
    programs = os.path.dirname(os.path.realpath(shutil.which("initdb", path=postgres_path()) or ""))
    ready = Log("ready to accept connections")
    server = Container("db", command=["sh", "-c", POSTGRES, programs], ready=ready, stop_signal="INT", stop_timeout=30)
    database = sandbox.prepare(server, run=load_schema)
    with contextlib.ExitStack() as stack:
        pods = [stack.enter_context(sandbox.start(database)) for _ in range(5)]
        for number, pod in enumerate(pods):
            psql(pod, f"insert into users (name) select 'mine ' || n from generate_series(1, {number}) n")
        counts = [psql(pod, "select count(*) from users") for pod in pods]
        assert counts == [[str(ROWS + number)] for number in range(5)]
        # It was stopped cleanly: nothing had to be recovered.
        assert all("automatic recovery" not in pod.logs() for pod in pods)
    for _ in range(45):
        with sandbox.start(database) as pod:
            assert psql(pod, "insert into users (name) values ('mine'); select count(*) from users") == [str(ROWS + 1)]
    assert how_often(store) == 1


def postgres_path() -> str:
    return os.pathsep.join(str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))
