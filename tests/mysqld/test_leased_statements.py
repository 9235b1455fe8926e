"""Statements under a lease, on a real server: they take effect before it ends, or never."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from mysqld.trio import Trio

from flotilla.errors import Unreachable
from flotilla.hosts.mysql import LateError, Server
from flotilla.mysql.failover_parts import under
from flotilla.wait import until

CHANGE = "SET GLOBAL max_connections = 177"
LOOK = "SELECT @@GLOBAL.max_connections AS found"


class Lease:
    """A lease that ends at a moment."""

    term = 1

    def __init__(self, ends: float) -> None:
        self.ends = ends
        self.is_kept = False

    def check(self) -> None:
        """Whoever asks sleeps afterwards."""

    def until(self) -> float:
        return self.ends

    def let_expire(self) -> None:
        self.is_kept = True


def session(trio: Trio) -> Server:
    server = trio["mysql-2"].session()
    server.query("SET GLOBAL max_connections = 151")
    return server


def test_a_statement_within_the_lease_is_done_and_its_answer_is_its_own(trio: Trio) -> None:
    server, lease = session(trio), Lease(time.time() + 20)
    with under(lease, [server]):
        assert server.batch([CHANGE, LOOK])[1] == [{"found": 177}]
    assert not lease.is_kept


def test_a_statement_after_the_lease_is_refused_by_the_server(trio: Trio) -> None:
    server = session(trio)
    before = server.query(LOOK)
    with under(Lease(time.time() - 0.1), [server]), pytest.raises(LateError, match="came after"):
        server.query(CHANGE)
    assert server.query(LOOK) == before != [{"found": 177}]


def test_a_statement_that_waited_in_a_frozen_server_comes_too_late(trio: Trio) -> None:
    server, lease = session(trio), Lease(time.time() + 1.0)
    trio["mysql-2"].freeze()
    with under(lease, [server]), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.query, CHANGE, seconds=20.0)
        until(lambda: time.time() > lease.ends + 0.2, seconds=5)
        trio["mysql-2"].thaw()
        with pytest.raises(LateError, match="came after"):
            answer.result()
    assert server.query(LOOK) != [{"found": 177}]


def test_a_statement_that_nobody_waits_for_any_more_is_not_done_after_the_lease(
    trio: Trio,
) -> None:
    server, lease = session(trio), Lease(time.time() + 1.0)
    trio["mysql-2"].freeze()
    with under(lease, [server]), pytest.raises(Unreachable):
        server.query(CHANGE, seconds=0.3)
    assert lease.is_kept, "nobody may have the lease before the statement is void"
    until(lambda: time.time() > lease.ends + 0.2, seconds=5)
    trio["mysql-2"].thaw()
    other = trio["mysql-2"].session()
    until(lambda: _sessions(other) == 1, seconds=5)
    assert other.query(LOOK) != [{"found": 177}]


def test_without_a_lease_it_is_done_when_the_server_goes_on(trio: Trio) -> None:
    """What the others guard against: the client gave up long ago."""
    server = session(trio)
    trio["mysql-2"].freeze()
    with pytest.raises(Unreachable):
        server.query(CHANGE, seconds=0.3)
    trio["mysql-2"].thaw()
    other = trio["mysql-2"].session()
    until(lambda: other.query(LOOK) == [{"found": 177}], seconds=5)


def _sessions(server: Server) -> int:
    rows = server.query(
        "SELECT COUNT(*) AS found FROM performance_schema.processlist WHERE USER = CURRENT_USER()"
        " OR USER = SUBSTRING_INDEX(CURRENT_USER(), '@', 1)"
    )
    return int(rows[0]["found"])
