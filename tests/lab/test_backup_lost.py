"""Everything is gone but what S3 has: a cluster, a region."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from backups import RECOVERY_SECONDS, archive
from databases import Databases
from guests import needs_lab, until
from typed import fab

from flotilla import inventory
from flotilla.aws import edge
from flotilla.aws.session import client
from flotilla.mysql.session import session
from flotilla.settings import Settings
from flotilla.traffic import Background

pytestmark = [needs_lab, pytest.mark.drill]


@pytest.fixture
def doomed(standing_fleet: Settings) -> Iterator[Databases]:
    """The database hosts, whole at the beginning; the test does away with them, and with the
    sessions on them.
    """
    with session(standing_fleet, fresh=True) as opened:
        made = Databases(standing_fleet, opened)
        made.make_whole()
        yield made


def test_a_cluster_that_is_lost_comes_back_with_what_was_acknowledged(
    standing_fleet: Settings, doomed: Databases, backup: dict[str, Any]
) -> None:
    settings = standing_fleet
    with Background("--url", edge.url(settings), "--rate", "40") as traffic:
        time.sleep(10)  # of writes before the end
        names = list(doomed.hosts)
        written = {}
        for number in range(60):
            doomed.write(doomed.primary, f"lost {number}")
            written[f"lost {number}"] = time.time()
        gone = time.time()
        ids = [host.instance_id for host in doomed.hosts.values()]
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
        time.sleep(5)  # of writes, which have to be served
        figures = after.stop()
    assert figures["failed"] == 0
    assert figures["acked"] > 0


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_what_a_lost_region_had_comes_back_from_the_copy(
    standing_fleet: Settings, doomed: Databases, backup: dict[str, Any]
) -> None:
    """Everything of the fleet goes but what S3 copied to the other region, and the keys there."""
    doomed.write(doomed.primary, "before the region was lost")
    written = time.time()
    # How far behind it is, is said every 2 s.
    until(lambda: time.time() - archive()["behind_seconds"] > written, 30, "it is archived")
    settings = standing_fleet
    there = settings.elsewhere(settings.backups.copy_region or "")
    s3, salvaged, parameter = client(there, "s3"), f"{settings.prefix}-salvaged", "/salvaged/keys"
    s3.create_bucket(
        Bucket=salvaged, CreateBucketConfiguration={"LocationConstraint": there.region}
    )
    copy = settings.name_of("backups-copy")
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=copy):
        for one in page["Contents"]:
            source = {"Bucket": copy, "Key": one["Key"]}
            s3.copy_object(Bucket=salvaged, Key=one["Key"], CopySource=source)
    ssm = client(there, "ssm")
    ring = ssm.get_parameter(Name=settings.parameter("mysql", "backup_keys"), WithDecryption=True)[
        "Parameter"
    ]["Value"]
    ssm.put_parameter(Name=parameter, Value=ring, Type="SecureString", Overwrite=True)

    fab("fleet.destroy", "--data", "--yes", settings.name)
    fab("fleet.provision", "--yes")
    words = ("--bucket", salvaged, "--keys", parameter, "--region", there.region, "--yes")
    adopted = fab("backup.adopt", *words)
    assert adopted["backups"] >= 1
    assert fab("backup.adopt", *words)["objects"] == 0
    told = fab("backup.recover", "--yes")
    rows = fab(
        "fleet.run", "--on", told["primary"], "--sudo", "mysql -N -e 'SELECT id FROM ops.proof'"
    )
    assert "before the region was lost" in rows["hosts"][told["primary"]]["stdout"].split("\n")
    assert fab("mysql.status")["primary"] == told["primary"]
    assert fab("backup.drill", "--yes")["exact"]
