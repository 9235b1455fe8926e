"""What a MySQL host answers to those who ask where to read and write."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.agent.endpoint import REQUEST_SECONDS, Endpoint, listen
from flotilla.agent.keyring import Keyring, Password
from flotilla.agent.local import FRESH_SECONDS, SPARED_SECONDS, Local, Seen
from flotilla.agent.service import Answers
from flotilla.errors import Unreachable
from flotilla.hosts.mysql import Server
from flotilla.hosts.mysql_glimpse import Glimpse
from flotilla.rules.mysql_health import Health, primary_objection, replica_objection
from flotilla.rules.mysql_standing import ALONE_SECONDS, Standing, standing_objection
from flotilla.rules.mysql_topology import Record
from flotilla.wait import until

PRIMARY = Health("me", read_only=False, offline=False, term=3, term_uuid="me")
REPLICA = Health("me", True, False, 3, "other", io="ON", applier="ON", lag_seconds=0.2)

uuids = st.sampled_from(["me", "other"])
threads = st.sampled_from([None, "ON", "OFF", "CONNECTING"])
healths = st.builds(
    Health,
    uuid=uuids,
    read_only=st.booleans(),
    offline=st.booleans(),
    term=st.none() | st.integers(1, 9),
    term_uuid=st.none() | uuids,
    io=threads,
    applier=threads,
    lag_seconds=st.floats(0, 100),
)


@given(healths)
def test_no_host_is_ever_fit_for_writes_and_as_a_replica(health):
    assert primary_objection(health) or replica_objection(health, 5)


@given(healths)
def test_writes_go_only_to_a_writable_holder_of_the_newest_term(health):
    if primary_objection(health) is None:
        assert not health.read_only
        assert not health.offline
        assert health.term is not None
        assert health.term_uuid == health.uuid


@given(healths, st.floats(0, 100))
def test_reads_go_only_where_replication_runs_within_the_limit(health, limit):
    if replica_objection(health, limit) is None:
        assert (health.io, health.applier) == ("ON", "ON")
        assert health.lag_seconds <= limit


def test_the_reason_is_a_sentence():
    assert primary_objection(REPLICA) == "the server is read-only"
    assert "lags 0.2 s" in (replica_objection(REPLICA, 0.1) or "")


# -- what a host knows of the record --------------------------------------------------------------

RECORD = Record(3, "i-1", "me")
HEARD = Standing("i-1", RECORD, heard_age=0.5, gap_age=60.0)


def test_the_primary_of_the_record_may_be_written_to():
    assert standing_objection(PRIMARY, HEARD) is None


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        ({"record": None}, "has not been read yet"),
        ({"heard_age": None}, "has not been read yet"),
        ({"record": Record(4, "i-2", "other")}, "term 4 belongs to i-2"),
        ({"record": Record(3, "i-1", "replaced")}, "belongs to server replaced"),
        ({"record": Record(4, "i-1", "me")}, "shows term 3, the record says 4"),
        ({"heard_age": 2.0, "gap_age": 1.0}, "was away 1.0 s ago"),
        ({"heard_age": ALONE_SECONDS + 0.1}, "neither the record nor another member"),
    ],
)
def test_a_host_that_does_not_know_says_no(known, reason):
    assert reason in (standing_objection(PRIMARY, replace(HEARD, **known)) or "yes")


@given(healths, st.none() | st.floats(0, 60), st.floats(0, 60), st.integers(1, 9), uuids)
def test_writes_go_only_where_the_term_was_heard_of_since_the_last_absence(
    health, heard, gap, term, owner
):
    standing = Standing("i-1", Record(term, "i-1", owner), heard, gap)
    if standing_objection(health, standing) is None:
        assert primary_objection(health) is None
        assert (health.term, health.uuid) == (term, owner)
        assert heard is not None
        assert heard < gap
        assert heard <= ALONE_SECONDS


# -- the endpoint ---------------------------------------------------------------------------------


class Served:
    """An endpoint on a real socket; ``ask`` is a client."""

    def __init__(self, answer):
        self.listener = listen("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        self.endpoint = Endpoint(self.listener, answer)
        self.stopped = False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.stopped:
            self.endpoint.turn(0.05)

    def ask(self, path):
        return self.send(f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n".encode())

    def send(self, *parts, pause=0.0):
        with socket.create_connection(("127.0.0.1", self.port), 5) as stream:
            for part in parts:
                stream.sendall(part)
                time.sleep(pause)
            with stream.makefile("rb") as file:
                head, _, body = file.read().partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)


@pytest.fixture
def served():
    """Makes endpoints, and ends them."""
    made = []

    def make(answer):
        made.append(Served(answer))
        return made[-1]

    yield make
    for one in made:
        one.stopped = True
        one.thread.join()
        one.listener.close()


class Looking:
    """A Local whose looks a test decides on."""

    def __init__(self, health=None, why=""):
        self.gap_at = time.monotonic() - 60
        glimpse = Glimpse(health, True, False, False, None) if health else None
        self.seen = Seen(glimpse, why, time.monotonic())
        self.hurried = 0

    def hurry(self):
        self.hurried += 1


class Knowing:
    """What a host knows; it has just heard of it."""

    def __init__(self, standing=HEARD):
        self._standing = standing
        self.hurried = 0

    def hurry(self):
        self.hurried += 1

    def standing(self, _gap_at):
        return self._standing


def test_the_primary_answers_200_and_shows_its_term(served):
    server = served(Answers(Looking(PRIMARY), Knowing(), 5.0))
    status, body = server.ask("/primary")
    assert (status, body["term"], body["ok"]) == (200, 3, True)
    status, body = server.ask("/replica")
    assert (status, body["why"]) == (503, "the server follows nobody")


def test_a_primary_by_its_own_word_only_is_503_with_the_reason(served):
    late = replace(HEARD, record=Record(4, "i-2", "other"))
    server = served(Answers(Looking(PRIMARY), Knowing(late), 5.0))
    status, body = server.ask("/primary")
    assert (status, body["why"]) == (503, "term 4 belongs to i-2")


def test_who_has_just_changed_a_role_makes_the_host_look_again(served):
    looking, knowing = Looking(PRIMARY), Knowing()
    server = served(Answers(looking, knowing, 5.0))
    assert server.ask("/look")[0] == 200
    assert (looking.hurried, knowing.hurried) == (1, 1)
    assert server.ask("/primary")[0] == 200
    assert (looking.hurried, knowing.hurried) == (1, 1)


def test_a_host_that_knows_nothing_yet_still_serves_reads(served):
    server = served(Answers(Looking(REPLICA), None, 5.0))
    assert server.ask("/replica")[0] == 200
    assert server.ask("/primary")[0] == 503


def test_a_server_that_cannot_be_asked_is_503_with_the_reason(served):
    server = served(Answers(Looking(why="local: MySQL gave no answer"), Knowing(), 5.0))
    for path in ("/primary", "/replica"):
        assert server.ask(path) == (503, {"ok": False, "why": "local: MySQL gave no answer"})


def test_whoever_asks_for_versions_is_told_no_value_and_has_them_read_again(served):
    answers = Answers(Looking(PRIMARY), Knowing(), 5.0)
    server = served(answers)
    assert server.ask("/secrets") == (200, {})
    held = {"replication": Password("a-secret", 1)}
    answers.keyring = Keyring(lambda: dict(held))
    reading = threading.Thread(target=answers.keyring.run, daemon=True)
    held["replication"] = Password("another", 2)
    assert server.ask("/secrets") == (200, {"replication": 1})
    reading.start()
    until(lambda: server.ask("/secrets") == (200, {"replication": 2}), seconds=10)


@pytest.mark.parametrize("path", ["/", "/primary/", "/metrics"])
def test_other_paths_are_404(served, path):
    assert served(Answers(Looking(PRIMARY), Knowing(), 5.0)).ask(path)[0] == 404


def test_a_request_in_pieces_is_answered(served):
    server = served(Answers(Looking(PRIMARY), Knowing(), 5.0))
    assert server.send(b"GET /pri", b"mary HTTP/1.1\r\nHost: x\r\n", b"\r\n", pause=0.05)[0] == 200


def test_who_says_nothing_holds_nobody_up_and_is_dropped(served):
    server = served(Answers(Looking(PRIMARY), Knowing(), 5.0))
    with socket.create_connection(("127.0.0.1", server.port), 5) as silent:
        assert [server.ask("/primary")[0] for _ in range(20)] == [200] * 20
        silent.settimeout(REQUEST_SECONDS + 2)
        assert silent.recv(1) == b""


@pytest.mark.parametrize("junk", [b"\r\n\r\n", b"x" * 5000, b"\xff\xfe \xfd\r\n\r\n"])
def test_junk_ends_the_connection_and_nothing_else(served, junk):
    server = served(Answers(Looking(PRIMARY), Knowing(), 5.0))
    with socket.create_connection(("127.0.0.1", server.port), 5) as stream:
        stream.settimeout(5)
        # The server may have hung up before all of it was sent: ENOTCONN is an OSError alone.
        with contextlib.suppress(OSError):
            stream.sendall(junk)
            stream.shutdown(socket.SHUT_WR)
            stream.recv(65536)
    assert server.ask("/primary")[0] == 200


# -- the look at the own server -------------------------------------------------------------------


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_a_look_that_is_too_old_is_no_look():
    clock = Clock()
    local = Local(Server("local", _refused), clock)
    local._seen = Seen(Glimpse(PRIMARY, False, True, False, None), "", clock.now)
    assert local.seen.glimpse
    clock.now += FRESH_SECONDS + 0.01
    assert local.seen.glimpse is None
    assert "no answer for 2.0 s" in local.seen.why


def test_a_server_that_cannot_be_reached_is_an_absence():
    clock = Clock()
    local = Local(Server("local", _refused), clock)
    clock.now += 7
    local.look()
    assert local.gap_at == clock.now
    assert "nobody listens" in local.seen.why


def test_a_process_that_was_not_running_is_an_absence():
    ticks = iter([0.0, 0.0, 0.0, 9.0, 9.0, 9.0, 9.0])
    local = Local(Server("local", _refused), lambda: next(ticks))
    assert local.gap_at == 0.0
    local.turn()
    assert local.gap_at == 9.0


class Pinged(Server):
    """A server that ``is_there`` or not, and counts who looks at it."""

    def __init__(self, name):
        super().__init__(name, _refused)
        self.is_there, self.looks = False, 0

    def ping(self, **_):
        if not self.is_there:
            raise Unreachable(self.name)

    def query(self, *_, **__):
        self.ping()
        self.looks += 1
        me = {"uuid": "u", "read_only": 1, "super_read_only": 1, "offline": 0, "waits": 0}
        return [{"j": json.dumps(me | {"acknowledges": 1, "stream": None, "newest": None})}]


def test_the_spare_session_is_used_until_the_own_one_is_there_again():
    clock, own, spare = Clock(), Pinged("socket"), Pinged("admin port")
    spare.is_there = True
    local = Local(own, clock)
    local.turn_to(lambda: spare)
    local.look()
    assert local.seen.glimpse is None
    for _ in range(3):
        local.look()
        assert local.seen.glimpse
    assert (own.looks, spare.looks) == (0, 3)
    clock.now += SPARED_SECONDS + 1
    local.look()
    assert (local.seen.glimpse is not None, spare.looks) == (True, 4)
    own.is_there = True
    clock.now += SPARED_SECONDS + 1
    local.look()
    assert (local.seen.glimpse is not None, own.looks, spare.looks) == (True, 2, 4)
    own.is_there = False
    local.look()
    assert local.seen.glimpse is None
    local.look()
    assert (local.seen.glimpse is not None, spare.looks) == (True, 5)


def _refused():
    raise ConnectionRefusedError("nobody listens")
