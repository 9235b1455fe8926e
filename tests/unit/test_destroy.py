"""A fleet that is not there yet, and one that is taken away: what is refused, and what stays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fleets import Make, maker, planned, register_images, secret_values
from moto import mock_aws

from flotilla.aws.lease import Held
from flotilla.errors import FlotillaError, Refused
from flotilla.lock import Lock
from flotilla.provision import destroy, operate, parts
from flotilla.provision.world import World


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Make]:
    """A function that gives a World in an empty account with tested images."""
    make = maker(tmp_path)
    with mock_aws():
        register_images(make())
        yield make


def gone(world: World, *, data: bool) -> list[str]:
    """Destroy without being asked; what went, in words."""
    outcome = operate.take_away(
        world.settings, data=data, confirmed=lambda _plan: None, said=lambda _line: None
    )
    return [str(change) for change in outcome.changes]


def test_destroy_leaves_nothing_but_the_data(fleet):
    parts.converge(fleet())
    world = fleet()
    before = secret_values(world)
    gone(world, data=False)
    assert destroy.plan(world, data=False) == []
    assert destroy.kept(world) == [
        f"flotilla-lab-{name}" for name in ("artifacts", "backups", "audit", "backups-copy")
    ]
    assert secret_values(world) == before != {}
    assert world.ec2.describe_addresses()["Addresses"] == []
    assert gone(world, data=False) == []


def test_destroy_with_the_data_empties_every_version(fleet):
    parts.converge(fleet())
    world = fleet()
    for body in (b"old", b"new"):
        world.client("s3").put_object(Bucket="flotilla-lab-audit", Key="log", Body=body)
    gone(world, data=True)
    assert world.client("s3").list_buckets()["Buckets"] == []
    assert secret_values(world) == {}


def test_a_bucket_of_more_than_one_page_goes_whole(fleet):
    world = fleet()
    s3 = world.client("s3")
    there = {"LocationConstraint": world.settings.region}
    s3.create_bucket(Bucket="many", CreateBucketConfiguration=there)
    for number in range(destroy.PAGE + 1):
        s3.put_object(Bucket="many", Key=f"{number}", Body=b"")
    destroy.delete_bucket(world, "many")
    assert s3.list_buckets()["Buckets"] == []


def test_what_s3_keeps_is_told(fleet):
    world = fleet()
    s3 = world.client("s3")
    s3.create_bucket(
        Bucket="locked",
        ObjectLockEnabledForBucket=True,
        CreateBucketConfiguration={"LocationConstraint": world.settings.region},
    )
    until = datetime.now(UTC) + timedelta(days=1)
    s3.put_object(
        Bucket="locked",
        Key="law",
        Body=b"",
        ChecksumAlgorithm="SHA256",
        ObjectLockMode="COMPLIANCE",
        ObjectLockRetainUntilDate=until,
    )
    with pytest.raises(FlotillaError, match="keeps 1 objects of locked: law: AccessDenied"):
        destroy.delete_bucket(world, "locked")
    assert s3.list_object_versions(Bucket="locked")["Versions"]


def test_destroy_leaves_another_fleet_alone(fleet):
    other = fleet(name="other")
    register_images(other)
    parts.converge(other)
    parts.converge(fleet())
    gone(fleet(), data=True)
    assert planned(fleet(name="other")) == []


def test_a_fleet_comes_back_after_destroy_with_its_old_secrets(fleet):
    parts.converge(fleet())
    before = secret_values(fleet())
    gone(fleet(), data=False)
    parts.converge(fleet())
    assert planned(fleet()) == []
    assert secret_values(fleet()) == before


def test_without_a_tested_image_nothing_is_made(fleet):
    world = fleet(name="other")
    register_images(world, status="baked")
    with pytest.raises(Refused, match=r"tested.*bastion"):
        parts.plan(world)
    assert world.ec2.describe_vpcs(Filters=world.mine())["Vpcs"] == []


def test_what_was_planned_is_what_is_done(fleet):
    words = planned(fleet())
    assert [str(change) for change in parts.converge(fleet())] == words


def test_another_network_for_a_vpc_that_exists_is_refused(fleet):
    parts.converge(fleet())
    with pytest.raises(Refused, match=r"10\.77\.0\.0/16.*10\.99\.0\.0/16"):
        parts.plan(fleet(vpc_cidr="10.99.0.0/16"))


def test_a_no_to_the_plan_changes_nothing(fleet):
    def no(_plan):
        raise Refused("not confirmed")

    world = fleet()
    options = {"confirmed": no, "said": lambda _line: None}
    with pytest.raises(Refused):
        operate.provision(world.settings, **options)
    assert world.ec2.describe_vpcs(Filters=world.mine())["Vpcs"] == []
    parts.converge(fleet())
    with pytest.raises(Refused):
        operate.take_away(world.settings, data=True, **options)
    assert planned(fleet()) == []


def test_more_than_was_agreed_to_is_refused(fleet):
    parts.converge(fleet())
    world = fleet()
    secret = "/flotilla/lab/app/secret_key"
    world.client("ssm").delete_parameter(Name=secret)

    def reads_slowly(plan):
        assert [change.name for change in plan] == [secret]
        world.client("s3").delete_public_access_block(Bucket="flotilla-lab-audit")

    with pytest.raises(Refused, match="also: change bucket flotilla-lab-audit"):
        operate.provision(world.settings, confirmed=reads_slowly, said=lambda _line: None)
    assert secret not in secret_values(world)


def test_a_deploy_under_way_keeps_the_fleet_as_it_is(fleet):
    parts.converge(fleet())
    settings = fleet(app=4).settings
    with Lock(settings, "deploy", reason="deploy v2"), pytest.raises(Held, match="deploy"):
        operate.provision(settings, confirmed=lambda _plan: None, said=lambda _line: None)
    assert planned(fleet()) == []


def test_who_did_what_is_kept_in_the_audit_bucket(fleet):
    settings = fleet().settings
    operate.provision(settings, confirmed=lambda _plan: None, said=lambda _line: None)
    s3 = fleet().client("s3")
    (key,) = [one["Key"] for one in s3.list_objects_v2(Bucket="flotilla-lab-audit")["Contents"]]
    line = json.loads(s3.get_object(Bucket="flotilla-lab-audit", Key=key)["Body"].read())
    assert (line["command"], line["result"]) == ("fleet.provision", "done")
    assert "create instance mysql-1 (in eu-central-1a)" in line["changes"]
    assert not any(value in json.dumps(line) for value in secret_values(fleet()).values())
