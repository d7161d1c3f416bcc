"""Readiness by what a program in the container says, or the container's own program to its supervisor."""

from __future__ import annotations

import hashlib
import json
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any as AnyValue

import pytest
from gate import requires
from programs import NOTIFY, PRELUDE, SOON, patient, program

import sandbox
from sandbox import ContainerExited, Exec, Healthcheck, Log, Notify, ReadinessTimeout

pytestmark = requires("userns", "overlay", "python")


@pytest.fixture
def sleeper() -> Iterator[sandbox.RunningPod]:
    with sandbox.start(command="sleep inf") as pod:
        yield pod


# --- programs -----------------------------------------------------------------------------------------------------


def test_a_program_is_run_until_it_agrees(sleeper: sandbox.RunningPod) -> None:
    start = time.monotonic()
    code = PRELUDE + "time.sleep(0.15); open('/tmp/flag', 'w').close(); signal.pause()"
    with sandbox.start(command=program(code), ready=Exec(["test", "-e", "/tmp/flag"])) as pod:
        assert pod.exists("/tmp/flag")
        assert time.monotonic() - start < 5
    Exec("sh -c 'exit 3'", returncode=3).wait(sleeper, timeout=5)
    Exec("sh -c 'kill -9 $$'", returncode=-9).wait(sleeper, timeout=5)


def test_what_the_program_said_is_told(sleeper: sandbox.RunningPod) -> None:
    with pytest.raises(ReadinessTimeout, match=r"last seen: `sh` ended with exit status 1: not yet"):
        Exec(["sh", "-c", "echo starting; echo not yet >&2; exit 1"]).wait(sleeper, timeout=patient(0.3))


def test_a_program_that_says_too_much(sleeper: sandbox.RunningPod) -> None:
    Exec(["sh", "-c", "head -c 1000000 /dev/zero; exit 0"]).wait(sleeper, timeout=10)


def test_a_program_that_hangs_is_killed_and_run_again(sleeper: sandbox.RunningPod) -> None:
    hangs_once = "if mkdir /tmp/once; then sleep 30 & sleep 30; fi"
    Exec(["sh", "-c", hangs_once], timeout=patient(0.2)).wait(sleeper, timeout=patient(10))
    with pytest.raises(ReadinessTimeout, match=r"`sleep` did not end within 0\.05 s"):
        Exec("sleep 30", timeout=0.05).wait(sleeper, timeout=0.2)
    with pytest.raises(ReadinessTimeout):
        Exec("sleep 30").wait(sleeper, timeout=0.05)
    left = [line for line in sleeper.exec(["ps", "-e", "-o", "args"]).stdout.splitlines() if line == "sleep 30"]
    assert left == []


def test_a_program_that_does_not_exist_is_not_waited_for(sleeper: sandbox.RunningPod) -> None:
    start = time.monotonic()
    with pytest.raises(sandbox.CommandNotFound, match="no-such-program"):
        Exec("no-such-program").wait(sleeper, timeout=30)
    assert time.monotonic() - start < 5


def image_with(folder: Path, healthcheck: dict[str, AnyValue] | None) -> str:
    """An image whose root is nearly empty and whose configuration has a health check."""
    def blob(data: bytes, kind: str) -> dict[str, AnyValue]:
        digest = hashlib.sha256(data).hexdigest()
        path = folder / "blobs/sha256" / digest
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    busybox = Path("/bin/busybox")
    with tarfile.open(folder / "layer.tar", "w") as tar:
        tar.add(busybox.resolve(), "bin/busybox")
        for applet in ("sh", "sleep", "test", "cat", "false"):
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    layer = (folder / "layer.tar").read_bytes()
    declared = {"Healthcheck": healthcheck} if healthcheck else {}
    config = {
        "architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/bin"], **declared},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }  # fmt: skip
    manifest = {"schemaVersion": 2, "config": blob(json.dumps(config).encode(), "config.v1+json"),
                "layers": [blob(layer, "layer.v1.tar")]}  # fmt: skip
    index = {"schemaVersion": 2, "manifests": [blob(json.dumps(manifest).encode(), "manifest.v1+json")]}
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return f"oci:{folder}"


SECOND = 10**9


@requires("busybox")
@pytest.mark.parametrize("test", [["CMD", "test", "-e", "/flag"], ["CMD-SHELL", "test -e /flag && test -d /"]])
def test_the_images_own_health_check(tmp_path: Path, test: list[str]) -> None:
    image = image_with(tmp_path, {"Test": test, "Interval": 30 * SECOND})
    command = ["sh", "-c", "sleep 0.2; : > /flag; sleep 1000"]
    start = time.monotonic()
    with sandbox.start(image=image, command=command, ready=Healthcheck()) as pod:
        assert 0.15 < time.monotonic() - start < 5, "not only after its interval"
        assert pod.exists("/flag")


@requires("busybox")
def test_unhealthy_before_the_timeout(tmp_path: Path) -> None:
    test = ["CMD-SHELL", "echo no good; false"]
    check = {"Test": test, "Interval": SECOND // 20, "Retries": 3, "StartPeriod": SECOND // 10}
    image = image_with(tmp_path, check)
    start = time.monotonic()
    with pytest.raises(ReadinessTimeout, match=r"unhealthy: the check failed \d+ times.*exit status 1: no good"):
        sandbox.start(image=image, command="sleep 1000", ready=Healthcheck(), ready_timeout=60)
    assert 0.25 <= time.monotonic() - start < 10


@requires("busybox")
@pytest.mark.parametrize("check", [None, {"Test": ["NONE"]}, {"Interval": SECOND}])
def test_an_image_without_a_health_check(tmp_path: Path, check: dict[str, AnyValue] | None) -> None:
    with pytest.raises(sandbox.PodStateError, match="the image declares none"):
        sandbox.start(image=image_with(tmp_path, check), command="sleep 1000", ready=Healthcheck())


# --- sd_notify(3) -------------------------------------------------------------------------------------------------


def test_ready_is_sent() -> None:
    code = NOTIFY + """
notify("STATUS=Loading")
time.sleep(0.1)
print(time.time(), flush=True)
notify("STATUS=Up\\nREADY=1")
signal.pause()"""
    with sandbox.start(command=program(code), ready=Notify()) as pod:
        now = time.time()
        Log(r"^\d").wait(pod, timeout=5)
        assert now - float(pod.logs()) < patient(SOON)


def test_a_child_may_send_it() -> None:
    code = NOTIFY + "\nif os.fork() == 0:\n    notify('READY=1')\nsignal.pause()"
    with sandbox.start(command=program(code), ready=Notify()):
        pass


def test_its_status_is_shown() -> None:
    code = NOTIFY + "\nnotify('STATUS=Replaying the log, 3 %')\nsignal.pause()"
    with pytest.raises(ReadinessTimeout, match="last seen: STATUS=Replaying the log, 3 %"):
        sandbox.start(command=program(code), ready=Notify(), ready_timeout=patient(0.5))
    code = NOTIFY + "\nnotify('STATUS=No space\\nERRNO=28')\nsys.exit(1)"
    with pytest.raises(ContainerExited, match=r"exit status 1\n  cause: it said: STATUS=No space ERRNO=28 \("):
        sandbox.start(command=program(code), ready=Notify())


def test_notify_by_hand_needs_the_socket(sleeper: sandbox.RunningPod) -> None:
    with pytest.raises(sandbox.PodStateError, match=r"hint: pass notify=True"):
        Notify().wait(sleeper, timeout=1)
    code = NOTIFY + "\ntime.sleep(0.05); notify('READY=1')\nsignal.pause()"
    with sandbox.start(command=program(code), notify=True) as pod:
        Notify().wait(pod, timeout=5)
