"""Backups of the standing fleet: taken while clients write, and what they are for."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from backups import RECOVERY_SECONDS, archive
from databases import Databases
from guests import needs_lab, until
from typed import fab, typed

from flotilla.aws.session import client
from flotilla.backup import operate, stored
from flotilla.rules import backup as names
from flotilla.rules.archive_duty import ALARM_SECONDS
from flotilla.rules.status_data import ARCHIVED_SECONDS
from flotilla.settings import Settings

pytestmark = [needs_lab, pytest.mark.drill]


def is_done(*words: str) -> bool:
    """Whether it could be done now; fails unless the reason is that somebody else is at it."""
    try:
        typed(*words)
    except AssertionError:
        typed(*words, code=3)
        return False
    return True


def text_now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}"


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


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(80, marks=pytest.mark.timeout(700)),
        pytest.param(600, marks=[pytest.mark.thorough, pytest.mark.timeout(1500)]),
    ],
)
def test_s3_away_is_told_of_and_costs_nothing(
    standing_fleet: Settings, databases: Databases, backup: dict[str, Any], seconds: int
) -> None:
    """Meanwhile the archiver is killed, and the primary changes."""
    # Of hosts that are new, nobody is told that they have no archive yet.
    born = min(host.launched_at for host in databases.hosts.values())
    old = born + timedelta(seconds=ARCHIVED_SECONDS)
    until(lambda: datetime.now(UTC) > old, ARCHIVED_SECONDS, "the hosts are not new any more")
    began = datetime.now(UTC)
    with databases.clients() as writing:
        databases.strike("api", "api-outage", action="s3")
        end = time.time() + seconds
        databases.watchers("kill --signal=KILL", databases.primary)
        until(lambda: behind(standing_fleet, began) > ALARM_SECONDS, 100, "the alarm's metric")
        told = [one["what"] for one in findings() if one["subject"] == "backups"]
        assert any("S3 does not tell" in what for what in told), told
        assert any("s behind (limit" in what for what in told), told
        fab("mysql.switchover", "--yes", "--writers", "0")
        until(lambda: time.time() > end, seconds, "the time is over")
        databases.heal("api")
        until(lambda: archive()["behind_seconds"] <= RECOVERY_SECONDS, 60, "it has caught up")
        writing.stop()
    assert archive()["objection"] == ""
    assert fab("backup.drill", "--yes")["exact"]


def behind(settings: Settings, since: datetime) -> float:
    """The largest value of the metric that the alarm is on."""
    found = client(settings, "cloudwatch").get_metric_data(
        MetricDataQueries=[
            {
                "Id": "m",
                "MetricStat": {
                    "Metric": {
                        "Namespace": settings.cloudwatch.namespace,
                        "MetricName": "ArchiveBehindSeconds",
                    },
                    "Period": 60,
                    "Stat": "Maximum",
                },
            }
        ],
        StartTime=since,
        EndTime=datetime.now(UTC),
    )["MetricDataResults"]
    return max((value for one in found for value in one["Values"]), default=0.0)


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


def test_a_drill_proves_that_backups_restore(
    standing_fleet: Settings, databases: Databases, backup: dict[str, Any]
) -> None:
    with databases.clients() as writing:
        told = fab("backup.drill", "--yes")
        writing.stop()
    assert told["exact"], told["differ"]
    assert told["gap_seconds"] <= RECOVERY_SECONDS
    until(lambda: not scratch_hosts(standing_fleet), 30, "the drill's host is gone")
    assert drill_findings() == []
    # What the timer runs: not again on the same day.
    unit = "flotilla-drill.service"
    replica = databases.replicas[0]
    databases.root(replica, f"systemctl start {unit}")
    said = databases.root(replica, f"journalctl -u {unit} -n 5 -o cat --no-pager")
    assert '"made": false' in said


def test_a_drill_that_fails_is_told_of_until_one_is_exact_again(
    standing_fleet: Settings, databases: Databases, backup: dict[str, Any]
) -> None:
    store, keys = operate.bucket(standing_fleet), operate.ring(standing_fleet)
    newest = stored.manifests(store, keys)[-1].id
    volume = next(e.key for e in store.list(f"{names.FULL}{newest}/") if "volume" in e.key)
    whole = store.read(volume)
    s3 = client(standing_fleet, "s3")
    damaged = whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]
    s3.put_object(Bucket=store.name, Key=volume, Body=damaged)
    try:
        told = fab("backup.drill", "--yes", code=2)
        assert volume in told["error"]["what"]
        (finding,) = drill_findings()
        assert volume in finding["what"]
        assert not scratch_hosts(standing_fleet)
    finally:
        s3.put_object(Bucket=store.name, Key=volume, Body=whole)
    assert fab("backup.drill", "--yes")["exact"]
    assert drill_findings() == []


def test_a_host_that_a_dead_drill_left_behind_is_ended_by_the_next(
    standing_fleet: Settings, databases: Databases, backup: dict[str, Any]
) -> None:
    replica = databases.replicas[0]
    tool = "/usr/local/sbin/flotilla-backup drill"
    databases.root(replica, f"systemd-run --unit=doomed --collect {tool}")
    until(lambda: scratch_hosts(standing_fleet), 60, "the drill launched its host")
    databases.root(replica, "systemctl kill --signal=KILL doomed.service")
    (left,) = scratch_hosts(standing_fleet)
    # The lease of the dead one has to run out.
    until(lambda: is_done("backup.drill", "--yes"), 180, "another drill")
    assert left not in scratch_hosts(standing_fleet)


def scratch_hosts(settings: Settings) -> list[str]:
    found = client(settings, "ec2").describe_instances(
        Filters=[
            {"Name": "tag:Role", "Values": ["restore"]},
            {"Name": "instance-state-name", "Values": ["pending", "running", "stopping"]},
        ]
    )["Reservations"]
    return [one["InstanceId"] for r in found for one in r["Instances"]]


def findings() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(typed("fleet.status", "--json", code=(0, 1)).stdout)[
        "findings"
    ]
    return found


def drill_findings() -> list[dict[str, Any]]:
    return [one for one in findings() if "drill" in one["what"]]
