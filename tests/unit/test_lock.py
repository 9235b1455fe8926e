"""Holding a lock through a long run: who is kept out, and who notices that it is lost."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from fleets import maker
from moto import mock_aws

from flotilla import audit, lock
from flotilla.aws import dynamo, lease
from flotilla.aws.session import client
from flotilla.errors import Refused, Unreachable
from flotilla.lock import LEASE_SECONDS, Lock
from flotilla.settings import Settings
from flotilla.who import holder


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
    now = lease.read(dynamo.locks(settings), "deploy")
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
        with Lock(
            settings, "deploy", reason="new", take_over=True, clock=clock, sleep=lambda _: None
        ) as new:
            old._thread.join(10)
            with pytest.raises(Refused, match="no longer ours"):
                old.check()
            new.check()
            assert found(settings).term == new.term == old.term + 1
    assert replace(found(settings), holder="") == found(settings)


def test_a_killed_run_frees_its_lock_by_time(settings, clock) -> None:
    lease.acquire(
        dynamo.locks(settings),
        "deploy",
        holder="dead",
        reason="r",
        seconds=LEASE_SECONDS,
        now=clock(),
    )
    clock.now += LEASE_SECONDS + lease.SKEW_SECONDS + 1
    with Lock(settings, "deploy", reason="next", clock=clock) as held:
        held.check()


def taken_by_bob(settings: Settings, clock: Clock) -> lease.Lease:
    return lease.acquire(
        dynamo.locks(settings),
        "deploy",
        holder="bob",
        reason="deploy 6",
        seconds=LEASE_SECONDS,
        now=clock(),
        take_over=True,
    )


def test_a_lock_of_fewer_seconds_is_free_sooner(settings, clock) -> None:
    with Lock(settings, "deploy", reason="r", seconds=15.0, clock=clock) as mine:
        assert found(settings).expires_at == clock.now + 15
        clock.now += 15
        with pytest.raises(Refused, match="could not be renewed for 15 s"):
            mine.check()


def _left_by(settings, clock, who: str) -> None:
    """A lock that its holder did not give back."""
    lease.acquire(
        dynamo.locks(settings), "deploy", holder=who, reason="r", seconds=60, now=clock.now
    )


def test_the_lock_of_a_killed_run_of_this_machine_is_freed(settings, clock) -> None:
    done = subprocess.Popen(["true"])
    done.wait()
    dead = f"{holder().rpartition(':')[0]}:{done.pid}"
    _left_by(settings, clock, dead)
    slept: list[float] = []
    assert lock.take_from_dead(settings, "deploy", clock=clock, sleep=slept.append) == dead
    assert found(settings).is_free(clock.now)
    assert slept == [lock.CONFIRM_SECONDS + lock.CHANGE_SECONDS]


@pytest.mark.parametrize("alive", [True, False])
def test_the_lock_of_who_may_live_is_left_alone(settings, clock, alive: bool) -> None:
    who = holder() if alive else "somebody@elsewhere:1"
    _left_by(settings, clock, who)
    assert lock.take_from_dead(settings, "deploy", clock=clock, sleep=pytest.fail) == ""
    assert found(settings).holder == who


def test_where_there_is_no_lock_or_no_table_nobody_is_dead(settings, clock) -> None:
    assert lock.take_from_dead(settings, "deploy", clock=clock, sleep=pytest.fail) == ""
    client(settings, "dynamodb").delete_table(TableName=settings.name_of("locks"))
    assert lock.take_from_dead(settings, "deploy", clock=clock, sleep=pytest.fail) == ""


def test_a_lock_that_was_taken_over_is_noticed_before_the_next_change(settings, clock) -> None:
    """The renewal alone would notice it after ten seconds."""
    with Lock(settings, "deploy", reason="old", clock=clock) as old:
        taken_by_bob(settings, clock)
        clock.now += lock.CONFIRM_SECONDS
        with pytest.raises(Refused, match=r"no longer ours: .* held by bob in term 2"):
            old.check()


def test_who_takes_over_waits_until_the_former_holder_must_have_noticed(settings, clock) -> None:
    waited: list[float] = []
    taken_by_bob(settings, clock)
    with Lock(
        settings, "deploy", reason="new", take_over=True, clock=clock, sleep=waited.append
    ) as new:
        new.check()
    assert waited == [lock.CONFIRM_SECONDS + lock.CHANGE_SECONDS]


@pytest.mark.parametrize("before", ["nobody", "released", "over"])
def test_a_free_lock_is_taken_at_once_and_nobody_is_named(settings, clock, before) -> None:
    if before != "nobody":
        held = taken_by_bob(settings, clock)
        if before == "released":
            lease.release(dynamo.locks(settings), held, now=clock())
        clock.now += LEASE_SECONDS + lease.SKEW_SECONDS + 1
    waited: list[float] = []
    with Lock(
        settings, "deploy", reason="new", take_over=True, clock=clock, sleep=waited.append
    ) as new:
        assert new.taken_from is None
    assert waited == []
    assert audit.lines(settings) == []


def test_taking_a_lock_over_is_in_the_audit_file(settings, clock) -> None:
    taken_by_bob(settings, clock)
    with Lock(settings, "deploy", reason="new", take_over=True, clock=clock, sleep=lambda _: None):
        pass
    (line,) = map(json.loads, audit.lines(settings))
    assert line["command"] == "take over the lock deploy"
    assert (line["taken_from"], line["held_for"], line["why"]) == ("bob", "deploy 6", "new")
    assert line["by"] == lock.holder()


def test_an_api_that_is_away_does_not_stop_a_run_before_its_lease_ends(
    settings, clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def away(*_: object) -> None:
        asked.append(clock())
        raise Unreachable("the API does not answer")

    with Lock(settings, "deploy", reason="r", clock=clock) as held:
        monkeypatch.setattr(lease, "read", away)
        for _ in range(50):
            clock.now += 1
            held.check()
        assert len(asked) == 25, "asked once in two seconds, not before every change"
        clock.now += LEASE_SECONDS - 50
        with pytest.raises(Refused, match="could not be renewed"):
            held.check()
        monkeypatch.undo()


def test_an_api_that_hangs_holds_a_change_up_for_two_seconds_at_the_most(
    settings, clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = threading.Event()
    reads: list[float] = []
    real = lease.read

    def hangs(*arguments: object) -> lease.Lease | None:
        reads.append(clock())
        answer.wait(30)
        return real(*arguments)  # type: ignore[arg-type]

    with Lock(settings, "deploy", reason="r", clock=clock) as held:
        taken_by_bob(settings, clock)
        monkeypatch.setattr(lease, "read", hangs)
        monkeypatch.setattr(lock, "ANSWER_SECONDS", 0.2)
        for _ in range(3):
            clock.now += lock.CONFIRM_SECONDS
            began = time.monotonic()
            held.check()
            assert time.monotonic() - began < 20
        assert len(reads) == 1, "no second question while the first one hangs"
        answer.set()
        assert held._reader
        held._reader.join(10)
        with pytest.raises(Refused, match="held by bob"):
            held.check()


def test_a_run_that_only_wants_to_plan_is_told_who_is_at_work(settings, clock) -> None:
    lock.demand_free(settings, "deploy", clock=clock)
    taken_by_bob(settings, clock)
    with pytest.raises(lease.Held, match="bob") as refused:
        lock.demand_free(settings, "deploy", clock=clock)
    assert "--take-over" in refused.value.next
    clock.now += LEASE_SECONDS + lease.SKEW_SECONDS + 1
    lock.demand_free(settings, "deploy", clock=clock)
