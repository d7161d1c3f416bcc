"""The benchmarks run and write what docs/benchmarks.md promises. No time is asserted: machines are shared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gate import requires

REPOSITORY = Path(__file__).parents[2]
pytestmark = requires("userns", "overlay", "busybox", "python")


def bench(target: Path, *arguments: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--scale", "0.1", "--json", str(target), *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document: dict[str, object] = json.loads(target.read_text("utf-8"))
    for row in document["rows"]:  # type: ignore[attr-defined]
        assert row["measure"] in done.stdout
    return document


def test_ours_alone(tmp_path: Path) -> None:
    found = bench(tmp_path / "bench.json", "--only", "many", "memory", "readiness", "kill")
    rows = {row["measure"]: row for row in found["rows"]}  # type: ignore[attr-defined]
    assert found["missing"] == {}
    assert {name for name in rows if name.startswith("readiness seen")} == {
        "readiness seen: Log", "readiness seen: Port", "readiness seen: Notify",
    }  # fmt: skip
    assert "5 of 5 ran together" in rows["5 pods at once: start"]["note"]
    assert rows["gone after kill -9"]["ours"] > 0


@requires("docker-registry", "skopeo")
def test_a_pull_is_measured(tmp_path: Path) -> None:
    found = bench(tmp_path / "bench.json", "--only", "registry")
    row: dict[str, Any] = found["rows"][0]  # type: ignore[index]
    assert (row["peer"], found["missing"]) == ("skopeo copy", {})
    assert row["ours"] > 0


@pytest.mark.parametrize("peer", ["bwrap", "crun (crun spec)", "crun (our spec)", "runc (runc spec)"])
def test_a_peer_is_measured_or_the_reason_is_told(tmp_path: Path, peer: str) -> None:
    before = os.stat("/dev/null")
    found = bench(tmp_path / "bench.json", "--only", "peers", "--peers", peer)
    after = os.stat("/dev/null")
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    rows = [row for row in found["rows"] if row["peer"] == peer]  # type: ignore[attr-defined]
    if rows:
        assert found["missing"] == {}
        assert all(row["theirs"] > 0 and row["ratio"] > 0 for row in rows)
    else:
        assert found["missing"][peer]  # type: ignore[index]


@requires("systemd.system", "systemd-run")
def test_services_beside_systemd_run(tmp_path: Path) -> None:
    found = bench(tmp_path / "bench.json", "--only", "services")
    assert found["missing"] == {}
    rows = {row["measure"]: row for row in found["rows"]}  # type: ignore[attr-defined]
    assert rows["service, start to gone"]["target"] == 0.7
    assert all(row["ours"] > 0 and row["theirs"] > 0 for row in rows.values())
