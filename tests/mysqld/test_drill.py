"""The witnesses of a drill on real servers: writers, probes, and the crowd that takes every
connection.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import Any

import pymysql
import pytest
from mysqld.server import Mysqld
from mysqld.trio import Trio

from flotilla.agent.bundle import loaded
from flotilla.agent.ledger_mysql import Order
from flotilla.drill.mysql_clients import PROBE_SECONDS
from flotilla.drill.mysql_cluster import disorder
from flotilla.drill.mysql_faults import CROWD
from flotilla.mysql.ledger import Ledger, forget, order, rows
from flotilla.rules.drill_writes import Seen, figures
from flotilla.rules.ledger import Fate

LOOK_SECONDS = 2.0


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


class Witnesses:
    """Two writers to the primary of the beginning, and a probe beside every server."""

    def __init__(self, trio: Trio) -> None:
        self._trio = trio
        self._old = trio.primary
        self._base = order(trio.settings, trio.secrets, pause_seconds=0.02, writers=2)
        self._begun = time.time()
        self.writers = self._ledger(self._old, replace(self._base, label="app-1"))
        self.probes = {
            name: self._ledger(
                server,
                replace(
                    self._base, label=name, writers=1, pause_seconds=PROBE_SECONDS, is_probe=True
                ),
            )
            for name, server in trio.servers.items()
        }

    @staticmethod
    def _ledger(server: Mysqld, wanted: Order) -> Ledger:
        return Ledger(server.name, shell, replace(wanted, host=server.address))

    def figures(self) -> dict[str, Any]:
        """Their ledger, closed against the primary of the record."""
        ended = time.time()
        primary = self._trio.primary.session()
        uuids = {self._trio.rows(n, "SELECT @@server_uuid AS u")[0]["u"]: n for n in self.alive}
        told = {"app-1": self.writers.stop()}
        seen = Seen(
            clients=told,
            probes={name: probe.stop() for name, probe in self.probes.items()},
            found=rows(primary, self._base),
            struck=self._begun,
            healed=ended,
            ended=ended,
            converged=ended,
            old=self._old.name,
            new=self._trio.primary.name,
            fate=(),
            names=uuids,
        )
        forget(primary, self._base)
        primary.close()
        return figures(seen)

    @property
    def alive(self) -> list[str]:
        return [name for name, server in self._trio.servers.items() if server.is_running]


@contextmanager
def witnessed(trio: Trio) -> Iterator[Witnesses]:
    made = Witnesses(trio)
    with ExitStack() as stack:
        stack.enter_context(made.writers)
        for probe in made.probes.values():
            stack.enter_context(probe)
        time.sleep(1.0)
        yield made


def test_a_healthy_cluster_loses_nothing_and_one_server_takes_writes(trio: Trio) -> None:
    with witnessed(trio) as seen:
        time.sleep(LOOK_SECONDS)
        told = seen.figures()
    assert told["acked"] > 50
    assert (told["lost"], told["dual_writable_seconds"], told["failed"]) == (0, 0, 0)
    assert set(told["writable"]) == {trio.primary.name}
    assert seen.writers.stop()[0].server in {
        row["uuid"] for row in trio.rows(trio.primary.name, "SELECT @@server_uuid AS uuid")
    }
    for replica in trio.replicas:
        refused = seen.probes[replica.name].stop()
        assert {entry.fate for entry in refused} == {Fate.FAILED}
        assert {entry.error for entry in refused} == {"OperationalError 1290"}


def test_two_servers_that_take_writes_are_seen_and_what_the_wrong_one_took_is_lost(
    trio: Trio,
) -> None:
    rogue = trio.replicas[0].name
    with witnessed(trio) as seen:
        trio.rows(rogue, "SET GLOBAL super_read_only = OFF")
        trio.rows(rogue, "SET GLOBAL read_only = OFF")
        time.sleep(LOOK_SECONDS)
        trio.rows(rogue, "SET GLOBAL super_read_only = ON")
        told = seen.figures()
    assert told["dual_writable_seconds"] == pytest.approx(LOOK_SECONDS, abs=0.5)
    assert set(told["writable"]) == {trio.primary.name, rogue}
    assert told["lost"] > 0


def test_what_is_let_through_without_an_acknowledgement_is_seen_to_be_lost(trio: Trio) -> None:
    """Commits wait, then waiting is switched off: clients get OK for what nobody else has."""
    old = trio.primary
    with witnessed(trio) as seen:
        for replica in trio.replicas:
            trio.rows(replica.name, "STOP REPLICA IO_THREAD")
        time.sleep(1.0)
        trio.rows(old.name, "SET GLOBAL rpl_semi_sync_source_enabled = OFF")
        time.sleep(0.5)
        old.kill()
        entries = seen.writers.stop()
    acked = {entry.id for entry in entries if entry.fate is Fate.ACKED}
    assert acked - _ids(trio, trio.replicas[0].name)


def _ids(trio: Trio, name: str) -> set[str]:
    database = trio.settings.mysql.database
    return {row["id"] for row in trio.rows(name, f"SELECT id FROM {database}.flotilla_ledger")}


def test_a_killed_primary_s_writes_in_flight_are_unknown_and_none_of_the_others_is(
    trio: Trio,
) -> None:
    old = trio.primary
    with witnessed(trio) as seen:
        old.kill()
        time.sleep(1.0)
        entries = seen.writers.stop()
    assert entries[-1].fate is Fate.FAILED
    assert entries[-1].error == "OperationalError 2003"
    unknown = [entry for entry in entries if entry.fate is Fate.UNKNOWN]
    assert len(unknown) <= 2, "a writer has one write in flight"


def test_a_cluster_is_in_order_until_its_primary_is_gone(trio: Trio) -> None:
    with trio.cluster() as cluster:
        assert disorder(cluster.look(trio.record), trio.record) == ""
        trio.rows(trio.replicas[1].name, "STOP REPLICA IO_THREAD")
        assert trio.replicas[1].name in disorder(cluster.look(trio.record), trio.record)
        record = trio.record
        trio.primary.kill()
        assert "was not seen" in disorder(cluster.look(record), record)


def test_a_crowd_takes_every_connection_and_gives_them_back(trio: Trio) -> None:
    primary, known = trio.primary, trio.secrets
    user = trio.settings.mysql.user
    wanted = replace(order(trio.settings, known), host=primary.address, writers=CROWD)
    command, package = loaded("flotilla.agent.crowd", wanted.carry)
    process = subprocess.Popen(["sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(f"{package}\n{json.dumps(asdict(wanted))}\n".encode())
        process.stdin.flush()
        assert process.stdout.readline().startswith(b"full ")
        with pytest.raises(pymysql.err.OperationalError, match="1040"):
            primary.client(user, known.passwords[user])
        assert trio.rows(primary.name, "SELECT 1 AS one"), "root has a place of its own"
        process.stdin.close()
        assert process.wait(10) == 0
        primary.client(user, known.passwords[user]).close()
    finally:
        process.kill()
