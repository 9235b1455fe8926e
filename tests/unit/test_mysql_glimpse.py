"""A watcher's eye on a primary whose commits may not end: what counts, and since when."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from flotilla.agent.watch import listens
from flotilla.hosts.mysql import PortClosedError
from flotilla.hosts.mysql_glimpse import Regard
from flotilla.rules.mysql_verdict import Reach

FULL = "Disk is full writing './binlog.000003'"


class Server:
    """Answers with what a test sets; ``now`` is the watcher's clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.stall: dict[str, Any] = {"seconds": None, "done": "u:1", "why": None}

    def clock(self) -> float:
        return self.now

    def ping(self, **_: Any) -> None:
        pass

    def batch(self, statements: list[str], **_: Any) -> list[list[dict[str, Any]]]:
        return [
            [self.stall if "PROCESSLIST_TIME" in statement else {"alone": 0}]
            for statement in statements
        ]


@pytest.fixture
def seen():
    server = Server()
    return server, Regard(server, server.clock)  # type: ignore[arg-type]


def looked(seen: tuple[Server, Regard], after: float, **stall: Any) -> tuple[str, float]:
    server, eye = seen
    server.now += after
    server.stall |= stall
    look = eye.look(seconds=1.0, waiting=False, stalled=True)
    return look.stalled, look.blocked_seconds


def test_a_full_disk_counts_from_when_it_was_seen_for_as_long_as_nothing_is_executed(seen):
    assert looked(seen, 2.0) == ("", 0.0)
    assert looked(seen, 2.0, seconds=4, why=FULL) == (FULL, 0.0)
    assert looked(seen, 2.0, seconds=6) == (FULL, 2.0)
    # Looks that do not ask in between change nothing.
    seen[1].look(seconds=1.0, waiting=False)
    assert looked(seen, 28.0, seconds=34) == (FULL, 30.0)


def test_a_server_that_commits_is_not_stalled_by_an_old_error_and_a_long_time(seen):
    for number in range(20):
        why, lasts = looked(seen, 2.0, seconds=128, why=FULL, done=f"u:1-{number}")
        assert (why, lasts) == (FULL, 0.0)


def test_a_moment_without_a_wait_begins_anew(seen):
    looked(seen, 2.0, seconds=10, why=FULL)
    assert looked(seen, 8.0, seconds=18) == (FULL, 8.0)
    assert looked(seen, 2.0, seconds=0) == ("", 0.0)
    assert looked(seen, 2.0, seconds=5) == (FULL, 0.0)
    assert looked(seen, 2.0, seconds=7, why=None) == ("", 0.0)


@pytest.mark.parametrize(("is_open", "reach"), [(False, Reach.REFUSES), (True, Reach.SILENT)])
def test_a_port_that_is_closed_means_a_process_that_is_gone_only_if_no_other_is_open(
    is_open: bool, reach: Reach
) -> None:
    class Closed(Server):
        def ping(self, **_: Any) -> None:
            raise PortClosedError("mysql-1: refused")

    server = Closed()
    eye = Regard(server, server.clock, listens=lambda: is_open)  # type: ignore[arg-type]
    assert eye.look(seconds=1.0, waiting=False).reach is reach


def test_a_port_listens_or_does_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert listens("127.0.0.1", port)
    assert not listens("127.0.0.1", port)
