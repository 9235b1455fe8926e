"""The record of who is primary, against DynamoDB's own conditions (moto's, in this process)."""

from __future__ import annotations

import pytest
from fleets import maker
from moto import mock_aws

from flotilla.aws.session import client
from flotilla.errors import Refused
from flotilla.mysql.record import Records
from flotilla.rules.mysql_topology import Record

FIRST = Record(1, "i-1", "u-1")
SECOND = Record(2, "i-2", "u-2")


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
    return Records(settings)


def test_there_is_no_record_before_the_first(records):
    assert records.read() is None


def test_what_was_written_is_read(records):
    records.write(FIRST, fence=1)
    assert records.read() == FIRST


def test_a_term_follows_the_one_before_it(records):
    records.write(FIRST, fence=1)
    records.write(SECOND, fence=2)
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
    records.write(SECOND, fence=2)
    with pytest.raises(Refused, match="was not written"):
        records.write(late, fence=9)
    assert records.read() == SECOND


def test_who_holds_an_older_lease_writes_nothing(records):
    records.write(FIRST, fence=1)
    records.write(SECOND, fence=7)
    with pytest.raises(Refused):
        records.write(Record(3, "i-3", "u-3"), fence=6)
    assert records.read() == SECOND


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
