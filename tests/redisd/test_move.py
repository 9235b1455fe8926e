"""A planned move of the Redis primary, on real servers and Sentinels, with a client that counts."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from redisd.group import CLUSTER, DOWN_AFTER_MS, HOSTS, Group, Process, redis_node
from redisd.operators import Hands

from flotilla.errors import HostFailed, Refused, Unreachable
from flotilla.redis import operate
from flotilla.settings import Settings
from flotilla.wait import until

move = redis_node.redis_move
RedisError = redis_node.redis.exceptions.RedisError


class Writer:
    """Writes numbers one after the other to whoever is offered, and keeps what was acknowledged."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._over = threading.Event()
        self.acked: list[int] = []
        self.gap = 0.0
        self.most_offered = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._looker = threading.Thread(target=self._look, daemon=True)
        self._to: list[str] = group.offered()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        self._looker.join()

    def start(self) -> None:
        self._thread.start()
        self._looker.start()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self._to = self._group.offered()
            self.most_offered = max(self.most_offered, len(self._to))

    def _run(self) -> None:
        number, last, connection, name = 0, time.monotonic(), None, ""
        while not self._over.is_set():
            to = self._to
            if len(to) != 1:
                time.sleep(0.005)
                continue
            if connection is None or name != to[0]:
                name = to[0]
                connection = self._group.app(
                    name, socket_timeout=1.0, retry=redis_node.Retry(redis_node.NoBackoff(), 0)
                )
            number += 1
            try:
                connection.rpush("ledger", number)
            except RedisError:
                connection = None
                time.sleep(0.005)
                continue
            now = time.monotonic()
            self.gap, last = max(self.gap, now - last), now
            self.acked.append(number)
            time.sleep(0.002)


@contextmanager
def writing(group: Group) -> Iterator[Writer]:
    writer = Writer(group)
    writer.start()
    try:
        until(lambda: len(writer.acked) > 20, seconds=10)
        yield writer
    finally:
        writer.stop()


def there(group: Group) -> set[int]:
    primary = group.primary()
    app = group.app(primary, decode_responses=True)
    return set(map(int, app.lrange("ledger", 0, -1)))


def made(group: Group, *, say: Callable[[str], None] = lambda _: None) -> move.Move:
    return move.Move(redis_node.places(group.settings(group.primary())), say=say)


def quiet(_: str) -> None:
    """Go on."""


def at(words: str, act: Callable[[], None]) -> Callable[[str], None]:
    """Listens to a move, and does something when it says so."""
    return lambda said: act() if said == words else None


def frozen(process: Process, seconds: float) -> None:
    """Let it answer nothing for a while, and then all that it was told meanwhile."""
    process.signal(signal.SIGSTOP)
    threading.Timer(seconds, process.signal, [signal.SIGCONT]).start()


def stays(group: Group, name: str) -> None:
    """Nobody replaces it: Sentinels that cannot ask a new primary find it down in 0.7 s."""
    end = time.monotonic() + 2.0
    while time.monotonic() < end:
        assert group.primary() == name
        time.sleep(0.05)


def test_planned_moves_lose_nothing_and_hold_writes_up_for_less_than_a_second(
    group: Group,
) -> None:
    with writing(group) as writer:
        for to in ("redis-2", "redis-3"):
            old = group.primary()
            told = made(group).run(to)
            assert (told.old, told.new, group.primary()) == (old, to, to)
            assert told.paused_seconds < 1.0
            count = len(writer.acked)
            until(lambda before=count: len(writer.acked) > before + 20, seconds=10)
            stays(group, to)
    assert writer.gap < 2.0
    assert writer.most_offered == 1
    assert set(writer.acked) <= there(group)
    for name in HOSTS:
        assert group.client(name).config_get("replica-priority")["replica-priority"] == "100"


def test_a_replica_that_is_behind_or_gone_calls_it_off_and_writes_go_on(group: Group) -> None:
    with writing(group) as writer:
        with pytest.raises(move.CalledOffError, match="redis-9"):
            made(group).run("redis-9")
        group.servers["redis-2"].end()
        with pytest.raises(move.CalledOffError, match="redis-2"):
            made(group).run("redis-2")
        count = len(writer.acked)
        until(lambda: len(writer.acked) > count + 20, seconds=10)
    assert group.primary() == "redis-1"
    assert set(writer.acked) <= there(group)


def test_without_all_sentinels_nothing_is_moved(group: Group) -> None:
    group.sentinels["redis-3"].end()
    with pytest.raises(move.CalledOffError, match="Sentinel of redis-3"):
        made(group).run(None)
    assert group.primary() == "redis-1"


def test_whoever_is_no_primary_moves_nothing(group: Group) -> None:
    wrong = move.Move(redis_node.places(group.settings("redis-2")))
    with pytest.raises(move.CalledOffError, match="no primary"):
        wrong.run(None)


def test_a_sentinel_that_refuses_calls_it_off_and_the_pause_ends(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = made(group)
    monkeypatch.setattr(wanted, "_await_moment", lambda chosen: _spoil(group, chosen))
    with writing(group) as writer, pytest.raises(move.CalledOffError, match="Sentinel refused"):
        wanted.run("redis-2")
    assert group.primary() == "redis-1"
    assert writer.gap < 2.0
    assert group.client("redis-2").config_get("replica-priority")["replica-priority"] == "100"


def _spoil(group: Group, chosen: object) -> None:
    """The Sentinel forgets the group in the last moment."""
    assert chosen
    group.sentinel("redis-2").execute_command("SENTINEL", "REMOVE", "shop-lab")


def test_a_sentinel_whose_answer_does_not_come_is_no_refusal(group: Group) -> None:
    """It fails over all the same, and what was written here meanwhile would be thrown away."""
    slow = at("writes are paused", lambda: frozen(group.sentinels["redis-2"], 0.8))
    with writing(group) as writer:
        told = made(group, say=slow).run("redis-2")
        count = len(writer.acked)
        until(lambda: len(writer.acked) > count + 20, seconds=10)
    assert (told.new, group.primary()) == ("redis-2", "redis-2")
    assert set(writer.acked) <= there(group)


def test_a_sentinel_that_never_heard_of_it_calls_it_off_as_soon_as_it_answers(group: Group) -> None:
    sentinel = group.sentinels["redis-2"]

    def away() -> None:
        sentinel.end()
        threading.Timer(1.0, sentinel.start).start()

    with writing(group) as writer:
        with pytest.raises(move.CalledOffError, match="did not begin"):
            made(group, say=at("writes are paused", away)).run("redis-2")
        count = len(writer.acked)
        until(lambda: len(writer.acked) > count + 20, seconds=10)
    assert group.primary() == "redis-1"
    assert writer.gap < 10.0
    assert set(writer.acked) <= there(group)


def test_an_old_primary_that_is_slow_is_told_until_it_follows(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less than what makes it dead, and far more than what an answer may take."""
    monkeypatch.setattr(move, "PAUSE_MS", 10_000)
    slow = at("Sentinel was told", lambda: frozen(group.servers["redis-1"], 2.0))
    with writing(group) as writer:
        assert made(group, say=slow).run("redis-2").new == "redis-2"
        count = len(writer.acked)
        until(lambda: len(writer.acked) > count + 20, seconds=10)
    assert group.client("redis-1").execute_command("ROLE")[0] == "slave"
    assert set(writer.acked) <= there(group)


def test_a_sentinel_that_chooses_another_one_is_followed_and_told_of(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that has not heard of the one it was to choose for a second."""
    sentinel = group.sentinel("redis-2")

    def is_seen() -> bool:
        rows = map(move.pairs, sentinel.execute_command("SENTINEL", "REPLICAS", CLUSTER))
        return any(row["slave-priority"] == "0" for row in rows)

    def barred(_: object) -> None:
        group.client("redis-2").config_set("replica-priority", "0")
        until(is_seen, seconds=15)

    wanted = made(group)
    monkeypatch.setattr(wanted, "_await_moment", barred)
    with writing(group) as writer, pytest.raises(move.UnclearError, match="instead of redis-2"):
        wanted.run("redis-2")
    until(group.is_whole, seconds=20)
    assert group.primary() == "redis-3"
    assert set(writer.acked) <= there(group)


def test_other_sentinels_that_find_a_paused_primary_dead_are_believed(group: Group) -> None:
    """What they publish waits with the writes, and so does their next PING."""
    sentinel = group.sentinels["redis-2"]
    with writing(group) as writer:
        # The Sentinel that was told is gone; whoever the others chose is followed.
        with suppress(move.UnclearError):
            made(group, say=at("writes are paused", sentinel.end)).run("redis-2")
        count = len(writer.acked)
        until(lambda: len(writer.acked) > count + 20, seconds=10)
    assert group.primary() != "redis-1"
    assert set(writer.acked) <= there(group)


def test_a_move_waits_for_a_replica_for_less_than_makes_the_primary_dead(group: Group) -> None:
    wanted = move.Move(redis_node.places(group.settings("redis-1")), down_after=0.7)
    slow = group.client("redis-2")
    chosen = move.rules.Candidate("redis-2", HOSTS["redis-2"], follows=True, behind=0)
    slow.execute_command("REPLICAOF", "127.88.0.9", 1)
    group.app("redis-1").rpush("ledger", 1)
    began = time.monotonic()
    with pytest.raises(move.CalledOffError, match="behind after the pause"):
        wanted._catch_up(slow, chosen)
    assert time.monotonic() - began < 0.7


def test_what_a_move_that_was_killed_left_preferred_is_not_taken_instead(group: Group) -> None:
    group.client("redis-3").config_set("replica-priority", move.BEST)
    assert made(group).run("redis-2").new == "redis-2"
    for name in HOSTS:
        assert group.client(name).config_get("replica-priority")["replica-priority"] == "100"


def test_a_mover_that_dies_leaves_writes_paused_for_seconds_only(group: Group) -> None:
    client = group.client("redis-1")
    client.execute_command("CLIENT", "PAUSE", move.PAUSE_MS, "WRITE")
    with writing(group) as writer:
        until(lambda: len(writer.acked) > 40, seconds=move.PAUSE_MS / 1000 + 10)
    assert set(writer.acked) <= there(group)


def test_a_move_whose_operator_is_gone_is_made_to_its_end(group: Group, hands: Hands) -> None:
    """What it says meets a closed pipe; an error there once ended the pause before the move."""
    reader, writer_end = os.pipe()
    os.close(reader)
    with writing(group) as writer:
        with os.fdopen(writer_end, "w") as nobody:
            tool = [hands.home("redis-1") / "node.py", "move", "--to", "redis-2"]
            done = subprocess.run(tool, stdout=nobody, stderr=nobody, timeout=60, check=False)
        assert group.primary() == "redis-2", done
        count = len(writer.acked)
        until(lambda: len(writer.acked) > count + 20, seconds=10)
    assert set(writer.acked) <= there(group)
    assert writer.gap < 10.0


def test_a_connection_that_ends_in_the_middle_of_a_move_is_no_host_that_was_not_reached(
    group: Group, hands: Hands, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = hands.run

    def cut_off(host: Any, command: str, **options: Any) -> Any:
        result = run(host, command, **options)
        if " move " in command:
            raise Unreachable("redis-1: no answer during `move`")
        return result

    monkeypatch.setattr(hands, "run", cut_off)
    with pytest.raises(HostFailed, match="no answer") as failed:
        operate.switchover(settings, "redis-2", confirmed=quiet, said=quiet)
    assert "goes on there without us" in failed.value.why
    assert group.primary() == "redis-2"


def test_writes_that_a_pause_did_not_hold_up_are_told_of(group: Group) -> None:
    pause = move.Paused(group.client("redis-1"))
    pause._asked = time.monotonic() - move.PAUSE_MS / 1000 - 1.0
    with pytest.raises(move.UnclearError, match="what was taken since is lost"):
        pause.check()


def test_sentinels_soon_ask_a_primary_that_is_new(group: Group) -> None:
    """At their own second a try, one planned move in the lab was two failovers."""
    for name in HOSTS:
        told = move.pairs(group.sentinel(name).execute_command("SENTINEL", "DEBUG"))
        assert int(told["PING-PERIOD"]) < DOWN_AFTER_MS / 2


def test_a_failover_that_is_asked_for_takes_the_role_from_a_primary_that_answers(
    group: Group, hands: Hands, settings: Settings
) -> None:
    with writing(group) as writer:
        until(lambda: len(writer.acked) > 20, seconds=10)
        asked: list[str] = []
        done = operate.failover(settings, confirmed=asked.append, said=quiet)
        count = len(writer.acked)
        until(lambda: len(writer.acked) > count + 20, seconds=10)
    assert "WRITES THAT NO REPLICA HAS ARE LOST" in asked[0]
    assert (done["old"], done["problems"]) == ("redis-1", [])
    assert done["new"] == group.primary() != "redis-1"
    assert group.is_whole()


def test_without_a_replica_to_take_over_no_failover_is_asked_for(
    group: Group, hands: Hands, settings: Settings
) -> None:
    for name in ("redis-2", "redis-3"):
        group.client(name).execute_command("CONFIG", "SET", "replica-priority", "0")
    with pytest.raises(Refused, match="no replica of redis-1"):
        operate.failover(settings, confirmed=quiet, said=quiet)
    assert group.primary() == "redis-1"


def test_a_primary_that_hangs_loses_the_role_by_command(
    group: Group, hands: Hands, settings: Settings
) -> None:
    """Where Sentinel is slow to act: here it would wait for half a minute."""
    for name in HOSTS:
        ask = group.sentinel(name).execute_command
        ask("SENTINEL", "SET", CLUSTER, "down-after-milliseconds", "30000")
    client = group.app("redis-1")
    client.set("kept", "1")
    assert client.wait(2, 5000) == 2
    group.servers["redis-1"].signal(signal.SIGSTOP)
    try:
        done = operate.failover(settings, confirmed=quiet, said=quiet)
        assert done["new"] == group.primary() != "redis-1"
        assert group.app(done["new"], decode_responses=True).get("kept") == "1"
    finally:
        group.servers["redis-1"].signal(signal.SIGCONT)
