"""The record of who is primary, against DynamoDB's own conditions (moto's, in this process)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fleets import maker
from moto import mock_aws

from flotilla.aws import dynamo, lease
from flotilla.aws.lease import Held
from flotilla.aws.session import client
from flotilla.errors import Refused
from flotilla.mysql.record import Records
from flotilla.rules.mysql_state import Claim, Past, Pause, State
from flotilla.rules.mysql_topology import Record

FIRST = Record(1, "i-1", "u-1")
SECOND = Record(2, "i-2", "u-2")
MOVE = Past(100.0, 2, "mysql-1", "mysql-2")


@pytest.fixture
def settings(tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        made = maker(tmp_path)().settings
        client(made, "dynamodb").create_table(
            TableName=made.name_of("clusters"),
            KeySchema=[{"AttributeName": "cluster", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "cluster", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        yield made


@pytest.fixture
def records(settings):
    made = Records(dynamo.clusters(settings))
    lend(made)
    return made


def lend(records, now=100.0):
    """Give the lease to somebody; the term of it."""
    return lease.acquire(
        records.table, "mysql", holder="ann", reason="r", seconds=60, now=now, take_over=True
    ).term


def test_there_is_no_record_before_the_first(records):
    assert records.read() is None
    assert records.state() is None


def test_what_was_written_is_read(records):
    records.write(FIRST, fence=1)
    assert records.read() == FIRST


def test_a_term_follows_the_one_before_it(records):
    records.write(FIRST, fence=1)
    records.write(SECOND, fence=1)
    assert records.read() == SECOND


def test_writing_the_same_again_is_not_an_error(records):
    records.write(FIRST, fence=1)
    records.write(FIRST, fence=1)
    assert records.read() == FIRST


@pytest.mark.parametrize(
    "late",
    [Record(1, "i-9", "u-9"), Record(2, "i-9", "u-9"), Record(4, "i-9", "u-9")],
    ids=["first again", "a term that is taken", "a term too far"],
)
def test_nobody_takes_a_term_that_is_not_next(records, late):
    records.write(FIRST, fence=1)
    records.write(SECOND, fence=1)
    with pytest.raises(Refused, match="was not written"):
        records.write(late, fence=1)
    assert records.read() == SECOND


def test_where_a_record_was_lost_its_terms_are_left_out(records):
    records.write(SECOND, fence=1, replaces=0)
    assert records.read() == SECOND
    later = Record(7, "i-7", "u-7")
    records.write(later, fence=1, replaces=2)
    assert records.read() == later
    with pytest.raises(Refused, match="was not written"):
        records.write(Record(9, "i-9", "u-9"), fence=1, replaces=0)
    assert records.read() == later


def test_who_lost_the_lease_writes_nothing(records):
    records.write(FIRST, fence=1, barred={"i-3": "away"})
    assert lend(records) == 2
    with pytest.raises(Refused, match="took the lease"):
        records.write(SECOND, fence=1)
    with pytest.raises(Refused, match="took the lease"):
        records.bar({}, term=1, fence=1)
    state = records.state()
    assert (state.record, state.fence, state.barred) == (FIRST, 2, {"i-3": "away"})


def test_a_lease_may_be_taken_on_condition_of_the_term(records):
    records.write(FIRST, fence=1)
    with pytest.raises(Held, match="it is not"):
        lease.acquire(
            records.table,
            "mysql",
            holder="bob",
            reason="r",
            seconds=60,
            now=900.0,
            when={"term": {"N": "7"}},
        )
    assert lease.read(records.table, "mysql").holder == "ann"


def test_lease_pause_history_and_bars_live_side_by_side(records):
    records.write(FIRST, fence=1, baseline="u-1:1-5")
    records.pause(Pause("ann", "disks", 500.0))
    records.remember(MOVE)
    records.bar({"i-3": "away"}, term=1, fence=1)
    lease.renew(records.table, lease.read(records.table, "mysql"), seconds=60, now=150.0)
    assert records.state() == State(
        FIRST,
        fence=1,
        claim=Claim("ann", 1, 210.0, "r"),
        paused=Pause("ann", "disks", 500.0),
        barred={"i-3": "away"},
        baseline="u-1:1-5",
        past=(MOVE,),
    )
    records.pause(None)
    assert records.state().paused is None


def test_a_failover_is_told_once_and_acknowledged_once(records):
    records.write(FIRST, fence=1)
    for term in (3, 2, 3):
        records.remember(replace(MOVE, term=term))
    assert [one.term for one in records.acknowledge()] == [2, 3]
    assert records.acknowledge() == ()
    assert all(one.acknowledged for one in records.state().past)


def test_of_two_who_change_the_history_at_once_one_is_told(records, monkeypatch):
    records.write(FIRST, fence=1)
    other = Records(records.table)
    item = records._item

    def meanwhile():
        found = item()
        other.remember(MOVE)
        return found

    monkeypatch.setattr(records, "_item", meanwhile)
    with pytest.raises(Refused, match="in this moment"):
        records.remember(replace(MOVE, term=3))
    assert other.state().past == (MOVE,)


def test_an_item_that_is_no_record_is_refused(settings, records):
    client(settings, "dynamodb").put_item(
        TableName=settings.name_of("clusters"), Item={"cluster": {"S": "mysql"}, "term": {"S": "x"}}
    )
    with pytest.raises(Refused, match="cannot be read"):
        records.read()


def test_a_fleet_without_its_table_is_told_how_to_get_one(settings, records):
    client(settings, "dynamodb").delete_table(TableName=settings.name_of("clusters"))
    with pytest.raises(Refused, match="there is no table"):
        records.read()
