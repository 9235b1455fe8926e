"""An Auto Scaling group of real hosts reaches its capacity and keeps it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from guests import (
    ZONES,
    Guest,
    Place,
    base_image,
    client,
    control,
    needs_lab,
    place,
    running,
    until,
)

pytestmark = needs_lab


@dataclass
class Fleet:
    place: Place
    name: str

    def __post_init__(self) -> None:
        self.asg = client("autoscaling")

    def members(self) -> dict[str, str]:
        """Zone by instance id, of the members in service."""
        said = self.asg.describe_auto_scaling_groups(AutoScalingGroupNames=[self.name])
        return {
            member["InstanceId"]: member["AvailabilityZone"]
            for member in said["AutoScalingGroups"][0]["Instances"]
            if member["LifecycleState"] == "InService"
        }

    def capacity(self, desired: int) -> None:
        self.asg.set_desired_capacity(AutoScalingGroupName=self.name, DesiredCapacity=desired)

    def settled(self, desired: int, *, without: str = "") -> list[Guest]:
        """The hosts once there are as many as wanted, all of them really up."""

        def there() -> list[Guest | None]:
            members = self.members()
            if len(members) != desired or without in members:
                return []
            return [running(instance_id) for instance_id in members]

        return until(lambda: (found := there()) and all(found) and found, 60, f"{desired} are up")


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with place() as where:
        name = f"t-{uuid.uuid4().hex[:8]}"
        where.ec2.create_launch_template(
            LaunchTemplateName=name,
            LaunchTemplateData={
                "ImageId": base_image(where.ec2),
                "InstanceType": "t3.micro",
                "SecurityGroupIds": [where.group()],
                "MetadataOptions": {"HttpTokens": "required", "InstanceMetadataTags": "enabled"},
            },
        )
        made = Fleet(where, name)
        made.asg.create_auto_scaling_group(
            AutoScalingGroupName=name,
            LaunchTemplate={"LaunchTemplateName": name, "Version": "$Latest"},
            VPCZoneIdentifier=",".join(where.subnets.values()),
            MinSize=0,
            MaxSize=3,
            DesiredCapacity=2,
            Tags=[{"Key": "Role", "Value": "app", "PropagateAtLaunch": True}],
        )
        try:
            yield made
        finally:
            made.asg.delete_auto_scaling_group(AutoScalingGroupName=name, ForceDelete=True)
            where.ec2.delete_launch_template(LaunchTemplateName=name)


def test_real_hosts_come_up_in_different_zones(fleet: Fleet) -> None:
    fleet.settled(2)
    assert len(set(fleet.members().values())) == 2
    assert set(fleet.members().values()) <= set(ZONES)


def test_a_host_that_loses_power_is_replaced_by_a_new_one(fleet: Fleet) -> None:
    victim = fleet.settled(2)[0]
    control("fault", {"kind": "kill", "target": victim.id})
    fleet.settled(2, without=victim.id)

    def struck() -> set[str]:
        return {fault["target"] for fault in control("status")["faults"]}

    until(lambda: victim.id not in struck(), 5, "the host takes its fault along")


def test_a_host_that_is_terminated_outside_is_replaced(fleet: Fleet) -> None:
    victim = fleet.settled(2)[0]
    fleet.place.ec2.terminate_instances(InstanceIds=[victim.id])
    fleet.settled(2, without=victim.id)


def test_a_member_knows_its_tags_and_its_group(fleet: Fleet) -> None:
    guest = fleet.settled(2)[0]
    said = fleet.place.ec2.describe_instances(InstanceIds=[guest.id])
    tags = {t["Key"]: t["Value"] for t in said["Reservations"][0]["Instances"][0]["Tags"]}
    assert tags["Role"] == "app"
    assert tags["aws:autoscaling:groupName"] == fleet.name


def test_capacity_grows_and_shrinks_and_the_hosts_with_it(fleet: Fleet) -> None:
    fleet.settled(2)
    fleet.capacity(3)
    grown = fleet.settled(3)
    assert len(set(fleet.members().values())) == 3
    fleet.capacity(0)
    until(lambda: not any(running_or_none(guest.id) for guest in grown), 60, "all hosts are gone")
    assert fleet.members() == {}


def running_or_none(instance_id: str) -> int | None:
    (row,) = [row for row in control("status")["instances"] if row["id"] == instance_id]
    return row["pid"]
