"""The runtime socket edge against a real HAProxy on loopback; skipped where it is not installed."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ports import free_port

from flotilla.errors import HostFailed, Refused, Unreachable
from flotilla.hosts.haproxy import Runtime, local, parse_stat
from flotilla.rules import rotation

CONFIG = """
global
    stats socket {folder}/admin.sock mode 600 level admin
    stats socket {folder}/operator.sock mode 600 level operator
    stats timeout 5s
defaults
    mode http
    timeout connect 1s
    timeout client 5s
    timeout server 5s
frontend edge
    bind 127.0.0.1:{port}
    default_backend app
backend app
    option httpchk GET /healthz
    default-server check inter 100ms fall 2 rise 2
    server app-1 127.0.0.1:{first} maxconn 40
    server app-2 127.0.0.1:{second}
"""


class Backend(BaseHTTPRequestHandler):
    """Answers 200, slowly where the path says so."""

    def do_GET(self) -> None:
        if self.path == "/slow":
            time.sleep(0.5)
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"ok\n")

    def log_message(self, *args: object) -> None:
        pass


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was never met"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A folder with the sockets, and the port clients use."""
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed here")
    folder = tmp_path_factory.mktemp("haproxy")
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Backend) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    port = free_port()
    first, second = (server.server_port for server in servers)
    (folder / "haproxy.cfg").write_text(
        CONFIG.format(folder=folder, port=port, first=first, second=second)
    )
    process = subprocess.Popen(["haproxy", "-db", "-f", str(folder / "haproxy.cfg")])
    until((folder / "admin.sock").exists)
    yield folder, port
    process.terminate()
    process.wait(10)
    for server in servers:
        server.shutdown()


@pytest.fixture
def lb(edge: tuple[Path, int]) -> Iterator[Runtime]:
    runtime = Runtime("lb-1", local(edge[0] / "admin.sock"))
    until(lambda: all(s.status == "UP" for s in runtime.servers().values()))
    yield runtime
    runtime.set_state("app-1", "state ready", "health up")


def test_a_server_is_drained_gated_on_fresh_checks_and_returned(lb: Runtime) -> None:
    views = lambda: {"lb-1": lb.servers()["app-1"]}  # noqa: E731
    lb.set_state("app-1", "state drain")
    assert rotation.why_not_out(views(), rotation.DRAINED) is None
    lb.set_state("app-1", "state maint")
    assert rotation.why_not_out(views(), rotation.MAINTENANCE) is None
    lb.set_state("app-1", "state drain", "health down")
    assert rotation.why_not_fit(views()) is not None, "the old check result must not count"
    until(lambda: rotation.why_not_fit(views()) is None)
    lb.set_state("app-1", "state ready")
    assert rotation.why_not_up(views()) is None


def test_a_server_that_does_not_exist_is_an_error_and_not_a_success(lb: Runtime) -> None:
    with pytest.raises(HostFailed, match="No such server"):
        lb.set_state("app-9", "state drain")


def test_a_backend_that_does_not_exist_is_an_error(lb: Runtime) -> None:
    with pytest.raises(HostFailed):
        lb.servers("web")
    with pytest.raises(HostFailed):
        lb.states("web")


def test_one_refused_command_in_a_batch_is_noticed(lb: Runtime) -> None:
    with pytest.raises(HostFailed, match="No such server"):
        lb.command(
            "set server app/app-1 state ready",
            "set server app/app-9 state ready",
            "set server app/app-2 state ready",
        )


def test_a_socket_without_admin_rights_is_refused_before_anything_is_changed(
    lb: Runtime, edge: tuple[Path, int]
) -> None:
    lb.demand_admin()
    operator = Runtime("lb-1", local(edge[0] / "operator.sock"))
    with pytest.raises(Refused, match="operator"):
        operator.demand_admin()
    with pytest.raises(HostFailed, match="Permission denied"):
        operator.set_state("app-1", "state drain")
    assert lb.servers()["app-1"].status == "UP"


def test_a_socket_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="lb-7"):
        Runtime("lb-7", local(tmp_path / "none.sock")).servers()


def test_counters_grow_by_what_clients_asked(lb: Runtime, edge: tuple[Path, int]) -> None:
    before = lb.counters()
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", edge[1])) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert b"200" in client.recv(4096)
    until(lambda: lb.counters().requests - before.requests == 5)
    assert lb.counters().since(before).failed == 0


def test_a_request_in_flight_is_seen(lb: Runtime, edge: tuple[Path, int]) -> None:
    lb.set_state("app-2", "state maint")
    try:
        with socket.create_connection(("127.0.0.1", edge[1])) as client:
            client.sendall(b"GET /slow HTTP/1.0\r\n\r\n")
            until(lambda: lb.servers()["app-1"].sessions == 1)
            assert rotation.why_not_idle({"lb-1": lb.servers()["app-1"]}) is not None
            assert b"200" in client.recv(4096)
        until(lambda: rotation.why_not_idle({"lb-1": lb.servers()["app-1"]}) is None)
    finally:
        lb.set_state("app-2", "state ready")


def test_the_load_is_what_clients_have_in_flight_and_the_most_they_had(
    lb: Runtime, edge: tuple[Path, int]
) -> None:
    clients = [socket.create_connection(("127.0.0.1", edge[1])) for _ in range(4)]
    for client in clients:
        client.sendall(b"GET /slow HTTP/1.0\r\n\r\n")
    until(lambda: lb.load().sessions == 4)
    for client in clients:
        assert b"200" in client.recv(4096)
        client.close()
    until(lambda: lb.load().sessions == 0)
    load = lb.load()
    assert load.most_sessions >= 4
    assert load.most_rate >= 4
    assert load.limits == {"app-1": 40, "app-2": 0}


def test_nothing_is_changed_once_the_guard_says_no(lb: Runtime) -> None:
    def lost() -> None:
        raise Refused("the lock was lost")

    guarded = lb.guarded(lost)
    for change in (
        lambda: guarded.set_state("app-1", "state maint"),
        lambda: guarded.set_states({"app-1": ["state maint"]}),
        lambda: guarded.cut_sessions("app-1"),
        lambda: guarded.admit("app-1"),
        lambda: guarded.delete("app-1"),
        lambda: guarded.add({"app-3": "127.0.0.1:1 check"}),
    ):
        with pytest.raises(Refused, match="the lock was lost"):
            change()
    assert guarded.servers()["app-1"].status == "UP"
    assert set(guarded.servers()) == {"app-1", "app-2"}


def test_admin_states_tell_who_was_forced_out(lb: Runtime) -> None:
    lb.set_state("app-1", "state maint")
    assert lb.states()["app-1"] & 0x01
    assert not lb.states()["app-2"] & 0x09


def test_a_thousand_commands_are_given_at_once(lb: Runtime) -> None:
    lb.command(*["set server app/app-1 state maint"] * 999, "set server app/app-1 state ready")
    assert lb.states()["app-1"] == 0, "the last one given is the last one done"


def test_the_backend_without_a_cookie_is_not_sticky_and_info_names_the_version(lb: Runtime) -> None:
    assert not lb.is_sticky()
    assert lb.info()["Version"]


def test_a_comma_inside_quotes_does_not_shift_the_columns() -> None:
    text = '# pxname,svname,status,last_chk,weight,\napp,app-1,UP,"HTTP status, 200",100,\n\n'
    assert parse_stat(text)[0]["weight"] == "100"


@pytest.mark.parametrize("text", ["", "Permission denied\n", "# pxname,svname,status,\napp,app-1"])
def test_an_answer_that_is_not_the_table_or_is_cut_short_is_an_error(text: str) -> None:
    with pytest.raises(HostFailed):
        parse_stat(text)
