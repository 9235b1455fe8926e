"""Holding a lock through a long run: who is kept out, and who notices that it is lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from fleets import maker
from moto import mock_aws

from flotilla import lock
from flotilla.aws import lease
from flotilla.aws.session import client
from flotilla.errors import Refused
from flotilla.lock import LEASE_SECONDS, Lock
from flotilla.settings import Settings


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def settings(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with mock_aws():
        made = maker(tmp_path)().settings
        client(made, "dynamodb").create_table(
            TableName=made.name_of("locks"),
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        yield made


def found(settings: Settings) -> lease.Lease:
    now = lease.read(settings, settings.name_of("locks"), "deploy")
    assert now
    return now


def test_a_second_run_is_told_who_and_why_and_what_to_do(settings, clock) -> None:
    with (
        Lock(settings, "deploy", reason="deploy 7", clock=clock),
        pytest.raises(lease.Held) as refused,
        Lock(settings, "deploy", reason="another", clock=clock),
    ):
        pass
    assert "deploy 7" in refused.value.why
    assert lock.holder() in refused.value.what
    assert "--take-over" in refused.value.next


def test_it_is_free_afterwards_and_its_number_grows(settings, clock) -> None:
    terms = []
    for _ in range(2):
        with Lock(settings, "deploy", reason="r", clock=clock) as held:
            held.check()
            terms.append(held.term)
    assert terms[1] == terms[0] + 1
    assert found(settings).is_free(clock())


def test_it_is_free_after_a_run_that_failed(settings, clock) -> None:
    with pytest.raises(ZeroDivisionError), Lock(settings, "deploy", reason="r", clock=clock):
        raise ZeroDivisionError
    assert found(settings).is_free(clock())


def test_a_lock_that_was_not_renewed_in_time_stops_the_run(settings, clock) -> None:
    with Lock(settings, "deploy", reason="r", clock=clock) as held:
        clock.now += LEASE_SECONDS
        with pytest.raises(Refused, match="could not be renewed"):
            held.check()


def test_a_run_whose_lock_was_taken_over_notices_and_leaves_the_new_one_alone(
    settings, clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.01)
    with Lock(settings, "deploy", reason="old", clock=clock) as old:
        monkeypatch.setattr(lock, "holder", lambda: "somebody else")
        with Lock(settings, "deploy", reason="new", take_over=True, clock=clock) as new:
            old._thread.join(10)
            with pytest.raises(Refused, match="no longer ours"):
                old.check()
            new.check()
            assert found(settings).term == new.term == old.term + 1
    assert replace(found(settings), holder="") == found(settings)


def test_a_killed_run_frees_its_lock_by_time(settings, clock) -> None:
    table = settings.name_of("locks")
    lease.acquire(
        settings, table, "deploy", holder="dead", reason="r", seconds=LEASE_SECONDS, now=clock()
    )
    clock.now += LEASE_SECONDS + lease.SKEW_SECONDS + 1
    with Lock(settings, "deploy", reason="next", clock=clock) as held:
        held.check()
