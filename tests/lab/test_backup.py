"""Backups of the standing fleet: taken while clients write, and what they are for."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from databases import Databases
from guests import needs_lab, until
from typed import fab, typed

from flotilla import inventory
from flotilla.aws import edge
from flotilla.aws.session import client
from flotilla.rules.archive_duty import ALARM_SECONDS
from flotilla.settings import Settings
from flotilla.traffic import Background

pytestmark = [needs_lab, pytest.mark.drill]

# What the recovery point may be behind, under load.
RECOVERY_SECONDS = 5.0


def archive() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(typed_any("backup.list", "--json"))["archive"]
    return found


def typed_any(*words: str) -> str:
    """Exit 1 only says that something is to be told."""
    try:
        return typed(*words).stdout
    except AssertionError:
        return typed(*words, code=1).stdout


def text_now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}"


@pytest.fixture(scope="module")
def backup() -> dict[str, Any]:
    """A full backup of now, taken as an operator takes it."""
    return fab("backup.run", "--yes")


def test_a_full_backup_is_taken_on_a_replica_and_is_sound(
    databases: Databases, backup: dict[str, Any]
) -> None:
    assert backup["host"] in databases.replicas
    assert backup["bytes"] > 2 * backup["stored_bytes"] > 0
    listed = fab("backup.list")
    assert listed["backups"][0]["id"] == backup["backup"]
    verified = fab("backup.verify", "--backup", backup["backup"])
    assert (verified["verified"], verified["wrong"]) == ([backup["backup"]], {})


def test_the_archive_is_seconds_behind_and_moves_with_the_primary(
    databases: Databases, backup: dict[str, Any]
) -> None:
    until(lambda: archive()["host"] == databases.primary, 30, "the primary archives")
    for number in range(20):
        databases.write(databases.primary, f"archived {number}")
        time.sleep(0.1)
    assert archive()["behind_seconds"] <= RECOVERY_SECONDS
    fab("mysql.switchover", "--yes")
    until(lambda: archive()["host"] == databases.primary, 30, "the new primary archives")
    assert archive()["behind_seconds"] < ALARM_SECONDS
    assert archive()["objection"] == ""


def test_a_dropped_table_comes_back_as_it_was(
    databases: Databases, backup: dict[str, Any], tmp_path: Path
) -> None:
    primary = databases.primary
    databases.write(primary, "kept")
    time.sleep(0.05)
    before = text_now()
    databases.sql(primary, "DROP TABLE ops.proof")
    until(lambda: archive()["behind_seconds"] < 1, 30, "it is archived")
    output = tmp_path / "proof.sql"
    told = fab("backup.extract", "ops.proof", "--to", before, "--output", str(output))
    assert told["bytes"] == output.stat().st_size
    assert "'kept'" in output.read_text()
    assert not databases.sql(primary, "SHOW TABLES FROM ops LIKE 'proof'")
    typed("backup.extract", "ops.proof", "--to", "2030-01-01 00:00:00", "--output",
          str(tmp_path / "none.sql"), code=3)  # fmt: skip
    assert not (tmp_path / "none.sql").exists()


def test_a_replica_is_restored_and_follows(databases: Databases, backup: dict[str, Any]) -> None:
    replica = databases.replicas[-1]
    databases.write(databases.primary, "before the restore")
    until(lambda: archive()["behind_seconds"] < 1, 30, "it is archived")
    told = fab("backup.restore", replica, "--yes")
    assert told["replayed"] > 0
    databases.opened.cluster.server(replica).close()  # that server was another one
    until(lambda: databases.member(replica)["role"] == "replica", 60, "it follows")
    databases.write(databases.primary, "after the restore")
    until(lambda: "after the restore" in databases.rows(replica), 30, "it applies")
    typed("backup.restore", databases.primary, "--yes", code=3)


def test_a_drill_proves_that_backups_restore(databases: Databases, backup: dict[str, Any]) -> None:
    with databases.clients() as writing:
        told = fab("backup.drill", "--yes")
        writing.stop()
    assert told["exact"], told["differ"]
    assert told["gap_seconds"] <= RECOVERY_SECONDS


def test_a_cluster_that_is_lost_comes_back_with_what_was_acknowledged(
    standing_fleet: Settings, databases: Databases, backup: dict[str, Any]
) -> None:
    settings = standing_fleet
    with Background("--url", edge.url(settings), "--rate", "40") as traffic:
        time.sleep(10)
        names = list(databases.hosts)
        written = {}
        for number in range(60):
            databases.write(databases.primary, f"lost {number}")
            written[f"lost {number}"] = time.time()
        gone = time.time()
        ids = [host.instance_id for host in databases.hosts.values()]
        client(settings, "ec2").terminate_instances(InstanceIds=ids)
        seen = traffic.stop()
    assert seen["served"] > 0
    told = fab("backup.recover", "--yes")
    assert told["primary"] in names
    rows = fab(
        "fleet.run", "--on", told["primary"], "--sudo", "mysql -N -e 'SELECT id FROM ops.proof'"
    )
    there = set(rows["hosts"][told["primary"]]["stdout"].split("\n"))
    missing = [at for row, at in written.items() if row not in there]
    assert all(gone - at <= RECOVERY_SECONDS for at in missing), (gone, missing)
    inventory.load(settings, refresh=True)
    with Background("--url", edge.url(settings), "--rate", "20", "--duration", "5") as after:
        time.sleep(5)
        figures = after.stop()
    assert figures["failed"] == 0
    assert figures["acked"] > 0
