"""The ledger's writers on real servers: what they are told, and what a drill makes of it."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

import pytest
from redisd.group import HOSTS, PORT, Group

from flotilla.agent.bundle import loaded
from flotilla.agent.ledger_redis import Order
from flotilla.ledger import Ledger, new_run
from flotilla.rules.ledger import Entry, Fate
from flotilla.wait import until

# A write that waits for replicas which are not there is given up after so long.
WAIT_MS = 200


def shell(command: str, stdin: str, seconds: float) -> str:
    """As SSH would run it on a host."""
    return subprocess.run(
        ["sh", "-c", command],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=True,
    ).stdout


def order(group: Group, name: str, **more: object) -> Order:
    run = new_run()
    made = Order(
        run=run,
        host=HOSTS[name],
        port=PORT,
        user="app",
        password="app",
        writers=2,
        pause_seconds=0.01,
        limit_seconds=60.0,
        label="app-1",
        key=f"flotilla_ledger:{run}",
        authority=group.authority.root.public(),
    )
    return replace(made, **more)  # type: ignore[arg-type]


@contextmanager
def writing(wanted: Order) -> Iterator[Ledger]:
    with Ledger("here", shell, wanted) as ledger:
        time.sleep(0.5)
        yield ledger


def left(wanted: Order, host: str) -> dict[str, str]:
    """What is there, as a drill reads it and takes it away."""
    command, package = loaded("flotilla.agent.redis_rows", wanted.carry)
    there = asdict(replace(wanted, host=HOSTS[host]))
    found: dict[str, str] = json.loads(shell(command, f"{package}\n{json.dumps(there)}\n", 20.0))
    return found


def fates(entries: list[Entry]) -> set[Fate]:
    return {entry.fate for entry in entries}


@pytest.mark.timeout(120)
def test_what_is_acknowledged_is_there_with_who_took_it_and_is_taken_away(group: Group) -> None:
    wanted = order(group, "redis-1", wait_replicas=1, wait_ms=WAIT_MS)
    with writing(wanted) as ledger:
        told = ledger.stop()
    assert len(told) > 20
    assert fates(told) == {Fate.ACKED}
    assert {entry.server for entry in told} == {HOSTS["redis-1"]}
    found = left(wanted, "redis-1")
    assert found == {entry.id: HOSTS["redis-1"] for entry in told}
    assert left(wanted, "redis-1") == {}


@pytest.mark.timeout(120)
def test_a_refusal_of_the_server_is_a_write_that_failed(group: Group) -> None:
    with writing(order(group, "redis-2", is_probe=True)) as ledger:
        told = ledger.stop()
    assert fates(told) == {Fate.FAILED}
    assert {entry.error for entry in told} == {"ReadOnlyError"}


@pytest.mark.timeout(120)
def test_a_write_that_no_replica_has_in_time_is_not_acknowledged(group: Group) -> None:
    wanted = order(group, "redis-1", wait_replicas=1, wait_ms=WAIT_MS)
    with writing(wanted) as ledger:
        for name in ("redis-2", "redis-3"):
            group.servers[name].signal(signal.SIGSTOP)
        stopped = time.time()
        # Replicas that do not answer for so long count no more: the primary refuses.
        until(lambda: good_replicas(group) == 0, seconds=20, every=0.1)
        time.sleep(0.5)
        told = ledger.stop()
        for name in ("redis-2", "redis-3"):
            group.servers[name].signal(signal.SIGCONT)
    after = [entry for entry in told if entry.started > stopped + 0.1]
    assert Fate.ACKED not in fates(after)
    waited = [entry for entry in after if entry.fate is Fate.UNKNOWN]
    assert {entry.error for entry in waited} == {"0 replicas have it"}
    refused = [entry for entry in after if entry.fate is Fate.FAILED]
    assert {entry.error for entry in refused} == {"ResponseError NOREPLICAS"}
    found = left(wanted, "redis-1")
    assert {entry.id for entry in told if entry.fate is Fate.ACKED} <= found.keys()
    assert not {entry.id for entry in refused} & found.keys()


@pytest.mark.timeout(120)
def test_a_server_that_dies_leaves_its_last_writes_open(group: Group) -> None:
    wanted = order(group, "redis-1")
    with writing(wanted) as ledger:
        group.servers["redis-1"].end()
        time.sleep(0.5)
        told = ledger.stop()
    assert told[0].fate is Fate.ACKED
    assert {entry.fate for entry in told[-5:]} == {Fate.FAILED}
    assert "ConnectionError" in {entry.error for entry in told}


def good_replicas(group: Group) -> int:
    return int(group.client("redis-1").info("replication")["min_slaves_good_slaves"])
