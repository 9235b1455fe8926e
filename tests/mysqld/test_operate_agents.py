"""An operator beside running watchers: what they report, and a rebuild that they leave alone."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from mysqld.agents import Agents
from mysqld.operators import operator
from mysqld.test_agents import agents as agents  # noqa: PLC0414  a fixture
from mysqld.test_agents import nothing_is_lost, tried, waiting, why_out
from mysqld.test_rebuild import bucket as bucket  # noqa: PLC0414  a fixture
from mysqld.trio import Trio
from mysqld.writers import TABLE, Writers, held

from flotilla.mysql import operate_maintain, reports
from flotilla.mysql.operate_rebuild import rebuilding
from flotilla.rules.mysql_report import Report, count
from flotilla.wait import until

REPLICAS = ("mysql-2", "mysql-3")


def report(trio: Trio) -> Report | None:
    """The newest report, once the watcher has written it: after it saw to the old primary."""
    session = trio.primary.session()
    try:
        return next(iter(reports.read(session)), None)
    finally:
        session.close()


def surplus(trio: Trio) -> Report | None:
    """The same, once it says what only the old primary has."""
    found = report(trio)
    return found if found and found.surplus else None


def test_from_a_lost_primary_to_its_rebuilt_host_everything_is_in_the_report(
    trio: Trio, agents: Agents, bucket: str, tmp_path: Path
) -> None:
    with Writers(trio) as clients:
        until(lambda: len(clients.acked) > 50, seconds=20)
        clients.stop()
    for name in REPLICAS:
        agents[name].freeze()
        trio.rows(name, "STOP REPLICA IO_THREAD")
    database = trio.settings.mysql.database
    row = f"INSERT INTO {database}.{TABLE} VALUES (-1, @@server_uuid)"
    threading.Thread(target=tried, args=(trio, "mysql-1", row), daemon=True).start()
    until(lambda: waiting(trio, "mysql-1"), seconds=20)
    trio["mysql-1"].kill()
    for name in REPLICAS:
        agents[name].thaw()
    new = agents.await_primary("mysql-1")
    nothing_is_lost(trio, clients)
    first = until(lambda: report(trio), seconds=60)
    assert (first.term, first.old, first.new, first.loss.count) == (2, "mysql-1", new, 0)
    assert first.evidence
    assert first.proofs

    trio["mysql-1"].start()
    trio["mysql-1"].ready()
    until(lambda: "only it holds" in why_out(trio, "mysql-1"), seconds=60)
    kept_out = until(lambda: surplus(trio), seconds=30)
    assert kept_out.surplus
    assert (count(kept_out.surplus.gtids), kept_out.surplus.saved_to) == (1, "")
    assert "fab mysql.rebuild mysql-1" in kept_out.fate

    with operator(trio, tmp_path) as (opened, _):
        done = rebuilding(opened, "mysql-1").apply(lambda _: nullcontext())
    assert done.surplus
    assert done.surplus.rows == {f"{database}.{TABLE}": {"insert": 1}}
    assert agents.await_whole(new, seconds=60) == new
    assert -1 not in held(trio, "mysql-1")
    last = report(trio)
    assert last
    assert last.surplus == done.surplus
    assert f"s3://{bucket}/" in done.surplus.saved_to


def test_every_host_is_restarted_while_watchers_watch_and_nobody_fails_over(
    trio: Trio, agents: Agents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with operator(trio, tmp_path) as (opened, hands):
        monkeypatch.setattr(operate_maintain, "session", lambda *_, **__: nullcontext(opened))
        with Writers(trio) as clients:
            until(lambda: len(clients.acked) > 50, seconds=20)
            done = operate_maintain.patch(
                trio.settings, restart=True, confirmed=lambda _: None, said=lambda _: None
            )
            moment = time.monotonic()
            until(lambda: len(clients.since(moment)) > 50, seconds=20)
            nothing_is_lost(trio, clients)
    stops = [line.partition(":")[0] for line in hands.did if line.endswith("stop")]
    assert stops == ["mysql-2", "mysql-3", "mysql-1"]
    assert trio.record.term == done["moved"]["term"] == 2
    state = trio.records.state()
    assert state
    assert not state.past, "the only change of primary was the planned one"
    assert agents.await_whole(done["moved"]["new"], seconds=60) == done["moved"]["new"]
