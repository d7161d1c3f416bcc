"""Images that were built here run unchanged under podman and docker: the program inside is started in the same way."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from build_contexts import make
from build_helpers import Podman, store_base
from dockerd import Dockerd
from gate import requires

from sandbox.images import Store

pytestmark = requires("root", "userns", "overlay", "busybox")

#: What is the engine's to decide is left out: capabilities, no_new_privs, HOSTNAME. Podman writes unknown users into
#: /etc/passwd, so they have names there; and root has no groups there unless somebody says that it is to be root. How large a
#: directory is, the file system says.
REPORT = r"""#!/bin/sh
id -u; id -g; id -G; pwd; umask; test -t 0 || echo no terminal
test "$(id -u)" = 0 || grep ^Groups: /proc/self/status
for name in GREETING EMPTY HOME PATH; do eval "echo $name=\"\$$name\""; done
for each; do echo "<$each>"; done
for path in /bin/report /bin/setuid /srv/* /srv/data/*; do
    test -d "$path" || size=%s; stat -c "%n %A %u:%g $size" "$path"; size=
done 2>/dev/null
touch new 2>/dev/null && echo can write here || echo cannot write here
"""
BASE = """
FROM localhost/base:1
RUN echo more:x:3000:app >> /etc/group && mkdir /srv/mine && chown app /srv/mine
RUN cp /bin/sh /bin/setuid && chmod 4755 /bin/setuid
ENV GREETING="hello  world" EMPTY=
COPY --chmod=755 report /bin/
"""
#: Name → what follows in the Dockerfile.
CASES = {
    "exec": """
        USER app
        WORKDIR /srv/data/deep
        COPY --chown=app:more --chmod=640 report ../kept
        ENTRYPOINT ["/bin/sh", "/bin/report"]
        CMD ["one", "two words", "", "$HOME"]
    """,
    "shell": 'WORKDIR /srv/mine\nUSER app:staff\nENV HOME=/elsewhere\nENTRYPOINT exec sh /bin/report "$GREETING" "$0"',
    "command": "USER 1234:5678\nENV PATH=/usr/bin:/bin\nCMD report 'a  b'",
    "root": 'CMD ["report", "x"]',
}
ENGINES = ["podman", "docker", "docker with an old archive"]

Run = Callable[..., str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with an image for each case; and all in one file, in both forms."""
    home = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SANDBOX_STORE", str(home / "store"))
        store_base(Store(home / "store"))
        for name, rest in CASES.items():
            make(home / name, {"Dockerfile": BASE + rest, "report": REPORT})
            ours("build", "--quiet", "--tag", f"localhost/{name}:1", home / name)
        names = [f"localhost/{name}:1" for name in CASES]
        ours("save", "--output", home / "images.tar", *names)
        ours("save", "--format", "docker-archive", "--output", home / "old.tar", *names)
        yield home


def ours(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "sandbox.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module", params=[pytest.param(name, marks=requires(name.partition(" ")[0], "runc")) for name in ENGINES])
def theirs(request: pytest.FixtureRequest, home: Path) -> Iterator[Run]:
    """Runs an image under another engine that has loaded what was saved."""
    archive = home / ("old.tar" if "old" in request.param else "images.tar")
    # podman takes no run directory of more than 50 characters.
    with tempfile.TemporaryDirectory(prefix="sp", ignore_cleanup_errors=True) as short:
        if request.param == "podman":
            podman = Podman(Path(short))
            podman("load", "--quiet", "--input", archive)
            yield podman.run
        else:
            with Dockerd(Path(short)) as docker:
                docker("load", "--quiet", "--input", archive)
                yield lambda *arguments: docker("run", "--rm", "--network=none", *arguments)


@pytest.mark.parametrize("arguments", [[], ["other", "argu ments", "--help"]], ids=["own command", "given"])
@pytest.mark.parametrize("name", CASES)
def test_the_program_inside_sees_the_same(name: str, arguments: list[str], home: Path, theirs: Run) -> None:
    image = f"localhost/{name}:1"
    if arguments and name in {"command", "root"}:
        arguments = ["report", *arguments]
    here = ours("run", image, *arguments)
    assert len(here.splitlines()) > 10
    assert here == theirs(image, *arguments)
