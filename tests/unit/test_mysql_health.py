"""What a MySQL host answers to those who ask where to read and write."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.agent.mysql import PROBE_SECONDS, Endpoint, Probe
from flotilla.errors import Unreachable
from flotilla.rules.mysql_health import Health, primary_objection, replica_objection

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


def asked(read, *paths, together=1):
    """Serve on a real socket, ask ``paths`` one after the other, ``together`` at a time."""

    async def one(port, path):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return int(head.split()[1]), json.loads(body)

    async def all_of_them():
        endpoint = Endpoint(Probe(read, time.monotonic), 5.0)
        async with await asyncio.start_server(endpoint.serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            answers = []
            for path in paths:
                answers += await asyncio.gather(*(one(port, path) for _ in range(together)))
            return answers

    return asyncio.run(all_of_them())


def test_the_primary_answers_200_and_shows_its_term():
    (status, body), (other, why) = asked(lambda: PRIMARY, "/primary", "/replica")
    assert (status, body["term"], body["ok"]) == (200, 3, True)
    assert (other, why["why"]) == (503, "the server follows nobody")


def test_a_server_that_cannot_be_asked_is_503_with_the_reason():
    def refused():
        raise Unreachable("local: MySQL gave no answer")

    assert asked(refused, "/primary")[0] == (
        503,
        {"ok": False, "why": "local: MySQL gave no answer"},
    )


def test_a_frozen_server_is_503_within_the_limit():
    thaw = threading.Event()

    def frozen():
        thaw.wait(10)
        return PRIMARY

    async def freed():
        start = time.monotonic()
        endpoint = Endpoint(Probe(frozen, time.monotonic), 5.0)
        status, body = await endpoint.answer("/primary")
        seconds = time.monotonic() - start
        thaw.set()
        return status, body["why"], seconds

    status, why, seconds = asyncio.run(freed())
    assert status == 503
    assert "no answer within" in why
    assert seconds < PROBE_SECONDS + 1


def test_many_who_ask_at_once_cost_one_look():
    looks = []

    def slow():
        looks.append(1)
        time.sleep(0.1)
        return PRIMARY

    answers = asked(slow, "/primary", together=20)
    assert [status for status, _ in answers] == [200] * 20
    assert len(looks) == 1


def test_an_answer_is_never_older_than_the_next_question_a_moment_later():
    seen = iter([PRIMARY, REPLICA])

    async def twice():
        endpoint = Endpoint(Probe(lambda: next(seen), time.monotonic), 5.0)
        first, _ = await endpoint.answer("/primary")
        await asyncio.sleep(0.2)
        second, _ = await endpoint.answer("/primary")
        return first, second

    assert asyncio.run(twice()) == (200, 503)


@pytest.mark.parametrize("path", ["/", "/primary/", "/metrics"])
def test_other_paths_are_404(path):
    assert asked(lambda: PRIMARY, path)[0][0] == 404
