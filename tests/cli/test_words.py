"""What the command line says and understands, without any container."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import pytest

from sandbox import Mount
from sandbox.cli import COMMANDS, console, main
from sandbox.cli.container import model, publications
from sandbox.cli.options import Command, Option, UsageError
from sandbox.cli.run import COMMAND as RUN
from sandbox.errors import ModelError

#: `service` has three in one module.
SUBCOMMANDS: list[Command] = [
    found
    for module, _, _ in COMMANDS.values()
    for found in vars(importlib.import_module(f"sandbox.cli.{module}")).values()
    if isinstance(found, Command)
]


def said(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(list(arguments))
    out, err = capfd.readouterr()
    return status, out, err


def container(*arguments: str) -> Any:
    given = RUN.parse([*arguments, "host", "true"])
    assert given is not None
    image, *command = given.operands
    return model(given, image, command)


@pytest.mark.parametrize("command", SUBCOMMANDS, ids=lambda command: command.name)
class TestHelp:
    def test_begins_with_usage_and_one_sentence(self, command: Command) -> None:
        usage, blank, purpose, *_ = command.help().splitlines()
        assert usage.startswith(f"sandbox {command.name} [OPTIONS...]")
        assert blank == ""
        assert purpose == command.purpose
        assert purpose.endswith(".")

    def test_options_are_short_fragments_in_a_column(self, command: Command) -> None:
        lines = command.help().partition("Options:\n")[2].partition("\n\n")[0].splitlines()
        assert len(lines) == len(command.options) + 1
        starts = {line.index(text) for line, text in zip(lines, self.texts(command), strict=True)}
        assert len(starts) == 1
        for text in self.texts(command):
            assert len(text) < 45
            assert text[0].isupper()
            assert not text.endswith(".")

    @staticmethod
    def texts(command: Command) -> list[str]:
        return ["Show this help", *(option.text for option in command.options)]

    def test_has_examples_that_parse(self, command: Command) -> None:
        """Of the command itself; a line of what comes next may follow."""
        own = ["sandbox", *command.name.split()]
        lines = [example.removeprefix("sudo ").partition(" | ")[0].split() for example, _ in command.examples]
        examples = [words[len(own) :] for words in lines if words[: len(own)] == own]
        assert lines[0][: len(own)] == own
        assert len(examples) >= len(lines) - 1
        for arguments in examples:
            assert command.parse(arguments) is not None

    def test_is_shown_and_nothing_done(self, command: Command, capfd: pytest.CaptureFixture[str]) -> None:
        for spelling in ("--help", "-h"):
            assert said(capfd, *command.name.split(), spelling) == (0, command.help(), "")


def test_no_option_is_given_twice() -> None:
    for command in SUBCOMMANDS:
        for names in ([o.name for o in command.options], [o.short for o in command.options if o.short]):
            assert len(names) == len(set(names)), command.name


def test_overview(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, _ = said(capfd, "--help")
    assert status == 0
    assert "\033" not in out
    for name in COMMANDS:
        assert f"\n  {name} " in out
    assert said(capfd) == (2, out, "")


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    from sandbox import __version__

    assert said(capfd, "--version") == (0, f"sandbox {__version__}\n", "")


def test_bold_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "is_terminal", lambda _fd: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\033[1mRun a command" in RUN.help()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in RUN.help()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["walk"], 2, "there is no command `walk`"),
        (["run"], 125, "expected an image"),
        (["run", "--bogus", "host"], 125, "option --bogus not recognized"),
        (["run", "-e"], 125, "option -e requires argument"),
        (["run", "-m", "lots", "host"], 125, "Resources.memory = 'lots'"),
        (["run", "-v", "data:/data", "host"], 125, "the source must be a path of the host"),
        (["run", "--mount", "type=bind,sauce=/x", "host"], 125, "unknown field `sauce`"),
        (["run", "--security-opt", "apparmor=x", "host"], 125, "--security-opt=apparmor=x: unknown"),
        (["run", "-p", "80/udp", "host"], 125, "TCP only"),
        (["run", "-p", "0", "host"], 125, "--publish=0"),
        (["run", "-p", "80:80:80:80", "host"], 125, "--publish=80:80:80:80: expected [[ADDRESS:]PORT:]PORT"),
        (["run", "-p", "no-such-host.invalid:80:80", "host"], 125, "listen on `no-such-host.invalid`: "),
        (["run", "--timeout", "soon", "host"], 125, "not a number of seconds"),
        (["run", "--ulimit", "nofile", "host"], 125, "expected KEY=VALUE"),
        (["exec", "pod"], 125, "expected a pod and a command"),
        (["logs"], 2, "expected a pod"),
        (["logs", "-n", "many", "pod"], 2, "not a number of lines"),
        (["ps", "everything"], 2, "unexpected `everything`"),
        (["inspect", "--type", "pod", "/x"], 2, "expected POD or POD/CONTAINER"),
    ],
)
def test_wrong_usage(
    arguments: list[str], status: int, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    got, out, err = said(capfd, *arguments)
    assert (got, out) == (status, "")
    assert words in err
    assert "Traceback" not in err


def test_options_end_at_the_first_operand() -> None:
    given = RUN.parse(["-it", "--mem=1M", "host", "ls", "-i", "--memory"])
    assert given is not None
    assert given.operands == ["host", "ls", "-i", "--memory"]
    assert (given["interactive"], given["tty"], given["memory"]) == (True, True, "1M")


def test_an_ambiguous_beginning_is_refused() -> None:
    with pytest.raises(UsageError, match="not a unique prefix"):
        RUN.parse(["--e", "x", "host"])


def test_a_repeated_option_without_a_list_takes_the_last() -> None:
    given = Command("x", "", "", (Option("one", "", "", "V"),), ()).parse(["--one", "1", "--one", "2"])
    assert given is not None
    assert given["one"] == "2"


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        (["-e", "A=1", "--env=B=x=y"], {"env": {"A": "1", "B": "x=y"}}),
        (["-e", "PASSED", "-e", "NOT_SET_ANYWHERE"], {"env": {"PASSED": "on"}}),
        (["-w", "/src", "-u", "5:6", "--hostname", "h"], {"working_dir": "/src", "user": "5:6", "hostname": "h"}),
        (["-v", "/a:/b:ro"], {"mounts": (Mount.bind("/a", "/b", read_only=True),)}),
        (["--tmpfs", "/x:size=1M,noexec"], {"mounts": (Mount.tmpfs("/x", size="1M", options=["noexec"]),)}),
        (["--mount", "type=bind,src=/a,dst=/b,readonly"], {"mounts": (Mount.bind("/a", "/b", read_only=True),)}),
        (["--mount", "type=tmpfs,target=/x,tmpfs-size=1M"], {"mounts": (Mount.tmpfs("/x", size="1M"),)}),
        (["--network", "none"], {"network": "private"}),
        (["--init", "-t"], {"init": True, "tty": True}),
        (["--entrypoint", "/bin/sh"], {"entrypoint": ("/bin/sh",)}),
        (["--entrypoint", '["sh", "-c"]'], {"entrypoint": ("sh", "-c")}),
        (["--entrypoint", ""], {"entrypoint": ()}),
        (["--ulimit", "nofile=10:20"], {"ulimits": {"nofile": (10, 20)}}),
        (["--add-host", "db:10.0.0.1"], {"extra_hosts": {"db": "10.0.0.1"}}),
    ],
)  # fmt: skip
def test_options_of_the_container(
    arguments: list[str], fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSED", "on")
    got = container(*arguments)
    assert {name: getattr(got, name) for name in fields} == fields


def test_options_of_resources_and_security() -> None:
    got = container(
        "-m", "64m", "--cpus", "0.5", "--pids-limit", "-1", "--cap-add", "ALL", "--cap-drop", "chown", "--read-only",
        "--security-opt", "seccomp=unconfined", "--security-opt", "no-new-privileges:false",
    )  # fmt: skip
    assert (got.resources.memory, got.resources.cpus, got.resources.pids) == (64 << 20, 0.5, -1)
    assert (got.security.cap_add, got.security.cap_drop) == (("ALL",), ("CAP_CHOWN",))
    assert (got.security.seccomp, got.security.no_new_privileges) == ("unconfined", False)
    assert got.security.read_only_root


def test_without_options_the_model_has_its_defaults() -> None:
    from sandbox import Container

    assert container() == Container(image="host", command=["true"])


def test_a_bad_value_is_the_models_error() -> None:
    with pytest.raises(ModelError) as caught:
        container("--cpus", "-3")
    assert caught.value.field == "cpus"


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("80", ("127.0.0.1", 0, 80)),
        ("8080:80", ("127.0.0.1", 8080, 80)),
        ("0.0.0.0:8080:80/tcp", ("0.0.0.0", 8080, 80)),
        ("127.0.0.2::80", ("127.0.0.2", 0, 80)),
        ("[::1]:8080:80", ("::1", 8080, 80)),
    ],
)
def test_ports(text: str, meaning: tuple[str, int, int]) -> None:
    given = RUN.parse(["-p", text, "host"])
    assert given is not None
    assert publications(given) == [meaning]


def test_columns_align() -> None:
    assert console.columns([("a", "b", "long"), ("aaa", "", "x")], indent="") == "a    b  long\naaa     x"


def test_help_costs_no_heavy_import() -> None:
    """`sandbox run --help` shall come at once: neither models nor the shim's client are needed for it."""
    code = (
        "import sys; from sandbox.cli import main; main(['run', '--help']); "
        "heavy = {'attr', 'attrs', 'cattrs', 'argparse'}; "
        "print(*[m for m in sys.modules if m.partition('.')[0] in heavy], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""


def test_ps_costs_no_models() -> None:
    code = (
        "import sys; from sandbox.cli import main; main(['ps']); "
        "print(*[m for m in sys.modules if m.partition('.')[0] in ('attr', 'attrs', 'cattrs')], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""
    assert done.stdout.startswith("POD")


def test_no_option_is_parsed_and_forgotten() -> None:
    import inspect

    from sandbox.cli import container as module

    source = inspect.getsource(module)
    for option in module.OPTIONS:
        if option.name != "name":  # the pod's
            assert f'given["{option.name}"]' in source, option.name
