"""Databases: a fresh one for each test, from what is installed on this machine.

No container image and no registry is needed: the image `host` has the programs of this machine. Redis or PostgreSQL run as
they do anywhere, on their usual ports, each test with a database that nobody else has written to.
"""

from __future__ import annotations

import glob
import os
import shutil

import pytest

import sandbox as sb

REDIS = shutil.which("redis-server", path="/usr/bin:/usr/local/bin")


@pytest.mark.skipif(REDIS is None, reason="redis-server is not installed")
@pytest.mark.sandbox(
    command=["redis-server", "--save", "", "--dir", "/tmp"], ready=sb.Log("Ready to accept connections")
)
class TestRedis:
    def test_counting(self, sandbox, tell):
        for _ in range(3):
            sandbox.exec("redis-cli incr visits", check=True)
        assert sandbox.exec("redis-cli get visits").stdout == "3\n"
        tell(f"{sandbox.exec('redis-cli info server').stdout.splitlines()[1]}: counted to 3")

    def test_nobody_has_counted_before(self, sandbox):
        assert sandbox.exec("redis-cli get visits").stdout == "\n"


PROGRAMS = next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)), None)
START = """
initdb --pgdata=/tmp/data --auth=trust --username=postgres --no-sync >/dev/null &&
exec postgres -D /tmp/data -k /tmp -c fsync=off
"""


@pytest.fixture
def postgres(sandbox_factory):
    """PostgreSQL refuses to run as root, so it gets another user, which takes sub-ids to map it to."""
    try:
        pod = sandbox_factory(
            command=["sh", "-c", START], user="nobody",
            ready=sb.Log("ready to accept connections"),  # its port is open a moment earlier
            env={"PATH": f"{PROGRAMS}:/usr/bin:/bin", "LC_ALL": "C"},
        )  # fmt: skip
    except sb.UserNotFound as error:
        pytest.skip(f"PostgreSQL does not run as root, and there is no other user here: {error}")
    return pod


@pytest.mark.skipif(PROGRAMS is None, reason="PostgreSQL is not installed")
def test_postgresql(postgres, tell):
    def sql(text):
        command = ["psql", "-h", "127.0.0.1", "-U", "postgres", "-At", "-c", text]
        return postgres.exec(command, check=True).stdout.strip()

    sql("create table lessons (name text); insert into lessons values ('databases')")
    assert sql("select name from lessons") == "databases"
    assert sql("select current_user") == "postgres"
    tell(sql("select version()").partition(" on ")[0])
    assert not os.path.exists("/tmp/data"), "the host's /tmp is another one"
