"""The house rules of docs/architecture.md, held by reading the code: arrows, the public door, sizes."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import sandbox

#: Where the packages under test lie: the checkout, or site-packages when the installed wheel is tested.
TOP = Path(sandbox.__file__).parent.parent
PACKAGES = {package: Path(str(find_spec(package).origin)).parent  # type: ignore[union-attr]
            for package in ("sandbox", "pytest_sandbox", "sandbox_systemd")}  # fmt: skip
MODULES = {
    ".".join(path.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in PACKAGES.values()
    for path in sorted(folder.rglob("*.py"))
}
REPOSITORY = Path(__file__).parents[2]
MAX_LINES = 500

#: room of the house → the only things beyond the standard library (and itself) that it may import. The longest
#: matching name rules; a name stands for all that lies below it, `sandbox._*` for the private modules of the top.
#: What probes need of the live side: running programs, and lines of logs.
PROGRAMS = {"sandbox._output", "sandbox._process"}

ARROWS: dict[str, set[str]] = {
    "sandbox.linux": set(),
    "sandbox.runtime": {"sandbox.linux"},
    "sandbox.shim": {"sandbox.linux", "sandbox.runtime"},
    "sandbox.shim.client": {"sandbox.errors", "sandbox.linux", "sandbox.shim"},
    "sandbox._text": set(),
    "sandbox._version": set(),
    "sandbox.errors": {"sandbox._text"},
    "sandbox.oci": {"attrs", "cattrs", "sandbox.errors"},
    "sandbox._*": {"attrs", "sandbox.errors", "sandbox.oci"},
    "sandbox.models": {"attrs", "sandbox._*", "sandbox._text", "sandbox.errors"},
    "sandbox.images": {
        "attrs", "isal", "sandbox._version", "sandbox.errors", "sandbox.linux", "sandbox.oci", "zstandard"
    },
    "sandbox.build": {"attrs", "sandbox"},
    "sandbox.systemd_errors": {"sandbox.errors", "sandbox_systemd"},
    "sandbox.cgroups": {"attrs", "sandbox.errors", "sandbox.linux", "sandbox.systemd_errors", "sandbox_systemd"},
    "sandbox_systemd": {"attrs", "gi", "jeepney", "pydbus"},
    "sandbox_systemd.keeper": set(),
    "sandbox.network": {"attrs", "sandbox.errors", "sandbox.linux"},
    "sandbox.probes": {"attrs", "sandbox._*", "sandbox._text", "sandbox.errors", "sandbox.linux"} | PROGRAMS,
    "sandbox.services": {"attrs", "sandbox", "sandbox_systemd"},
    "sandbox.services.activation": set(),
    "sandbox": {"attrs", "cattrs", "pyseccomp"},
    "pytest_sandbox": {"attrs", "pluggy", "pytest", "sandbox", "xdist"},
}

#: Private parts of the live side (sandbox.pods), which is above everything else in the library.
LIVE = frozenset(f"sandbox._{part}" for part in (
    "agent", "attach", "bpf", "container", "filecalls", "host", "launch", "output", "process", "running", "seccomp", "start",
))  # fmt: skip

#: What runs in the shim's process, and therefore starts fast and stays small.
SHIM_SIDE = tuple(f"sandbox.{part}" for part in ("linux", "runtime", "shim"))


def is_type_checking(node: ast.AST) -> bool:
    match node:
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
            return True
        case _:
            return False


def imports_of(tree: ast.AST, module: str, *, is_package: bool = False) -> Iterator[str]:
    """Absolute names of what a module imports, in functions too; type-checking blocks are not code."""
    for node in ast.iter_child_nodes(tree):
        if is_type_checking(node):
            assert isinstance(node, ast.If)
            for statement in node.orelse:
                yield from imports_of(ast.Module([statement], []), module, is_package=is_package)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from imported_from(node, module, is_package=is_package)
        else:
            yield from imports_of(node, module, is_package=is_package)


def imported_from(node: ast.ImportFrom, module: str, *, is_package: bool) -> Iterator[str]:
    origin = node.module or ""
    if node.level:
        parents = module.split(".")
        base = parents[: len(parents) - node.level + is_package]
        origin = ".".join([*base, *filter(None, [origin])])
    for alias in node.names:
        full = f"{origin}.{alias.name}"
        yield full if full in MODULES else origin


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def room_of(name: str) -> str:
    private = name.startswith("sandbox._") and name not in ARROWS and name not in LIVE
    return "sandbox._*" if private else name


def forbidden(module: str, imported: str) -> bool:
    if imported.partition(".")[0] in sys.stdlib_module_names:
        return False
    rule = max((name for name in ARROWS if within(room_of(module), name)), key=len)
    return not any(within(room_of(imported), allowed) for allowed in {rule, *ARROWS[rule]})


def violations(module: str, source: str, *, is_package: bool = False) -> list[str]:
    found = imports_of(ast.parse(source), module, is_package=is_package)
    return [f"{module} imports {name}" for name in found if forbidden(module, name)]


def test_arrows_point_down() -> None:
    broken = [
        violation
        for module, path in MODULES.items()
        for violation in violations(module, path.read_text("utf-8"), is_package=path.name == "__init__.py")
    ]
    assert broken == []


@pytest.mark.parametrize(
    ("module", "source", "caught"),
    [
        ("sandbox.linux.mounts", "from sandbox.models import Pod", ["sandbox.models"]),
        ("sandbox.linux.mounts", "from ..errors import SandboxError", ["sandbox.errors"]),
        ("sandbox.linux.mounts", "def f():\n    import attrs", ["attrs"]),
        ("sandbox.linux.mounts", "import os\nfrom .errors import KernelError", []),
        ("sandbox.linux.mounts", "if TYPE_CHECKING:\n    import attrs", []),
        ("sandbox.linux.mounts", "if TYPE_CHECKING:\n    pass\nelse:\n    import attrs", ["attrs"]),
        ("sandbox._units", "from sandbox._validators import check", []),
        ("sandbox.errors", "from sandbox import _units", ["sandbox._units"]),
        ("sandbox.shim.server", "from sandbox.runtime import native", []),
        ("sandbox.runtime.native", "from sandbox.shim import server", ["sandbox.shim"]),
        ("sandbox.pods", "import pytest", ["pytest"]),
        ("sandbox.pods", "import pytest_sandbox", ["pytest_sandbox"]),
        ("pytest_sandbox.plugin", "from _pytest.config import Config", ["_pytest.config"]),
    ],
)
def test_the_arrow_test_sees_arrows_that_point_up(module: str, source: str, caught: list[str]) -> None:
    found = [violation.rpartition(" ")[2] for violation in violations(module, source)]
    assert [name.removesuffix(".server") for name in found] == caught


def test_every_package_has_its_arrow_rule() -> None:
    parts = {path.parent.name for path in (TOP / "sandbox").glob("*/__init__.py")}
    assert {f"sandbox.{part}" for part in parts} - set(ARROWS) <= {"sandbox.cli"}


def run_fresh(code: str) -> str:
    """Run code in an interpreter that has imported nothing of ours, with warnings as errors."""
    prelude = f"import sys; sys.path[:0] = {sorted({str(folder.parent) for folder in PACKAGES.values()})!r}\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", prelude + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_imports_alone() -> None:
    """Each in a fork of an interpreter that has imported nothing: no import cycle, no hidden order."""
    without = () if find_spec("pydbus") and find_spec("gi") else ("pydbus_binding",)
    code = f"""
import os, sys, traceback
children = 0
for module in {list(MODULES)!r}:
    if module.endswith(("__main__", *{without!r})):
        continue
    child = os.fork()
    if child == 0:
        try:
            __import__(module)
        except BaseException:
            print(module)
            traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        os._exit(0)
    children += 1
    if children > os.cpu_count():
        os.wait()
        children -= 1
while children:
    os.wait()
    children -= 1
"""
    assert run_fresh(code) == ""


def modules_after(*imports: str) -> set[str]:
    """What ``sys.modules`` gains by some imports."""
    code = f"""
import json
before = set(sys.modules)
for module in {list(imports)!r}:
    __import__(module)
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    names: list[str] = json.loads(run_fresh(code))
    return set(names)


def test_importing_the_door_imports_nothing_else() -> None:
    assert modules_after("sandbox") <= {"sandbox", "__future__"}


def test_the_shims_process_imports_the_standard_library_and_its_own_rooms() -> None:
    ours = [name for name in MODULES if name.startswith(SHIM_SIDE) and name != "sandbox.shim.client"]
    loaded = modules_after(*ours)
    known = {*sys.stdlib_module_names, "sandbox"}
    strangers = {name for name in loaded if name.partition(".")[0] not in known}
    assert strangers == set()
    assert {name for name in loaded if within(name, "sandbox")} <= {"sandbox", *ours}


def test_the_door_gives_what_it_lists() -> None:
    for name in sandbox.__all__:
        assert getattr(sandbox, name) is not None
    assert set(sandbox.__all__) <= set(dir(sandbox))
    with pytest.raises(AttributeError, match="has no attribute 'Sandboxes'"):
        _ = sandbox.Sandboxes  # type: ignore[attr-defined]


def test_type_checkers_see_the_same_door() -> None:
    tree = ast.parse(Path(sandbox.__file__).read_text("utf-8"))
    block = next(node for node in tree.body if is_type_checking(node))
    assert isinstance(block, ast.If)
    seen = {
        alias.asname: statement.module
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    homes = {name: f"sandbox.{module}" for name, module in sandbox._HOME.items()}
    assert seen == homes | dict.fromkeys(sandbox._SUBMODULES, "sandbox")


#: What these modules share with the rest of the house only.
INTERNAL = {"FrozenDict", "parse_env_file", "read_files", "signal_number"}


@pytest.mark.parametrize("module", ["errors", "models", "pods", "probes"])
def test_the_door_is_complete(module: str) -> None:
    """What a public module exports is public: nobody has to know where it lives."""
    exported = importlib.import_module(f"sandbox.{module}").__all__
    assert set(exported) - INTERNAL == set(sandbox._NAMES_OF[module])


def code_files() -> list[Path]:
    folders = ("sandbox", "pytest_sandbox", "systemd", "tests", "examples", "benchmarks", "tools")
    return [path for folder in folders for path in sorted((REPOSITORY / folder).rglob("*.py"))]


def test_no_file_is_long() -> None:
    lengths = {path: path.read_text("utf-8").count("\n") for path in code_files()}
    assert {str(path): lines for path, lines in lengths.items() if lines > MAX_LINES} == {}


def test_every_module_has_a_docstring_and_postponed_annotations() -> None:
    for path in MODULES.values():
        tree = ast.parse(path.read_text("utf-8"))
        assert ast.get_docstring(tree), path
        names = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
        assert "__future__" in names or path.name in {"_version.py", "__init__.py", "__main__.py"}, path


def test_systemd_is_a_folder_not_a_package() -> None:
    """python-systemd owns the import name `systemd`."""
    assert not (REPOSITORY / "systemd" / "__init__.py").exists()
