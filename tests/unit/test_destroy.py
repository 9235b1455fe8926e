"""A fleet that is not there yet, and one that is taken away: what is refused, and what stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fleets import Make, maker, planned, register_images, secret_values
from moto import mock_aws

from flotilla.errors import Refused
from flotilla.provision import destroy, parts


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Make]:
    """A function that gives a World in an empty account with tested images."""
    make = maker(tmp_path)
    with mock_aws():
        register_images(make())
        yield make


def test_destroy_leaves_nothing_but_the_data(fleet):
    parts.converge(fleet())
    world = fleet()
    destroy.carry_out(world, data=False)
    assert destroy.plan(world, data=False) == []
    assert destroy.kept(world) == [
        f"flotilla-lab-{name}" for name in ("artifacts", "backups", "audit")
    ]
    assert len(secret_values(world)) == 9
    assert world.ec2.describe_addresses()["Addresses"] == []
    assert destroy.carry_out(world, data=False) == []


def test_destroy_with_the_data_empties_every_version(fleet):
    parts.converge(fleet())
    world = fleet()
    for body in (b"old", b"new"):
        world.client("s3").put_object(Bucket="flotilla-lab-audit", Key="log", Body=body)
    destroy.carry_out(world, data=True)
    assert world.client("s3").list_buckets()["Buckets"] == []
    assert secret_values(world) == {}


def test_destroy_leaves_another_fleet_alone(fleet):
    other = fleet(name="other")
    register_images(other)
    parts.converge(other)
    parts.converge(fleet())
    destroy.carry_out(fleet(), data=True)
    assert planned(fleet(name="other")) == []


def test_a_fleet_comes_back_after_destroy_with_its_old_secrets(fleet):
    parts.converge(fleet())
    before = secret_values(fleet())
    destroy.carry_out(fleet(), data=False)
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
