"""An untrusted script: let it run, for two seconds, with nothing to gain.

`sandbox.run` is like `subprocess.run`, and `timeout=` ends everything that was started, also what has gone into the
background. The script sees no home directory, no network, no process of yours; it cannot become root on your machine by
being root in there. SECURITY.md says what is a boundary and what is not.
"""

from __future__ import annotations

import time

import pytest

import sandbox as sb


def test_it_takes_too_long(tell):
    script = "echo working; (sleep 300 &) ; sleep 300"
    start = time.monotonic()
    with pytest.raises(sb.TimeoutExpired) as caught:
        sb.run(["sh", "-c", script], timeout=0.5)
    seconds = time.monotonic() - start
    assert seconds < 5
    assert caught.value.stdout == "working\n"
    tell(f"ended after {seconds:.2f} s, with what it had written: {caught.value.stdout.strip()!r}")


def test_it_multiplies(tell):
    """A fork bomb, with room for 50 processes."""
    bomb = "bomb() { bomb | bomb & }; bomb; sleep 300"
    start = time.monotonic()
    with pytest.raises(sb.TimeoutExpired):
        sb.run(["sh", "-c", bomb], timeout=1, ulimits={"nproc": 50})
    seconds = time.monotonic() - start
    assert seconds < 10
    tell(f"gone after {seconds:.2f} s, all of it at once")


def test_it_looks_around(tell):
    script = """
    echo homes: $(ls -A /root /home 2>/dev/null | grep -v :)
    echo shadow: $(cat /etc/shadow 2>/dev/null | grep -c '\\$')
    echo interfaces: $(tail -n +3 /proc/net/dev | cut -d: -f1)
    echo processes: $(ls /proc | grep -c '^[0-9]')
    """
    seen = dict(line.split(":", 1) for line in sb.run(["sh", "-c", script]).stdout.splitlines())
    assert seen["homes"].strip() == ""
    assert seen["shadow"].strip() == "0"
    assert seen["interfaces"].split() == ["lo"]
    assert int(seen["processes"]) < 10
    tell(f"it saw no homes, no password hashes, the interface lo, and {seen['processes'].strip()} processes, all its own")


@pytest.mark.parametrize(
    "attempt",
    ["mount -t tmpfs none /mnt", "hostname other", "unshare --mount true", "mknod /tmp/disk b 8 0",
     "echo b > /proc/sysrq-trigger"],
)
def test_it_tries_something(attempt, tell):
    """Root in there is nobody out here."""
    result = sb.run(["sh", "-c", attempt], timeout=5)
    assert result.returncode != 0
    tell(result.stderr.strip().splitlines()[0])
