"""Pause, history and acknowledgement, against moto's DynamoDB in this process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fleets import maker
from moto import mock_aws

from flotilla import audit
from flotilla.aws.session import client
from flotilla.errors import BadOption, Refused
from flotilla.mysql import operate_record, store
from flotilla.rules.mysql_flap import blocked_until
from flotilla.rules.mysql_report import Loss, Report
from flotilla.rules.mysql_state import Past
from flotilla.rules.mysql_topology import Record
from flotilla.settings import Settings

NOW = 1_800_000_000.0
FAILOVER = Past(at=NOW - 600, term=2, old="mysql-1", new="mysql-2")
REPORT = Report(
    "failover", 2, "2026-01-02T03:04:05+00:00", "mysql-3", "mysql-1", "mysql-2", "dead: refuses",
    ("its port is closed",), ("two of two are cut off",), {"drain": 0.1}, Loss(0, "all is there"),
    1.2, "mysql-1 is stopped",
)  # fmt: skip


@pytest.fixture
def settings(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        made = maker(tmp_path)().settings
        for table, key in (("clusters", "cluster"), ("locks", "id")):
            client(made, "dynamodb").create_table(
                TableName=made.name_of(table),
                KeySchema=[{"AttributeName": key, "KeyType": "HASH"}],
                AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"}],
                BillingMode="PAY_PER_REQUEST",
            )
        yield made


@pytest.fixture
def recorded(settings: Settings) -> Settings:
    """A fleet with a primary."""
    with store.lock(settings, "a test") as lock:
        store.records(settings).write(Record(1, "i-1", "u-1"), fence=lock.term)
    return settings


def paused(settings: Settings, reason: str = "disks", minutes: float = 30) -> dict[str, Any]:
    return operate_record.pause(
        settings, reason, minutes, confirmed=lambda _: None, clock=lambda: NOW
    )


def test_a_pause_stands_in_the_record_and_in_the_audit(recorded: Settings) -> None:
    done = paused(recorded)
    state = store.records(recorded).state()
    assert state
    assert state.paused
    assert state.paused.until == done["until"] == NOW + 1800
    assert b"disks" in audit.lines(recorded)[-1]


def test_a_pause_ends_by_itself(recorded: Settings) -> None:
    paused(recorded)
    state = operate_record.demanded(store.records(recorded).state())
    assert operate_record.in_force(state, NOW + 1799)
    assert not operate_record.in_force(state, NOW + 1801)


def test_a_pause_that_was_not_confirmed_changes_nothing(recorded: Settings) -> None:
    def refuse(plan: str) -> None:
        assert "no automatic failover" in plan
        raise Refused("no")

    with pytest.raises(Refused):
        operate_record.pause(recorded, "disks", 30, confirmed=refuse, clock=lambda: NOW)
    assert operate_record.demanded(store.records(recorded).state()).paused is None


@pytest.mark.parametrize(("reason", "minutes"), [("", 30), (" ", 30), ("x", 0), ("x", 10_000)])
def test_a_pause_takes_a_reason_and_an_end(recorded: Settings, reason: str, minutes: float) -> None:
    with pytest.raises(BadOption):
        paused(recorded, reason, minutes)
    assert operate_record.demanded(store.records(recorded).state()).paused is None


def test_without_a_record_there_is_nothing_to_pause(settings: Settings) -> None:
    with pytest.raises(Refused, match="no record"):
        paused(settings)


def refusing(_: str) -> None:
    raise Refused("not confirmed")


def test_a_pause_is_lifted_once(recorded: Settings) -> None:
    paused(recorded)
    told: list[str] = []
    with pytest.raises(Refused):
        operate_record.unpause(recorded, confirmed=refusing, clock=lambda: NOW + 1)
    assert operate_record.demanded(store.records(recorded).state()).paused
    done = operate_record.unpause(recorded, confirmed=told.append, clock=lambda: NOW + 1)
    assert done["changed"]
    assert "watchers act again at once" in told[0]
    again = operate_record.unpause(recorded, confirmed=refusing, clock=lambda: NOW + 2)
    assert not again["changed"]


def test_an_acknowledged_failover_blocks_no_longer(recorded: Settings) -> None:
    records = store.records(recorded)
    records.remember(FAILOVER)
    state = operate_record.demanded(records.state())
    assert blocked_until(state, NOW) == FAILOVER.at + 3600
    with pytest.raises(Refused):
        operate_record.acknowledge(recorded, confirmed=refusing)
    assert blocked_until(operate_record.demanded(records.state()), NOW)
    told: list[str] = []
    assert operate_record.acknowledge(recorded, confirmed=told.append) == [FAILOVER]
    assert f"mysql-1 -> mysql-2 of term {FAILOVER.term}" in told[0]
    assert operate_record.acknowledge(recorded, confirmed=refusing) == []
    assert blocked_until(operate_record.demanded(records.state()), NOW) is None


def test_what_happened_is_told_when_no_member_can_be_asked(recorded: Settings) -> None:
    store.records(recorded).remember(FAILOVER)
    found = operate_record.history(recorded, clock=lambda: NOW)
    assert [one["new"] for one in found["failovers"]] == ["mysql-2"]
    assert found["notes"]
    text = operate_record.told(found, NOW)
    assert "mysql-1 -> mysql-2  (not acknowledged)" in text
    assert "fab mysql.history --acknowledge" in text


def test_the_newest_failovers_are_told_and_how_many_there_are_besides() -> None:
    failovers = [
        {"at": NOW, "term": term, "old": "a", "new": "b", "acknowledged": True}
        for term in range(operate_record.TOLD + 2, 0, -1)
    ]
    found = {"term": 99, "paused": None, "blocked_until": None, "notes": [], "reports": []}
    text = operate_record.told(found | {"failovers": failovers}, NOW)
    assert text.count(" -> ") == operate_record.TOLD
    assert "and 2 older ones: fab mysql.history --json" in text
    assert "older" not in operate_record.told(found | {"failovers": failovers[2:]}, NOW)


def test_a_report_explains_its_failover() -> None:
    found = {
        "term": 2, "paused": None, "blocked_until": None, "notes": [],
        "failovers": [{"at": NOW, "term": 2, "old": "a", "new": "b", "acknowledged": True}],
        "reports": [REPORT.as_dict()],
    }  # fmt: skip
    text = operate_record.told(found, NOW)
    assert "dead: refuses" in text
    assert "1.20 s without writes" in text
    assert "acknowledged writes lost: 0" in text
    assert operate_record.the_report(found, 2) == REPORT
    with pytest.raises(BadOption, match="there are: 2"):
        operate_record.the_report(found, 9)
