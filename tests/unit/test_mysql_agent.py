"""What a watcher holds on to: its lease, what it knows, how it closes another host."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from fleets import maker
from moto import mock_aws

from flotilla.agent import fences, guard
from flotilla.agent.guard import LEASE_SECONDS, Guard
from flotilla.agent.knowledge import Knowledge
from flotilla.aws import dynamo, lease
from flotilla.aws.session import client
from flotilla.errors import FlotillaError, HostFailed, Refused, Unreachable
from flotilla.hosts.mysql import PortClosedError, Server
from flotilla.mysql.record import Records
from flotilla.rules.mysql_failover import How, Opening
from flotilla.rules.mysql_state import Place, State
from flotilla.rules.mysql_topology import Record
from flotilla.rules.mysql_verdict import Reach

RECORD = Record(1, "i-1", "u-1")
OLD = Place("mysql-1", "i-1", "10.0.0.1")
HERE = Place("mysql-2", "i-2", "10.0.0.2")


class Clock:
    """Seconds that pass when a test says so, or when somebody sleeps."""

    now = 1000.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def records(tmp_path, monkeypatch):
    """A cluster's item: term 1 is mysql-1's, and nobody holds the lease."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        settings = maker(tmp_path)().settings
        client(settings, "dynamodb").create_table(
            TableName=settings.name_of("clusters"),
            KeySchema=[{"AttributeName": "cluster", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "cluster", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        made = Records(dynamo.clusters(settings))
        taken = lease.acquire(
            made.table, "mysql", holder="ann", reason="r", seconds=60, now=0.0, take_over=True
        )
        made.write(RECORD, fence=taken.term)
        lease.release(made.table, taken, now=1.0)
        yield made


def held(records, clock, **options):
    return Guard(records, "mysql-2", "mysql-1 is dead", term=1, now=clock, clock=clock, **options)


# -- the lease ------------------------------------------------------------------------------------


def test_a_lease_is_free_again_after_its_work(records, clock):
    with held(records, clock) as mine:
        mine.check()
        assert lease.read(records.table, "mysql").holder == "mysql-2"
    assert lease.read(records.table, "mysql").is_free(clock())


def test_of_two_watchers_one_has_the_lease(records, clock):
    with (
        held(records, clock),
        pytest.raises(lease.Held, match="held by mysql-2"),
        Guard(records, "mysql-3", "the same", term=1, now=clock, clock=clock),
    ):
        pass


def test_a_verdict_on_a_term_that_is_over_takes_no_lease(records, clock):
    with pytest.raises(lease.Held, match="it is not"), replaced(held(records, clock), 7):
        pass
    assert lease.read(records.table, "mysql").is_free(clock())


def replaced(one, term):
    one._when = {"term": {"N": str(term)}}
    return one


def test_a_watcher_that_slept_changes_nothing(records, clock):
    with held(records, clock) as mine:
        clock.now += LEASE_SECONDS * 2 / 3 - 0.1
        mine.check()
        clock.now += 0.2
        with pytest.raises(Refused, match=r"was not renewed for 10\.1 s"):
            mine.check()


def test_a_lease_is_renewed_while_the_work_lasts(records, clock, monkeypatch):
    monkeypatch.setattr(guard, "RENEW_SECONDS", 0.01)
    with held(records, clock) as mine:
        for _ in range(5):
            clock.now += LEASE_SECONDS / 2
            deadline = time.monotonic() + 5
            while mine._renewed < clock.now and time.monotonic() < deadline:
                time.sleep(0.01)
            mine.check()


def test_a_lease_that_was_taken_away_ends_the_work(records, clock, monkeypatch):
    monkeypatch.setattr(guard, "RENEW_SECONDS", 0.01)
    with held(records, clock) as mine:
        lease.acquire(
            records.table,
            "mysql",
            holder="ann",
            reason="r",
            seconds=60,
            now=clock(),
            take_over=True,
        )
        deadline = time.monotonic() + 5
        while mine._lost is None and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(Refused, match="held by ann"):
            mine.check()
    assert lease.read(records.table, "mysql").holder == "ann", "what is not ours is left alone"


# -- the fence ------------------------------------------------------------------------------------


class Ec2:
    """One instance: the states it is seen in, one after the other, and how often it was stopped."""

    def __init__(self, *states):
        self.states = list(states)
        self.stopped = 0

    def state(self, _instance):
        said = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(said, Exception):
            raise said
        return said

    def stop(self, _instance):
        self.stopped += 1


OPENING = Opening(
    term=2,
    old=OLD,
    places=(OLD, HERE),
    ackers=("mysql-2",),
    needed=1,
    how=How.HOST,
    evidence=(),
    steps=(),
)


def stopped(ec2, clock):
    return fences._stopped(OPENING, ec2, clock=clock, sleep=clock.sleep)


def test_a_silent_host_is_stopped_and_seen_to_be_stopped(clock):
    ec2 = Ec2("running", "stopping", "stopping", "stopped")
    assert stopped(ec2, clock) == "EC2 says that mysql-1 (i-1) is stopped"
    assert ec2.stopped == 1


def test_a_host_that_somebody_else_stops_is_forced_to(clock):
    ec2 = Ec2("stopping", "stopping", "terminated")
    assert "is terminated" in stopped(ec2, clock)
    assert ec2.stopped == 1


def test_a_host_that_is_stopped_already_is_left_alone(clock):
    ec2 = Ec2("stopped")
    assert "is stopped" in stopped(ec2, clock)
    assert ec2.stopped == 0


def test_a_fence_outlasts_an_api_that_does_not_answer(clock):
    ec2 = Ec2(Unreachable("ec2 does not answer"), "running", FlotillaError("busy"), "stopped")
    assert "is stopped" in stopped(ec2, clock)


def test_a_host_that_does_not_stop_is_for_a_human(clock):
    ec2 = Ec2("running")
    with pytest.raises(HostFailed, match="is not stopped after 300 s: it is running") as failed:
        stopped(ec2, clock)
    assert "by hand" in failed.value.next
    assert ec2.stopped > 10, "it is asked for again and again"


class Dead(Server):
    """A server whose port answers as a test says."""

    def __init__(self, *answers):
        super().__init__("mysql-1", lambda: None)
        self.answers = list(answers)

    def query(self, *_, **__):
        said = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(said, Exception):
            raise said
        return [{"closed": said}]


def gone(server, ec2, clock):
    return fences._gone(server, OPENING, ec2, clock=clock, sleep=clock.sleep)


def test_a_server_that_comes_back_read_only_is_closed(clock):
    server = Dead(PortClosedError("nobody listens"), PortClosedError("nobody listens"), 1)
    assert "came back read-only" in gone(server, Ec2("running"), clock)


def test_a_server_that_stays_away_is_closed_as_it_starts_read_only(clock):
    ec2 = Ec2("running")
    assert "starts read-only" in gone(Dead(PortClosedError("nobody listens")), ec2, clock)
    assert ec2.stopped == 0


def test_a_server_that_turns_silent_has_its_host_stopped(clock):
    server = Dead(PortClosedError("nobody listens"), Unreachable("no answer"))
    ec2 = Ec2("running", "stopped")
    assert "EC2 says" in gone(server, ec2, clock)
    assert ec2.stopped == 1


def test_a_server_that_answers_closes_itself():
    made = fences.fence(Reach.ANSWERS, Dead(1), replace(OPENING, how=How.SERVER), Ec2("running"))
    assert isinstance(made, fences.ServerFence)


# -- what a host knows ----------------------------------------------------------------------------


class Lists:
    """An inventory that answers as a test says."""

    def __init__(self, answer):
        self.answer = answer

    def places(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Book:
    """A record that answers as a test says."""

    def __init__(self, answer):
        self.answer = answer

    def state(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def knowing(tmp_path, clock):
    """Makes what mysql-2 knows."""

    def make(listed=(OLD, HERE), record=None):
        book = Book(State(RECORD) if record is None else record)
        return Knowledge("i-2", book, Lists(listed), tmp_path / "members", clock)

    return make


def test_a_host_that_boots_without_ec2_knows_its_members(knowing):
    knowing().turn()
    late = knowing(listed=Unreachable("ec2 does not answer"))
    late.turn()
    assert (late.me, late.primary) == (HERE, OLD)


def test_a_list_without_this_host_is_not_believed(knowing):
    knowing().turn()
    later = knowing(listed=(OLD,))
    later.turn()
    assert later.me == HERE


def test_a_primary_that_ec2_forgot_is_still_to_be_taken_over_from(knowing, clock):
    known = knowing()
    known.turn()
    known._inventory.answer = (HERE,)
    clock.now += 61
    known.turn()
    assert known.primary == OLD
    known.records.answer = State(Record(2, "i-2", "u-2"))
    clock.now += 61
    known.turn()
    clock.now += 61
    known.turn()
    assert list(known.places) == ["mysql-2"], "and is forgotten then"


@pytest.mark.parametrize("text", ["", "[", "[1]", json.dumps([{"name": "x"}])])
def test_a_spoilt_file_of_members_is_as_none(knowing, tmp_path, text):
    (tmp_path / "members").write_text(text)
    known = knowing(listed=Unreachable("ec2 does not answer"))
    known.turn()
    assert known.places == {}


def test_an_older_term_than_known_is_not_believed(knowing, clock):
    known = knowing(record=State(Record(4, "i-2", "u-2")))
    known.turn()
    heard = known.heard_at
    clock.now += 5
    known.records.answer = State(RECORD)
    known.turn()
    assert known.state.record.term == 4
    assert known.heard_at == heard


def test_a_record_that_cannot_be_read_is_vouched_for_or_grows_old(knowing, clock):
    known = knowing()
    known.turn()
    known.records.answer = Unreachable("dynamodb does not answer")
    clock.now += 5
    known.turn()
    assert known.standing(gap_at=0.0).heard_age == 5.0
    known.vouched = lambda state: state.record == RECORD
    known.turn()
    assert known.standing(gap_at=0.0).heard_age == 0.0
    assert known.state == State(RECORD)


def test_what_was_heard_counts_from_the_moment_it_was_asked_for(knowing, clock):
    known = knowing()
    answer = known.records.state

    def slow():
        clock.now += 3
        return answer()

    known.records.state = slow
    known.turn()
    assert known.standing(gap_at=1001.0).heard_age == 3.0
    assert known.standing(gap_at=1001.0).gap_age == 2.0
