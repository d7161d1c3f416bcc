"""Images that podman and docker have, and pulls through a proxy."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import images_helpers as make
import pytest
from gate import requires
from registries import Registry  # noqa: TC002 - beside the others

from sandbox.errors import ImageError, ImageNotFound
from sandbox.images import Store, resolve
from sandbox.images.distribution.addresses import Origin
from sandbox.images.distribution.pull import pull
from sandbox.images.references import parse
from sandbox.images.stored import Images

pytestmark = requires("userns")

LAYER = make.tar([make.file("hello", "hi\n")])


@requires("skopeo", "root")
def test_containers_storage_through_skopeo(tmp_path: Path, store: Store) -> None:
    layout = make.make_layout(tmp_path / "layout", LAYER)
    name = f"containers-storage:[vfs@{tmp_path}/root+{tmp_path}/run]localhost/app:1"
    subprocess.run(["skopeo", "copy", "--quiet", f"oci:{layout}:latest", name], check=True)
    image = resolve(name, store=store)
    assert (image.layers[0] / "hello").read_text() == "hi\n"
    (kept,) = Images(store).items()
    assert kept.names == (f"localhost/containers-storage:{kept.id[7:]}",)
    with pytest.raises(ImageNotFound, match="skopeo ended with"):
        resolve(name.replace("app:1", "app:2"), store=store)


DOCKER = """#!/bin/sh
echo "$@" >> {log}
case "$2" in
inspect) [ "$5" = app:1 ] && echo sha256:{id} || {{ echo "No such image: $5" >&2; exit 1; }} ;;
save) cat {archive} ;;
esac
"""


@requires("skopeo")
@pytest.mark.parametrize(("transport", "program", "kind"), [
    ("docker-daemon", "docker", "docker-archive"), ("containers-storage", "podman", "oci-archive"),
])  # fmt: skip
def test_an_engine_is_asked_by_its_own_program(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, transport: str, program: str, kind: str
) -> None:
    """The program is a script that answers as docker and podman do; the archive is skopeo's."""
    layout = make.make_layout(tmp_path / "layout", LAYER)
    subprocess.run(["skopeo", "copy", "--quiet", f"oci:{layout}:latest", f"{kind}:{tmp_path}/saved.tar:app:1"], check=True)
    config = subprocess.run(
        ["skopeo", "inspect", "--raw", "--config", f"oci:{layout}:latest"], capture_output=True, check=True
    ).stdout
    tools, log = tmp_path / "tools", tmp_path / "log"
    tools.mkdir()
    script = DOCKER.format(log=log, id=make.sha256(config)[7:], archive=tmp_path / "saved.tar")
    (tools / program).write_text(script)
    (tools / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    for _ in range(2):
        image = resolve(f"{transport}:app:1", store=store)
        assert (image.layers[0] / "hello").read_text() == "hi\n"
    asked = log.read_text().splitlines()
    assert [line.split()[1] for line in asked] == ["inspect", "save", "inspect"]
    with pytest.raises(ImageNotFound, match=f"{program} ended with 1") as caught:
        resolve(f"{transport}:other", store=store)
    assert caught.value.cause == "No such image: other"
    with pytest.raises(ImageError, match="does not begin with"):
        resolve(f"{transport}:--all", store=store)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageNotFound, match=r"would have to be installed"):
        resolve(f"{transport}:app:1", store=store)


@requires("docker-registry", "skopeo", "openssl")
def test_through_a_proxy(
    started: Callable[[str], Registry], tmp_path: Path, store: Store, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that knows where far.example is: CONNECT for TLS, with the password that its address has."""
    registry = started("tls")
    digest = registry.put(make.make_layout(tmp_path / "layout", LAYER), "proxied/app:1")
    (settings / "registries.conf").write_text('[[registry]]\nlocation = "far.example"\ninsecure = true\n')
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=tunnel, args=(server, registry.host, asked), daemon=True)
        thread.start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        found = pull(parse("far.example/proxied/app:1"), store, unpack=False).stored
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert found.digest == digest
    assert asked
    assert all(text.startswith(b"CONNECT far.example:443") for text in asked)
    assert all(b"Proxy-Authorization: Basic bWU6c2VjcmV0" in text for text in asked)
    assert str(Origin("https", "far.example", 443)) == "far.example"


def tunnel(server: socket.socket, target: str, asked: list[bytes]) -> None:
    host, _, port = target.partition(":")
    threads: list[threading.Thread] = []
    with contextlib.ExitStack() as stack:
        while True:
            try:
                client = stack.enter_context(server.accept()[0])
            except OSError:
                break
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(4096)
            asked.append(head)
            upstream = stack.enter_context(socket.create_connection((host, int(port))))
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            for pair in ((client, upstream), (upstream, client)):
                threads.append(threading.Thread(target=pump, args=pair, daemon=True))
                threads[-1].start()
        for thread in threads:
            thread.join()


def pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while piece := source.recv(1 << 16):
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
