"""Sockets asked through one open session: the helper is the real one, run here instead of there."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from here import Here

from flotilla.errors import HostFailed, Unreachable
from flotilla.hosts.haproxy import Runtime, parse_old_workers
from flotilla.hosts.haproxy_session import Session


@pytest.fixture
def here() -> Iterator[Here]:
    made = Here()
    yield made
    made.close()


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """A socket that answers each connection with what it was asked, in capitals."""
    name = str(tmp_path / "admin.sock")
    server = socket.socket(socket.AF_UNIX)
    server.bind(name)
    server.listen(16)

    def answer(connection: socket.socket) -> None:
        asked = b"".join(iter(lambda: connection.recv(65536), b""))
        if asked == b"say nothing\n":
            time.sleep(5)
        connection.sendall(asked.upper() * (20_000 if asked == b"much\n" else 1))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection, contextlib.suppress(BrokenPipeError):
                answer(connection)

    threading.Thread(target=serve, daemon=True).start()
    yield name
    server.close()


def test_many_threads_share_one_session_and_get_their_own_answers(here: Here, path: str) -> None:
    session = Session(here, "lb-1", path=path)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: session.ask(f"show {n}\n"), range(100)))
    assert answers == [f"SHOW {n}\n" for n in range(100)]
    assert len(here.processes) == 1


def test_an_answer_of_many_packets_is_whole(here: Here, path: str) -> None:
    assert Session(here, "lb-1", path=path).ask("much\n") == "MUCH\n" * 20_000


def test_a_session_that_died_is_opened_again(here: Here, path: str) -> None:
    session = Session(here, "lb-1", path=path)
    assert session.ask("a\n") == "A\n"
    here.end()
    assert session.ask("b\n") == "B\n"


def test_a_socket_that_is_away_is_unreachable_and_asked_again_later(
    here: Here, tmp_path: Path
) -> None:
    session = Session(here, "lb-1", path=str(tmp_path / "none.sock"))
    runtime = Runtime("lb-1", session.ask)
    for _ in range(2):
        with pytest.raises(Unreachable, match="lb-1: HAProxy's runtime socket does not answer"):
            runtime.info()
    assert len(here.processes) == 1, "the session itself is sound"


def test_a_haproxy_that_hangs_is_given_up_in_time(here: Here, path: str) -> None:
    session = Session(here, "lb-1", path=path, seconds=0.3)
    with pytest.raises(OSError, match="timed out"):
        session.ask("say nothing\n")
    # The server of this test serves one at a time: it answers only when it has slept.
    patient = Session(here, "lb-1", path=path, seconds=30)
    assert patient.ask("x\n") == "X\n"


def test_a_host_that_hangs_is_given_up_in_time(here: Here, path: str) -> None:
    session = Session(here, "lb-1", path=path, seconds=0.1)
    session.ask("a\n")
    here.processes[0].send_signal(19)
    with pytest.raises(Unreachable, match="lb-1: no answer in"):
        session.ask("b\n")
    assert session.ask("c\n") == "C\n", "through another session"


PROCESSES = """\
#<PID>          <type>          <reloads>       <uptime>        <version>
700             master          2               0d00h10m        3.0.11
# workers
812             worker          0               0d00h01m        3.0.11
# old workers
790             worker          1               0d00h05m        3.0.11
731             worker          2               0d00h09m        3.0.11
# programs

"""


def test_processes_of_before_a_reload_are_counted() -> None:
    assert parse_old_workers(PROCESSES) == 2
    assert parse_old_workers(PROCESSES.replace("790", "#").replace("731", "#")) == 0
    with pytest.raises(HostFailed, match="show proc"):
        parse_old_workers("Unknown command\n")
