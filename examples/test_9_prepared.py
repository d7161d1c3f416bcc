"""Prepared once: a database with a schema, made the first time, a clone of it for each test.

Lesson 3 initialises PostgreSQL for its test, which takes seconds. Here that is done once, not even once in a run of pytest: the
result is kept until something that it depends on changes. Every test starts from a copy-on-write clone, and sees nobody else's
rows.
"""

from __future__ import annotations

import glob
import shutil

import pytest

import sandbox as sb

PROGRAMS = next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)), "")
START = """
[ -e /var/tmp/data/PG_VERSION ] || initdb --pgdata=/var/tmp/data --auth=trust --username=postgres --no-sync >/dev/null &&
exec postgres -D /var/tmp/data -k /tmp -c fsync=off
"""
SCHEMA = """
create table customers (id serial primary key, name text not null);
create table orders (id serial primary key, customer integer references customers, item text not null);
insert into customers (name) select 'customer ' || n from generate_series(1, 100) n;
"""


def sql(pod, text):
    command = ["psql", "-h", "127.0.0.1", "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-Atq"]
    return pod.exec(command, input=text, check=True).stdout.strip()


def load_schema(pod):
    sql(pod, SCHEMA)


DATABASE = sb.prepare(
    sb.Container(
        "db", command=["sh", "-c", START], user="nobody", stop_signal="INT",
        env={"PATH": f"{PROGRAMS}:/usr/bin:/bin", "LC_ALL": "C"},
        ready=sb.Log("ready to accept connections"),  # its port is open a moment earlier
    ),
    run=load_schema,
)  # fmt: skip

pytestmark = pytest.mark.skipif(not PROGRAMS or not shutil.which("psql"), reason="PostgreSQL is not installed")


@pytest.fixture
def database(sandbox_factory):
    """PostgreSQL refuses to run as root, so it gets another user, which takes sub-ids to map it to."""
    try:
        return sandbox_factory(DATABASE)
    except sb.UserNotFound as error:
        pytest.skip(f"PostgreSQL does not run as root, and there is no other user here: {error}")


@pytest.mark.parametrize("customer", range(1, 6))
def test_orders(database, tell, customer):
    sql(database, f"insert into orders (customer, item) values ({customer}, 'tea')")
    assert sql(database, "select count(*) from customers") == "100", "the schema and its rows are there"
    assert sql(database, "select customer, item from orders") == f"{customer}|tea", "and no other test's"
    tell(f"customer {customer} has the only order")
