"""Break it on purpose: what does your program do when the system is not what it should be?

Some tests nobody dares to run: delete the system's programs, fill the disk, pull the plug in the middle of a write. In a pod
they are ordinary tests. The image `host` shows this machine's own files, and everything that is changed is changed in a
layer above them that goes with the test.
"""

from __future__ import annotations

import os

import pytest

import sandbox as sb


@pytest.mark.sandbox(command="sleep inf")
def test_rm_rf_usr_bin(sandbox, tell):
    before = sorted(os.listdir("/usr/bin"))
    removed = sandbox.exec(["/bin/rm", "-rf", "/usr/bin"], timeout=60)
    assert removed.returncode == 0
    assert not sandbox.exists("/usr/bin/env")

    with pytest.raises(sb.CommandNotFound):
        sandbox.exec("env")

    assert sorted(os.listdir("/usr/bin")) == before, "the host has not noticed"
    tell(f"{len(before)} programs are gone inside, and all there outside")


@pytest.mark.sandbox(command="sleep inf", ephemeral_storage="16M")
def test_no_space_left(sandbox, tell):
    result = sandbox.exec(["dd", "if=/dev/zero", "of=/var/fill", "bs=1M", "count=64"], timeout=60)
    assert result.returncode != 0
    assert "No space left on device" in result.stderr
    tell(f"a disk of 16 MiB was full after {sandbox.stat('/var/fill')['size'] >> 20} MiB")


@pytest.mark.skipif(not os.path.exists("/etc/ld.so.cache"), reason="the C library here is not glibc")
@pytest.mark.sandbox(command="sleep inf")
def test_a_broken_configuration(sandbox, tell):
    """On your own machine you would not like to have this file (ld.so(8))."""
    sandbox.write_text("/etc/ld.so.preload", "/no/such/library.so\n")
    result = sandbox.exec("true")
    assert "/no/such/library.so" in result.stderr
    tell(f"every program now says: {result.stderr.strip()}")


@pytest.mark.sandbox(command=["sh", "-c", "i=0; while :; do i=$((i + 1)); echo $i >> /var/journal; done"])
def test_pull_the_plug(sandbox, tell):
    """SIGKILL while it writes; its files can be read after its death."""
    sb.Exec("test -s /var/journal").wait(sandbox, timeout=10)
    sandbox.kill("KILL")
    assert sandbox.wait(timeout=5) == -9
    lines = sandbox.read_text("/var/journal").splitlines()
    assert lines[:3] == ["1", "2", "3"]
    tell(f"killed after {len(lines)} entries; the journal can still be read")
