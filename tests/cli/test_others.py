"""The subcommands that look at pods of other processes, for real; and ``doctor``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gate import missing, requires

import sandbox
from sandbox._attach import attach
from sandbox.errors import PodStateError

pytestmark = requires("userns", "overlay")

Gone = Callable[[str], None]


def rows_of(cli: Any, pod: sandbox.RunningPod) -> list[dict[str, Any]]:
    return [row for row in json.loads(cli("ps", "--json").stdout) if row["pod"] == pod.id]


class TestPs:
    def test_shows_pods_of_other_processes(self, cli: Any, shop: sandbox.RunningPod) -> None:
        header, *lines = cli("ps").stdout.splitlines()
        assert header.split() == ["POD", "CONTAINER", "IMAGE", "STATE", "AGE", "TEST", "OR", "COMMAND"]
        mine = [line.split() for line in lines if line.startswith(shop.id)]
        assert sorted(words[1:4] for words in mine) == [["api", "host", "running"], ["db", "host", "running"]]
        assert cli("ps", "-q").stdout.split().count(shop.id) == 1

    def test_as_json(self, cli: Any, shop: sandbox.RunningPod) -> None:
        rows = {row["container"]: row for row in rows_of(cli, shop)}
        assert sorted(rows) == ["api", "db"]
        api = rows["api"]
        assert api["command"] == ["sleep", "inf"]
        assert (api["state"], api["returncode"], api["client"]) == ("running", None, os.getpid())
        assert api["labels"] == {"team": "blue"}
        assert "test_as_json" in api["test"]

    def test_tells_how_a_container_ended(self, cli: Any, shop: sandbox.RunningPod) -> None:
        shop["api"].kill()
        shop["api"].wait()
        ends = {row["container"]: row["returncode"] for row in rows_of(cli, shop)}
        assert ends == {"db": None, "api": -9}
        assert "stopped (-9)" in cli("ps").stdout

    def test_no_longer_shows_what_is_gone(self, cli: Any, shop: sandbox.RunningPod) -> None:
        shop.close()
        assert rows_of(cli, shop) == []

    def test_control_characters_of_a_command_stay_out_of_the_terminal(self, cli: Any) -> None:
        with sandbox.start(command=["sh", "-c", "exec sleep inf # \033[2J\n"]):
            assert "\033" not in cli("ps").stdout

    def test_a_shim_that_does_not_answer_is_left_out(self, cli: Any, shop: sandbox.RunningPod) -> None:
        """It takes the patience for one shim; those of others are shown."""
        with cli.start("run", "host", "sleep", "inf", start_new_session=True) as process:
            other = _pod_of(cli, process.pid)
            shim = _shim_of(process.pid)
            os.kill(shim, signal.SIGSTOP)
            try:
                shown = cli("ps").stdout
            finally:
                os.kill(shim, signal.SIGCONT)
        assert shop.id in shown
        assert other not in shown


def _pod_of(cli: Any, client: int) -> str:
    for _ in range(100):
        for row in json.loads(cli("ps", "--json").stdout):
            if row["client"] == client and row["state"] == "running":
                return str(row["pod"])
    raise AssertionError("it did not start")


def _children(pid: int) -> list[int]:
    """Of all its threads."""
    lists = [task.joinpath("children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return [int(child) for text in lists for child in text.split()]


def _shim_of(client: int) -> int:
    """The child of the client's child, the monitor; beside it there may be the keeper of a private systemd manager."""
    grandchildren = [pid for child in _children(client) for pid in _children(child)]
    (shim,) = [pid for pid in grandchildren if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sandbox: shim")]
    return shim


class TestExec:
    def test_runs_in_the_container(self, cli: Any, shop: sandbox.RunningPod) -> None:
        shop["db"].write_text("/etc/marker", "here")
        assert cli("exec", f"{shop.id}/db", "cat", "/etc/marker").stdout == "here"
        assert cli("exec", f"{shop.name}/api", "test", "-e", "/etc/marker").returncode == 1

    def test_streams_and_status(self, cli: Any, shop: sandbox.RunningPod) -> None:
        done = cli("exec", "-i", f"{shop.id}/db", "--", "sh", "-c", "cat; echo err >&2; exit 5", input="typed")
        assert (done.returncode, done.stdout, done.stderr) == (5, "typed", "err\n")
        assert cli("exec", f"{shop.id}/db", "nonesuch").returncode == 127
        missing = cli("exec", "-w", "/nope", f"{shop.id}/db", "true")
        assert missing.returncode != 0
        assert "enter the working directory `/nope`: No such file" in missing.stderr
        assert cli("exec", f"{shop.id}/db", "/etc/passwd").returncode == 126
        assert cli("exec", f"{shop.id}/db", "sh", "-c", "kill -TERM $$").returncode == 143

    def test_options(self, cli: Any, shop: sandbox.RunningPod) -> None:
        script = "echo $A; pwd; id -u"
        done = cli("exec", "-e", "A=1", "-w", "/var", f"{shop.id}/db", "sh", "-c", script)
        assert done.stdout.splitlines() == ["1", "/var", "0"]

    @requires("subuid")
    def test_as_another_user(self, cli: Any, shop: sandbox.RunningPod) -> None:
        assert cli("exec", "-u", "nobody", f"{shop.id}/db", "id", "-un").stdout == "nobody\n"

    def test_terminal(self, cli: Any, shop: sandbox.RunningPod) -> None:
        done = cli("exec", "-it", f"{shop.id}/db", "sh", "-c", "test -t 1 && read x && echo $x", input="hi\n")
        assert done.stdout.splitlines() == ["hi", "hi"]  # the echo of the terminal, and that of the program

    def test_timeout_kills_it(self, cli: Any, shop: sandbox.RunningPod, unique: str, gone: Gone) -> None:
        done = cli("exec", "--timeout", "0.3", f"{shop.id}/db", "sh", "-c", f"sleep {unique} & wait")
        assert done.returncode == 124
        gone(unique)

    def test_ends_with_us(
        self, cli: Any, shop: sandbox.RunningPod, unique: str, gone: Gone, started: Callable[[str], int]
    ) -> None:
        with cli.start("exec", f"{shop.id}/db", "sh", "-c", f"echo on; sleep {unique}") as process:
            assert process.stdout.readline() == "on\n"
            started(unique)
            process.kill()
        gone(unique)
        assert shop["db"].state == "running"

    def test_signals_go_to_it(self, cli: Any, shop: sandbox.RunningPod) -> None:
        script = "trap 'exit 4' USR1; echo on; while :; do sleep 0.05; done"
        with cli.start("exec", f"{shop.id}/db", "sh", "-c", script) as process:
            assert process.stdout.readline() == "on\n"
            process.send_signal(signal.SIGUSR1)
            assert process.wait(10) == 4

    def test_which_container_must_be_clear(self, cli: Any, shop: sandbox.RunningPod) -> None:
        done = cli("exec", shop.id, "true")
        assert done.returncode == 125
        assert f"{shop.id}/db" in done.stderr
        assert f"{shop.id}/api" in done.stderr
        assert cli("exec", f"{shop.id}/cache", "true").returncode == 125

    def test_the_only_container_needs_no_name(self, cli: Any) -> None:
        with sandbox.start(command=["sleep", "inf"]) as pod:
            assert cli("exec", pod.id, "echo", "hi").stdout == "hi\n"

    def test_in_a_container_that_has_ended(self, cli: Any, shop: sandbox.RunningPod) -> None:
        shop["api"].kill()
        shop["api"].wait()
        done = cli("exec", f"{shop.id}/api", "true")
        assert done.returncode == 125
        assert "stopped" in done.stderr


class TestLogs:
    def test_streams_apart(self, cli: Any, shop: sandbox.RunningPod) -> None:
        done = cli("logs", f"{shop.id}/db")
        assert (done.stdout, done.stderr) == ("out\ndone\n", "err\n")

    def test_tail_and_timestamps(self, cli: Any, shop: sandbox.RunningPod) -> None:
        done = cli("logs", "-t", "-n", "1", f"{shop.id}/db")
        ((stamp, text),) = [line.split() for line in (done.stdout + done.stderr).splitlines()]
        assert text in {"done", "err"}  # two streams: which line was read last is nobody's promise
        assert stamp.endswith("+00:00")
        assert cli("logs", "-n", "0", f"{shop.id}/db").stdout == ""

    def test_follow_ends_with_the_container(self, cli: Any, shop: sandbox.RunningPod) -> None:
        with cli.start("logs", "-f", f"{shop.id}/db") as process:
            assert process.stdout.readline() == "out\n"
            shop["db"].kill()
            assert process.stdout.read() == "done\n"
            assert process.wait(10) == 0


class TestInspect:
    def test_pod(self, cli: Any, shop: sandbox.RunningPod) -> None:
        document = json.loads(cli("inspect", shop.id).stdout)
        assert document["pod"] == shop.id
        assert sorted(row["name"] for row in document["containers"]) == ["api", "db"]

    def test_the_spec_is_one(self, cli: Any, shop: sandbox.RunningPod) -> None:
        document = json.loads(cli("inspect", f"{shop.id}/api").stdout)
        process = sandbox.oci.loads(json.dumps(document["spec"])).process
        assert process is not None
        assert process.args == ("sleep", "inf")
        assert document["oci_state"]["status"] == "running"

    def test_of_nothing(self, cli: Any) -> None:
        done = cli("inspect", "nosuchpod")
        assert done.returncode == 1
        assert "there is neither a running pod nor an image of that name" in done.stderr
        assert "sandbox ps" in done.stderr


class TestAttach:
    def test_by_name_id_or_its_beginning(self, shop: sandbox.RunningPod) -> None:
        assert shop.name is not None
        for name in (shop.id, shop.name, shop.id[:-2]):
            with attach(name) as pod:
                assert pod.id == shop.id
                assert sorted(pod.containers) == ["api", "db"]

    def test_can_do_what_the_owner_can(self, shop: sandbox.RunningPod) -> None:
        with attach(shop.id) as pod:
            pod["db"].write_text("/etc/marker", "here")
            assert pod["db"].exec(["cat", "/etc/marker"]).stdout == "here"
            assert pod["api"].stop(0.1) == -9
            assert pod["db"].logs(stream="stderr") == "err\n"
        assert shop["api"].returncode == -9

    def test_leaving_it_does_not_end_the_pod(self, shop: sandbox.RunningPod) -> None:
        with attach(shop.id):
            pass
        assert shop["db"].exec(["true"]).returncode == 0

    def test_two_of_a_name(self) -> None:
        name = f"twin{os.getpid()}"
        sleeper = sandbox.Pod([sandbox.Container(command=["sleep", "inf"])], name=name)
        with sandbox.start(sleeper) as one, sandbox.start(sleeper):
            with pytest.raises(PodStateError, match="there are 2"):
                attach(name)
            with attach(one.id) as pod:
                assert pod.id == one.id


class TestDoctor:
    def test_says_that_containers_can_run(self, cli: Any) -> None:
        done = cli("doctor")
        assert done.returncode == 0, done.stdout
        assert done.stdout.splitlines()[-1] == "Containers can run here."

    def test_agrees_with_the_probes_of_the_tests(self, cli: Any) -> None:
        """Two independent probes of the same machine."""
        document = json.loads(cli("doctor", "--json").stdout)
        found = {check["name"]: check["ok"] for check in document["checks"]}
        pairs = {"user namespaces": "userns", "overlayfs": "overlay", "crun": "crun", "runc": "runc"}
        for name, requirement in pairs.items():
            assert found[name] == (missing(requirement) is None), name
        assert document["ok"] is True

    def test_every_missing_thing_has_a_reason_and_a_remedy(self, cli: Any) -> None:
        for check in json.loads(cli("doctor", "--json").stdout)["checks"]:
            assert check["found"]
            assert check["ok"] or check["remedy"]

    @requires("systemd.private")
    def test_tells_the_limits_of_services_apart(self, cli: Any) -> None:
        """What a pod gets from version 1 hierarchies, a manager on such a machine does not have for its services."""
        checks = json.loads(cli("doctor", "--json").stdout)["checks"]
        (check,) = [check for check in checks if check["name"] == "limits of services"]
        for word, limit in (("memory", "MemoryMax=64M"), ("processes", "TasksMax=9")):
            done = cli("service", "run", "-p", limit, "true")
            assert (done.returncode == 0) == (check["ok"] or word not in check["found"].partition(":")[0]), done.stderr

    def test_says_so_if_they_cannot(self, cli: Any) -> None:
        """On a machine without a place for a runtime directory, nothing runs."""
        code = (
            "import sys, sandbox.cli.checks as c; from sandbox.cli import main; "
            "c.container = lambda: c.Check('a container', False, '', 'no', 'none', required=True); "
            "sys.exit(main(['doctor']))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stdout.splitlines()[-1] == "Containers cannot run here: a container."

    def test_the_id_map_probe_really_maps(self) -> None:
        assert _probe("assert os.getuid() == 0 or os.abort()") == "None"

    def test_a_failing_probe_reports_its_error(self) -> None:
        assert "No such file or directory" in _probe("os.rmdir('/nonexistent')")


def _probe(action: str) -> str:
    """In a process of its own: a probe forks in a way that only a process with one thread may."""
    code = f"import os; from sandbox.cli import checks\ndef f():\n {action}\nprint(checks.in_namespaces(f))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
