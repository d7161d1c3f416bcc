"""What containers of a pod share, what they get from the host, and how the network of a pod is reached."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from gate import requires
from programs import PRELUDE, program

import sandbox
from sandbox import Container, ContainerExited, Log, Mount, Pod, Port, SetupError, Volume
from sandbox.pods import RunningPod
from sandbox.shim.client import own_shim

pytestmark = requires("userns", "overlay", "python")

#: Answers every connection on port 8000 with its own words back.
ECHO = PRELUDE + """
s = socket.create_server(({address!r}, 8000), family=socket.{family})
print("listening", flush=True)
while True:
    c, _ = s.accept()
    while data := c.recv(1 << 16):
        c.sendall(data)
    c.close()
"""


def echo(address: str = "127.0.0.1", family: str = "AF_INET") -> list[str]:
    return program(ECHO, address=address, family=family)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningPod]:
    with sandbox.start(command=echo(), ready=Port(8000)) as pod:
        yield pod


# --- network ------------------------------------------------------------------------------------------------------


def test_connect_without_a_port_of_the_host(server: RunningPod) -> None:
    with server.connect(8000) as sock:
        sock.sendall(b"hello")
        assert sock.recv(100) == b"hello"
    with pytest.raises(ConnectionRefusedError):
        server.connect(8001)


def test_a_socket_of_the_pod(server: RunningPod) -> None:
    with server.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with server.connect(port) as client:
            listener.accept()[0].close()
            assert client.recv(1) == b""
    with server.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 53))


def test_publish_holds_an_address_of_the_host(server: RunningPod) -> None:
    host, port = server.publish(8000)
    assert host == server.get_container_host_ip() == "127.0.0.1"
    assert server.publish(8000) == (host, port)
    assert server.get_exposed_port(8000) == port
    data = os.urandom(1 << 18)
    with socket.create_connection((host, port), timeout=10) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        got = b""
        while chunk := sock.recv(1 << 16):
            got += chunk
    assert got == data


def test_publish_a_port_that_is_taken(server: RunningPod) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(SetupError, match=r"listen on `127\.0\.0\.1:\d+`: Address already in use"):
            server.publish(8000, host_port=taken.getsockname()[1])


def test_published_port_where_nobody_listens(server: RunningPod) -> None:
    with socket.create_connection(server.publish(9999), timeout=10) as sock:
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_a_published_port_is_not_held_up_by_a_full_backlog() -> None:
    """A server that talks to one client and accepts no other; the kernel answers those who come later not at all."""
    code = (
        "import socket\ns = socket.socket(); s.bind(('127.0.0.1', 8000)); s.listen(0); print('up', flush=True)\n"
        "c = s.accept()[0]\nwhile data := c.recv(100): c.sendall(data)\n"
        "while True: c = s.accept()[0]; c.sendall(b'late'); c.close()"
    )
    with sandbox.start(command=program(code), ready=Log("up")) as pod, contextlib.ExitStack() as stack:

        def client() -> socket.socket:
            return stack.enter_context(socket.create_connection(pod.publish(8000), timeout=10))

        first = client()
        for number in range(5):
            first.sendall(b"%d" % number)
            assert first.recv(10) == b"%d" % number
            for _ in range(3):
                client()  # whether they are answered some day is up to the kernel, which drops what does not fit the backlog
        first.shutdown(socket.SHUT_WR)
        assert first.recv(1) == b""


def test_published_port_is_free_again() -> None:
    with sandbox.start(command=echo(), ready=Port(8000)) as pod:
        address = pod.publish(8000)
    with socket.create_server(address):
        pass


def test_publish_finds_a_server_on_ipv6_only() -> None:
    with sandbox.start(command=echo("::1", "AF_INET6"), ready=Port(8000)) as pod:
        with socket.create_connection(pod.publish(8000), timeout=10) as sock:
            sock.sendall(b"six")
            assert sock.recv(10) == b"six"
        with pod.connect(8000, "::1") as sock:
            sock.sendall(b"six")
            assert sock.recv(10) == b"six"


def test_url() -> None:
    code = ["-m", "http.server", "--bind", "127.0.0.1", "8000", "--directory", "/srv"]
    with sandbox.start(command=["/usr/bin/python3", *code], ready=Port(8000)) as pod:
        pod.write_text("/srv/health", "fine")
        with urllib.request.urlopen(pod.url(8000, "health"), timeout=10) as answer:
            assert answer.read() == b"fine"
        assert pod.url(8000, scheme="https").startswith("https://127.0.0.1:")


def test_two_pods_have_the_same_port_and_do_not_meet(server: RunningPod) -> None:
    with sandbox.start(command=echo(), ready=Port(8000)) as other:
        assert other.publish(8000) != server.publish(8000)
    with socket.create_server(("127.0.0.1", 0)) as host:
        probe = PRELUDE + f"socket.create_connection(('127.0.0.1', {host.getsockname()[1]}))"
        assert "ConnectionRefusedError" in server.exec(program(probe)).stderr


def test_the_hosts_network_if_asked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as host:
        probe = PRELUDE + f"socket.create_connection(('127.0.0.1', {host.getsockname()[1]})); print('met')"
        assert sandbox.run(program(probe), network="host").stdout == "met\n"


# --- several containers -------------------------------------------------------------------------------------------


def test_containers_share_localhost_names_and_volumes() -> None:
    fetch = PRELUDE + """
for name in ("localhost", "server", "shop"):
    s = socket.create_connection((name, 8000)); s.sendall(name.encode()); print(s.recv(100).decode())
open("/data/result", "w").write("done")
"""
    pod = Pod(
        [
            Container("server", command=echo(), ready=Port(8000), mounts=["data:/in"]),
            Container("client", command=program(fetch), after=["server"], mounts=["data:/data"]),
        ],
        name="shop", volumes=["data"],
    )  # fmt: skip
    with sandbox.start(pod) as running:
        assert running["client"].wait(20) == 0, running["client"].logs()
        assert running["client"].logs() == "localhost\nserver\nshop\n"
        assert running["server"].read_text("/in/result") == "done"
        assert running["server"].exec("hostname").stdout == "shop\n"


def test_containers_share_ipc_but_not_processes_and_files() -> None:
    look = "ls /dev/shm; ls /tmp; ps -e -o args | grep -c '^sleep'; ipcs -q | grep -c 0x"
    with sandbox.start([
        Container("a", command=["sh", "-c", "echo hi > /dev/shm/note; touch /tmp/mine; ipcmk -Q; sleep inf"], ready=Log("id")),
        Container("b", command="sleep inf"),
    ]) as pod:  # fmt: skip
        assert pod["a"].exec(["sh", "-c", look]).stdout.split() == ["note", "mine", "1", "1"]
        assert pod["b"].exec(["sh", "-c", look]).stdout.split() == ["note", "1", "1"]
        assert pod["b"].read_text("/dev/shm/note") == "hi\n"


def test_the_same_namespaces() -> None:
    kinds = ("net", "ipc", "uts", "user", "pid", "mnt", "cgroup")
    look = ["sh", "-c", "for n in " + " ".join(kinds) + "; do readlink /proc/1/ns/$n; done"]
    with sandbox.start([Container("a", command="sleep inf"), Container("b", command="sleep inf")]) as pod:
        seen = [container.exec(look, check=True).stdout.split() for container in pod]
    same = {kind for kind, a, b in zip(kinds, *seen, strict=True) if a == b}
    assert same == {"net", "ipc", "uts", "user"}


def test_after_orders_the_start() -> None:
    """Each of them asks whether the one before was ready; the rest starts at once."""
    def step(name: str, *after: str) -> Container:
        check = "".join(f"test -e /v/{other} || exit 9; " for other in after)
        return Container(name, command=["sh", "-c", f"{check}sleep 0.1; touch /v/{name}; echo up; sleep inf"],
                         after=after, ready=Log("up"), mounts=["v:/v"])  # fmt: skip

    containers = [step("d", "b", "c"), step("c", "a"), step("b", "a"), step("a")]
    with sandbox.start(Pod(containers, volumes=["v"])) as pod:
        assert {container.state for container in pod} == {"running"}


def test_one_that_fails_takes_all_down() -> None:
    before = own_shim().call("pod.list")["pods"]
    with pytest.raises(ContainerExited, match=r"`bad`.*exit status 3") as failed:
        sandbox.start([
            Container("good", command="sleep inf", ready=Log("never")),
            Container("bad", command=["sh", "-c", "echo reason >&2; exit 3"], ready=Log("never")),
            Container("late", command="sleep inf", after=["good"]),
        ])  # fmt: skip
    assert "reason" in str(failed.value)
    assert own_shim().call("pod.list")["pods"] == before


def test_volume_size() -> None:
    fill = "head -c 4M /dev/zero > /v/big"
    with sandbox.start(Pod([Container(command="sleep inf", mounts=["v:/v"])], volumes=[Volume("v", size="1M")])) as pod:
        assert "No space left" in pod.exec(["sh", "-c", fill]).stderr


# --- from the host ------------------------------------------------------------------------------------------------


def test_bind_mounts(tmp_path: Path) -> None:
    (tmp_path / "rw").mkdir()
    (tmp_path / "ro").write_text("read me")
    tmp_path.chmod(0o755)
    mounts = [Mount.bind(tmp_path / "rw", "/rw"), f"{tmp_path / 'ro'}:/etc/ro:ro", Mount.tmpfs("/t", size="1M", mode=0o700)]
    with sandbox.start(command="sleep inf", mounts=mounts) as pod:
        assert pod.exec(["sh", "-c", "cat /etc/ro; stat -c %a:%u /t /rw; echo new > /rw/file"], check=True).stdout == (
            "read me700:0\n" + f"{stat.S_IMODE((tmp_path / 'rw').stat().st_mode):o}:0\n"
        )
        assert "Read-only" in pod.exec(["sh", "-c", "echo x > /etc/ro"]).stderr
        assert "No space" in pod.exec(["sh", "-c", "head -c 2M /dev/zero > /t/x"]).stderr
    made = (tmp_path / "rw" / "file").stat()
    assert (made.st_uid, made.st_gid) == (os.getuid(), os.getgid())


def test_bind_mount_makes_its_source_if_asked(tmp_path: Path) -> None:
    with sandbox.start(command="sleep inf", mounts=[Mount.bind(tmp_path / "a/b", "/m", create=True)]) as pod:
        pod.write_text("/m/x", "1")
    assert (tmp_path / "a/b/x").read_text() == "1"


def test_read_only_root() -> None:
    with sandbox.start(command="sleep inf", read_only_root=True, mounts=[Mount.tmpfs("/tmp")]) as pod:
        for path in ("/file", "/usr/file", "/etc/passwd"):
            assert "Read-only" in pod.exec(["sh", "-c", f"echo x > {path}"]).stderr, path
        pod.exec(["touch", "/tmp/file"], check=True)


def test_environment_of_a_container(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# comment\nA=from file\nB=file\n")
    look = "echo $A, $B; pwd; umask; hostname; ulimit -n; getent hosts db; cat /proc/self/oom_score_adj"
    result = sandbox.run(["sh", "-c", look], env_files=[tmp_path / "env"], env={"B": "given"},
                         working_dir="/made/here", umask=0o77, hostname="box", ulimits={"nofile": 99},
                         extra_hosts={"db": "10.1.2.3"}, oom_score_adj=500, check=True)  # fmt: skip
    lines = result.stdout.splitlines()
    assert lines[:5] == ["from file, given", "/made/here", "0077", "box", "99"]
    assert lines[5].split() == ["10.1.2.3", "db"]
    assert lines[6] == "500"


@requires("subuid")
def test_user_and_groups_by_name() -> None:
    found = sandbox.run(["sh", "-c", "id -un; id -gn; id -G; echo $HOME"], user="daemon", groups=["adm", "4321"], check=True)
    assert found.stdout.splitlines() == ["daemon", "daemon", "1 4 4321", "/usr/sbin"]


@requires("subuid")
def test_the_group_of_a_user_is_one_of_its_groups() -> None:
    """Else a program of another group would get rid of it (CVE-2022-2989 of podman)."""
    look = ["grep", "^Groups:", "/proc/self/status"]
    assert sandbox.run(look, user="daemon", check=True).stdout.split()[1:] == ["1"]
    with sandbox.start(command="sleep inf") as pod:
        assert pod.exec(look, user="daemon", check=True).stdout.split()[1:] == ["1"]
        assert pod.exec(look, user="7:8", check=True).stdout.split()[1:] == ["8"]


def test_sysctls_of_the_pod() -> None:
    sysctls = {"net.ipv4.ip_unprivileged_port_start": "7", "kernel.msgmax": "9000"}
    paths = ["/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/kernel/msgmax"]
    assert sandbox.run(["cat", *paths], sysctls=sysctls, check=True).stdout.split() == ["7", "9000"]


def test_hooks_run_in_the_order_of_the_specification(tmp_path: Path) -> None:
    """Those of the runtime see the host's files, the last ones before the command the container's."""
    log = tmp_path / "log"

    def hook(name: str) -> dict[str, object]:
        script = f"read state; echo {name} >> {log}"
        return {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}

    host = {"path": "/bin/true"}
    inside = {"path": "/bin/sh", "args": ["sh", "-c", "touch /tmp/started"], "env": ["PATH=/bin:/usr/bin"]}
    hooks = {name: [hook(name)] for name in ("prestart", "createRuntime", "poststart", "poststop")}
    with sandbox.start(command="sleep inf", hooks={**hooks, "createContainer": [host], "startContainer": [inside]}) as pod:
        assert pod.exists("/tmp/started")
    deadline = time.monotonic() + 10
    while log.read_text().count("\n") < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert log.read_text().split() == ["prestart", "createRuntime", "poststart", "poststop"]


def test_a_hook_that_fails_stops_the_start(tmp_path: Path) -> None:
    hooks = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "exit 7"]}]}
    with pytest.raises(SetupError, match=r"run the createRuntime hook.*status 7"):
        sandbox.start(command="sleep inf", hooks=hooks)
    inside = {"createContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "exit 8"]}]}
    with pytest.raises(SetupError, match=r"run the createContainer hook.*status 8"):
        sandbox.start(command="sleep inf", hooks=inside)
    slow = {"prestart": [{"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}]}
    with pytest.raises(SetupError, match="timed out after 1 s"):
        sandbox.start(command="sleep inf", hooks=slow)
