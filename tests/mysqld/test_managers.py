"""Managers of a failover that die, sleep, meet, or lose the API: one term, one primary, no loss."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer
from mysqld.checks import is_whole_without, nothing_is_lost, settled, writable, writes_go_on
from mysqld.managers import fail_over, let_lease_expire, resume, start
from mysqld.trio import Trio
from mysqld.writers import Writers

from flotilla.errors import HostFailed, Refused
from flotilla.wait import until

# Of the journal of a failover from a killed primary to one of two replicas.
LINES = 22


def test_a_failover_has_as_many_lines_as_are_killed_after(trio: Trio) -> None:
    settled(trio)
    trio.primary.kill()
    manager = start(trio)
    said = manager.communicate(timeout=60)[1]
    assert manager.returncode == 0, said
    journal = (trio.folder / "journal" / "term-000002.jsonl").read_text()
    assert len(journal.splitlines()) == LINES, journal


# The first, around the record, and the last; the others are much like them.
SOONEST = {1, 8, 13, LINES}


def _lines(lines: Iterable[int], soonest: Container[int]) -> list[Any]:
    return [
        pytest.param(line, marks=() if line in soonest else (pytest.mark.thorough,))
        for line in lines
    ]


@pytest.mark.parametrize("line", _lines(range(1, LINES + 1), SOONEST))
def test_a_manager_killed_after_any_line_of_its_journal_is_resumed_under_the_same_term(
    trio: Trio, line: int
) -> None:
    old = trio.primary
    with Writers(trio) as clients:
        writes_go_on(clients)
        old.kill()
        manager = start(trio, at_line=line)
        said = manager.communicate(timeout=60)[1]
        assert manager.returncode == -signal.SIGKILL, said
        let_lease_expire(trio)
        done = resume(trio, old, 2)
        assert (done.term, trio.record.term) == (2, 2)
        writes_go_on(clients)
        nothing_is_lost(trio, clients)
    is_whole_without(trio, old.name)


@pytest.mark.parametrize("line", _lines([2, 7, 9, 10, 11, 12, 16], {9, 12}))
def test_a_manager_that_slept_while_another_one_took_over_changes_nothing_any_more(
    trio: Trio, line: int
) -> None:
    settled(trio)
    trio.primary.kill()
    sleeper = start(trio, at_line=line, with_signal=int(signal.SIGSTOP))
    until(lambda: _is_stopped(sleeper.pid), seconds=30)
    let_lease_expire(trio)
    old = trio.primary
    resume(trio, old, 2)
    after = _everything(trio)
    time.sleep(2.5)  # it looks at its lease when it has not for two seconds
    sleeper.send_signal(signal.SIGCONT)
    said = sleeper.communicate(timeout=60)[1]
    assert sleeper.returncode != 0, said
    assert _everything(trio) == after
    is_whole_without(trio, "mysql-1")


def test_of_two_managers_at_once_one_wins_and_the_other_changes_nothing(trio: Trio) -> None:
    settled(trio)
    trio.primary.kill()
    managers = [start(trio), start(trio)]
    said = [manager.communicate(timeout=60)[1] for manager in managers]
    assert sorted(manager.returncode for manager in managers) == [0, 3], said
    assert trio.record.term == 2
    is_whole_without(trio, "mysql-1")


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def _everything(trio: Trio) -> dict[str, object]:
    state = trio.records.state()
    assert state is not None
    found: dict[str, object] = {"record": state.record, "barred": dict(state.barred)}
    for name, server in trio.servers.items():
        if server.is_running:
            found[name] = trio.rows(
                name,
                "SELECT @@GLOBAL.read_only, @@GLOBAL.super_read_only, @@GLOBAL.offline_mode,"
                " @@GLOBAL.rpl_semi_sync_source_enabled, @@GLOBAL.rpl_semi_sync_replica_enabled,"
                " @@GLOBAL.gtid_executed, (SELECT GROUP_CONCAT(CONCAT(HOST, PORT)) FROM"
                " performance_schema.replication_connection_configuration) AS source",
            )
    return found


def test_the_new_primary_dying_before_it_is_opened_loses_nothing(trio: Trio) -> None:
    with Writers(trio) as clients:
        until(lambda: len(clients.acked) > 20, seconds=20)
        old = trio.primary
        old.kill()
        manager = start(trio, at_line=_line_of(trio, "record"))
        assert manager.wait(60) == -signal.SIGKILL
        let_lease_expire(trio)
        new = trio.primary
        assert new is not old
        new.kill()
        with pytest.raises((Refused, HostFailed)):
            fail_over(trio)
        assert writable(trio) == []
        new.start()
        new.ready()
        resume(trio, old, 2)
        writes_go_on(clients)
        nothing_is_lost(trio, clients)


def _line_of(trio: Trio, act: str) -> int:
    """The line after which a step of a kill's failover is done."""
    acts = [
        "begin",
        *(a for a in ("revoke", "fence", "positions", "drain", "record") for _ in "id"),
    ]
    return len(acts) - acts[::-1].index(act)


# --- the API goes away


def away_for(api: ThreadedMotoServer, seconds: float) -> Callable[[Mapping[str, Any]], None]:
    """Stop the API just before the record is written, and start it again."""
    host, port = api.get_host_and_port()

    def back() -> None:
        again = ThreadedMotoServer(host, port=port, verbose=False)
        again.start()
        api._server = again._server  # the fixture stops what runs last

    def on_line(line: Mapping[str, Any]) -> None:
        if (line["event"], line.get("act")) == ("intent", "record"):
            api.stop()
            assert api._server is not None
            api._server.server_close()  # until then the kernel takes connections for it
            threading.Timer(seconds, back).start()

    return on_line


def test_an_api_that_is_away_for_a_moment_delays_the_record_only(
    trio: Trio, api_server: ThreadedMotoServer
) -> None:
    settled(trio)
    trio.primary.kill()
    done = fail_over(trio, on_line=away_for(api_server, 2.0))
    assert (done.term, trio.record.term) == (2, 2)
    is_whole_without(trio, "mysql-1")


def test_without_the_api_nobody_is_opened_and_a_later_run_goes_by_the_record(
    trio: Trio, api_server: ThreadedMotoServer
) -> None:
    settled(trio)
    old = trio.primary
    old.kill()
    with pytest.raises(HostFailed, match="the record may or may not name mysql-2"):
        fail_over(trio, on_line=away_for(api_server, 20.0))
    assert writable(trio) == []
    until(lambda: api_answers(api_server), seconds=30)
    let_lease_expire(trio)
    resume(trio, old, 2)
    is_whole_without(trio, "mysql-1")


def api_answers(api: ThreadedMotoServer) -> bool:
    try:
        socket.create_connection(api.get_host_and_port(), 1).close()
    except OSError:
        return False
    return True
