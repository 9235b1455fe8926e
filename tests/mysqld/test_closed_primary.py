"""A primary that was closed for a failover which came to nothing, on three real servers."""

from __future__ import annotations

import time
from contextlib import closing

from mysqld.checks import writable
from mysqld.trio import Trio

from flotilla.hosts import mysql_glimpse
from flotilla.mysql import takeover
from flotilla.wait import until


def test_it_is_opened_again_and_its_replicas_come_back(trio: Trio) -> None:
    """Offline, it turned away the very replicas that it waited for (seen in the lab)."""
    with closing(trio.primary.session()) as server:
        for statement in takeover.FENCE:
            server.query(statement)
    for replica in trio.replicas:
        trio.rows(replica.name, "STOP REPLICA IO_THREAD")
        trio.rows(replica.name, "START REPLICA IO_THREAD")
    assert writable(trio) == []
    trio.ensure()
    assert writable(trio) == [trio.primary.name]
    trio.rows(trio.primary.name, "CREATE TABLE guestbook.after (id INT PRIMARY KEY)")


def test_an_idle_server_shows_no_commit_that_waits(trio: Trio) -> None:
    """Its own threads may show the state of their last commit for ever."""
    trio.rows(trio.primary.name, "CREATE TABLE guestbook.t (id INT PRIMARY KEY)")
    for number in range(50):
        trio.rows(trio.primary.name, f"INSERT INTO guestbook.t VALUES ({number})")
    time.sleep(2)  # whoever shows a time of seconds has to have had them

    def idle() -> bool:
        return trio.rows(trio.primary.name, mysql_glimpse.STALLED)[0]["seconds"] is None

    until(idle, seconds=10)
