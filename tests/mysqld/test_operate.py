"""What an operator types, on three real servers under load: fail over, patch, look back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from mysqld.checks import is_whole_without, nothing_is_lost, writable, writes_go_on
from mysqld.operators import Hands, operator
from mysqld.trio import Trio
from mysqld.writers import Writers

from flotilla.errors import HostFailed, Refused
from flotilla.mysql import operate_failover, operate_maintain, operate_record, store, takeover
from flotilla.mysql.leasing import leased
from flotilla.mysql.rejoin import Rejoining
from flotilla.mysql.session import Session
from flotilla.rules.mysql_report import Report
from flotilla.settings import Settings
from flotilla.wait import until


@pytest.fixture
def hands(trio: Trio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hands]:
    """Commands find these servers where they would find a fleet."""
    with operator(trio, tmp_path) as (opened, made):

        @contextmanager
        def session(_: Settings, *, fresh: bool) -> Iterator[Session]:
            yield opened

        for module in (operate_failover, operate_maintain, operate_record):
            monkeypatch.setattr(module, "session", session)
        yield made


def yes(_: str) -> None:
    """Go on."""


def fail_over(trio: Trio, to: str | None = None, **options: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {"accept_loss": False, "confirmed": yes, "said": yes, **options}
    return operate_failover.failover(trio.settings, to, **chosen)


@contextmanager
def load(trio: Trio) -> Iterator[Writers]:
    """Clients that write; nothing they were told OK for is missing in the end."""
    with Writers(trio) as clients:
        until(lambda: len(clients.acked) > 40, seconds=20)
        yield clients
        writes_go_on(clients)
        nothing_is_lost(trio, clients)


def test_a_dead_primary_is_replaced_by_command_and_the_report_says_why(
    trio: Trio, hands: Hands
) -> None:
    with load(trio):
        trio.primary.kill()
        done = fail_over(trio)
    assert done["term"] == 2
    report = Report.from_dict(done["report"])
    assert (report.old, report.new, report.loss.count) == ("mysql-1", trio.primary.name, 0)
    assert any("mysql-1" in sentence for sentence in report.evidence)
    assert report.proofs
    assert report.write_gap_seconds
    assert 0 < report.write_gap_seconds < 20
    is_whole_without(trio, "mysql-1")
    found = operate_record.history(trio.settings)
    assert [one["term"] for one in found["failovers"]] == [2]
    assert found["blocked_until"] is None, "whoever did it has seen it"
    assert operate_record.the_report(found, 2) == report
    assert "acknowledged writes lost: 0" in operate_record.told(found, time.time())


def test_a_failover_whose_operator_was_killed_is_ended_by_the_same_command_and_only_once(
    trio: Trio, hands: Hands
) -> None:
    trio.primary.kill()
    done = fail_over(trio)
    journal = trio.settings.scratch / "mysql" / "failovers" / "term-000002.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    ended = next(n for n, line in enumerate(lines) if '"event": "end"' in line)
    journal.write_text("".join(lines[:ended]))
    new = trio.primary.name
    trio.rows(new, "DELETE FROM ops.report")
    again = fail_over(trio)
    assert (again["term"], again["primary"]) == (2, new)
    assert (again["report"]["old"], again["report"]["new"]) == ("mysql-1", new)
    assert again["report"]["evidence"] == done["report"]["evidence"]
    with pytest.raises(Refused, match=f"{new} is alive"):
        fail_over(trio)
    is_whole_without(trio, "mysql-1")


def test_a_living_primary_is_not_replaced(trio: Trio, hands: Hands) -> None:
    with load(trio), pytest.raises(Refused, match="mysql-1 is alive") as refused:
        fail_over(trio)
    assert refused.value.next == "fab mysql.switchover"
    assert trio.record.term == 1


def test_an_operator_whom_the_bastion_fails_replaces_nobody(trio: Trio, hands: Hands) -> None:
    """SSH does not reach the primary's host; its replicas get everything."""
    hands.unreachable.add("mysql-1")
    with load(trio), pytest.raises(Refused):
        fail_over(trio)
    assert trio.record.term == 1


def test_a_primary_that_was_restarted_gets_its_role_back_by_the_same_command(
    trio: Trio, hands: Hands
) -> None:
    trio.primary.stop()
    trio.start(["mysql-1"])
    until(lambda: not fail_over_pending(trio), seconds=30)
    done = fail_over(trio)
    assert (done["term"], done["primary"]) == (1, "mysql-1")
    assert done["report"] is None
    is_whole_without(trio)


def fail_over_pending(trio: Trio) -> bool:
    """Whether a replica's stream has not found its restarted source again."""
    state = "SELECT SERVICE_STATE AS io FROM performance_schema.replication_connection_status"
    return any(trio.rows(one.name, state) != [{"io": "ON"}] for one in trio.replicas)


def test_what_is_given_up_is_said_before_it_is_done(trio: Trio, hands: Hands) -> None:
    trio["mysql-3"].kill()
    trio.primary.kill()
    plans: list[str] = []

    def refuse(plan: str) -> None:
        plans.append(plan)
        raise Refused("no")

    with pytest.raises(Refused, match="can be cut off"):
        fail_over(trio, confirmed=refuse)
    assert not plans
    with pytest.raises(Refused, match="no"):
        fail_over(trio, accept_loss=True, confirmed=refuse)
    assert "mysql-3 may hold acknowledged writes" in plans[0]
    state = store.records(trio.settings).state()
    assert state
    assert state.record.term == 1


def test_every_host_is_restarted_the_primary_last_and_clients_lose_nothing(
    trio: Trio, hands: Hands
) -> None:
    began = {name: started(trio, name) for name in trio.servers}
    with load(trio):
        done = operate_maintain.patch(trio.settings, restart=True, confirmed=yes, said=yes)
    stops = [line.partition(":")[0] for line in hands.did if line.endswith("stop")]
    assert stops == ["mysql-2", "mysql-3", "mysql-1"]
    assert (done["moved"]["old"], done["moved"]["term"]) == ("mysql-1", 2)
    assert all(started(trio, name) > began[name] for name in trio.servers)
    is_whole_without(trio)


def test_nothing_to_patch_changes_nothing(trio: Trio, hands: Hands) -> None:
    done = operate_maintain.patch(trio.settings, restart=False, confirmed=yes, said=yes)
    assert not done["changed"]
    assert trio.record.term == 1


def test_another_series_is_refused_before_anything_is_touched(trio: Trio, hands: Hands) -> None:
    hands.said["mysql-2"] = "Inst mysql-server-core [9.7.4-1] (10.1.0-1 Debian:unstable [amd64])"
    with pytest.raises(Refused, match="change the series"):
        operate_maintain.patch(trio.settings, restart=False, confirmed=yes, said=yes)
    assert not any(line.endswith("stop") for line in hands.did)


def test_a_replica_that_does_not_acknowledge_keeps_the_others_from_being_taken_away(
    trio: Trio, hands: Hands
) -> None:
    trio["mysql-3"].kill()
    with pytest.raises(Refused) as refused:
        operate_maintain.patch(trio.settings, restart=True, confirmed=yes, said=yes)
    assert "mysql-3" in refused.value.what
    assert not any(line.endswith("stop") for line in hands.did)


def started(trio: Trio, name: str) -> float:
    rows = trio.rows(name, "SHOW GLOBAL STATUS LIKE 'Uptime'")
    return time.time() - float(rows[0]["Value"])


def test_with_an_accepted_loss_the_one_that_is_left_takes_over_and_serves_once_another_is_back(
    trio: Trio, hands: Hands
) -> None:
    """Nobody else was written to, so the host that comes back shows that nothing was lost."""
    with Writers(trio) as clients:
        until(lambda: len(clients.acked) > 40, seconds=20)
        clients.stop()
        trio["mysql-3"].kill()
        trio.primary.kill()
        with pytest.raises(HostFailed, match="term 2 belongs to mysql-2") as waits:
            fail_over(trio, accept_loss=True)
        assert waits.value.next.startswith("fab mysql.rejoin")
        trio.start(["mysql-3"])
        rejoin(trio, "mysql-3")
        report = Report.from_dict(fail_over(trio)["report"])
        assert (report.term, report.old, report.new) == (2, "mysql-1", "mysql-2")
        assert report.loss.count is None
        trio.start(["mysql-1"])
        rejoin(trio, "mysql-1")
        is_whole_without(trio)
        nothing_is_lost(trio, clients)
    found = operate_record.history(trio.settings)
    assert operate_record.the_report(found, 2).loss.count == 0


def rejoin(trio: Trio, name: str) -> None:
    with trio.cluster() as cluster, leased(trio.settings, "a test") as lock:
        Rejoining(trio.settings, cluster, name).apply(lock, lambda _: nullcontext())


def test_one_that_is_kept_out_takes_over_where_nobody_else_is_left_and_only_in_so_many_words(
    trio: Trio, hands: Hands
) -> None:
    """Both replicas were quarantined when the primary died for good."""
    trio.rows("mysql-1", "CREATE TABLE guestbook.orders (id INT PRIMARY KEY)")
    for name in ("mysql-2", "mysql-3"):
        until(lambda name=name: has_orders(trio, name), seconds=10)
        with closing(trio[name].session()) as server:
            takeover.revoke(server)
            server.query("STOP REPLICA")
            server.query("SET GLOBAL super_read_only = OFF")
            server.query("INSERT INTO guestbook.orders VALUES (7)" if name == "mysql-3" else "DO 0")
            server.query("SET GLOBAL super_read_only = ON")
    out = {trio[name].instance_id: f"{name} is odd" for name in ("mysql-2", "mysql-3")}
    with store.lock(trio.settings, "a test") as lock:
        trio.records.bar(out, term=1, fence=lock.term)
    trio.primary.kill()
    trio["mysql-2"].kill()
    with pytest.raises(Refused, match="all are kept out") as refused:
        fail_over(trio, accept_loss=True)
    assert refused.value.next.endswith("fab mysql.failover --to mysql-3 --accept-loss")
    with pytest.raises(Refused):
        fail_over(trio, to="mysql-3")
    plans: list[str] = []
    with pytest.raises(HostFailed, match="term 2 belongs to mysql-3"):
        fail_over(trio, to="mysql-3", accept_loss=True, confirmed=plans.append)
    assert "mysql-3 is kept out (mysql-3 is odd)" in plans[0]
    assert writable(trio) == []
    trio.start(["mysql-2"])
    rejoin(trio, "mysql-2")
    fail_over(trio)
    assert trio.record.instance_id == trio["mysql-3"].instance_id
    trio.rows("mysql-3", "INSERT INTO guestbook.orders VALUES (8)")
    orders = "SELECT id FROM guestbook.orders ORDER BY id"
    until(lambda: trio.rows("mysql-2", orders) == [{"id": 7}, {"id": 8}], seconds=10)


def has_orders(trio: Trio, name: str) -> bool:
    return bool(trio.rows(name, "SHOW TABLES IN guestbook LIKE 'orders'"))
