"""A place to build and try images: a security group, a key pair, and hosts that come and go.

Everything carries the tag BuildId, so that what a killed run left behind is found by it and removed
by whoever cleans up next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from flotilla.aws.errors import code
from flotilla.aws.session import client, described
from flotilla.aws.waiters import instances_in_state, paginate
from flotilla.errors import Refused, Unreachable
from flotilla.settings import Settings
from flotilla.wait import DeadlineError, until

TAG = "BuildId"
_GONE_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Workbench:
    """Where build hosts live while ``open_workbench`` is open."""

    build_id: str
    vpc_id: str
    subnet_id: str
    group_id: str
    key_name: str


@dataclass(frozen=True, slots=True)
class TestHost:
    """A host booted from an image under test."""

    instance_id: str
    address: str


@contextmanager
def open_workbench(
    settings: Settings, build_id: str, *, public_key: str, tags: Mapping[str, str]
) -> Iterator[Workbench]:
    """Make group and key; at the end, or on any failure, remove them and every host with the tag.

    Raises Refused when there is no network to build in.
    """
    ec2 = client(settings, "ec2")
    vpc_id, subnet_id = _network(settings)
    name = f"{settings.prefix}-bake-{build_id}"
    specification = _specification(["security-group"], {**tags, "Name": name, TAG: build_id})
    try:
        with described(settings, "make a security group to build images in"):
            group = ec2.create_security_group(
                GroupName=name,
                Description="SSH to build hosts of images, while they exist",
                VpcId=vpc_id,
                TagSpecifications=specification,
            )["GroupId"]
            ec2.authorize_security_group_ingress(
                GroupId=group,
                IpPermissions=[
                    {
                        "IpProtocol": "tcp",
                        "FromPort": 22,
                        "ToPort": 22,
                        "IpRanges": [{"CidrIp": cidr} for cidr in settings.ssh.allow_from],
                    }
                ],
            )
            ec2.import_key_pair(
                KeyName=name,
                PublicKeyMaterial=public_key.encode(),
                TagSpecifications=_specification(["key-pair"], {**tags, TAG: build_id}),
            )
        yield Workbench(build_id, vpc_id, subnet_id, group, name)
    finally:
        clear(settings, build_id)


def launch(
    settings: Settings,
    bench: Workbench,
    image_id: str,
    *,
    tags: Mapping[str, str],
    seconds: float = 120,
) -> TestHost:
    """Boot a host from an image, as hosts of a fleet are: IMDSv2 only. Raises Unreachable."""
    ec2 = client(settings, "ec2")
    with described(settings, f"boot {image_id}"):
        instance_id = ec2.run_instances(
            ImageId=image_id,
            InstanceType=settings.images.packer.type,
            MinCount=1,
            MaxCount=1,
            KeyName=bench.key_name,
            MetadataOptions={"HttpTokens": "required", "HttpEndpoint": "enabled"},
            NetworkInterfaces=[
                {
                    "DeviceIndex": 0,
                    "SubnetId": bench.subnet_id,
                    "Groups": [bench.group_id],
                    "AssociatePublicIpAddress": True,
                }
            ],
            TagSpecifications=_specification(["instance", "volume"], {**tags, TAG: bench.build_id}),
        )["Instances"][0]["InstanceId"]
    return TestHost(instance_id, _address(settings, instance_id, seconds))


def terminate(settings: Settings, instance_id: str) -> None:
    """Begin to terminate a host; ``clear`` waits for its end."""
    with described(settings, f"terminate {instance_id}"):
        client(settings, "ec2").terminate_instances(InstanceIds=[instance_id])


def clear(
    settings: Settings, build_id: str, *, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Remove hosts, key pairs and security groups of a bake; what is gone already is fine."""
    ec2 = client(settings, "ec2")
    tagged = [{"Name": f"tag:{TAG}", "Values": [build_id]}]
    hosts = _hosts(settings, tagged)
    with described(settings, f"clean up after bake {build_id}"):
        if hosts:
            ec2.terminate_instances(InstanceIds=hosts)
            instances_in_state(settings, hosts, "terminated", seconds=_GONE_SECONDS, sleep=sleep)
        for key in ec2.describe_key_pairs(Filters=tagged)["KeyPairs"]:
            ec2.delete_key_pair(KeyName=key["KeyName"])
        for group in ec2.describe_security_groups(Filters=tagged)["SecurityGroups"]:
            _delete_group(ec2, group["GroupId"], sleep)


def left_behind(settings: Settings) -> set[str]:
    """Bakes of this fleet and environment whose group still exists: running, or killed."""
    filters = [{"Name": "group-name", "Values": [f"{settings.prefix}-bake-*"]}]
    groups = paginate(
        settings, "ec2", "describe_security_groups", "SecurityGroups", Filters=filters
    )
    tags = [{tag["Key"]: tag["Value"] for tag in group.get("Tags", ())} for group in groups]
    return {one[TAG] for one in tags if TAG in one}


def _network(settings: Settings) -> tuple[str, str]:
    """(VPC, subnet): the subnet of fleet.images.packer.subnet_id, else one of the default VPC."""
    chosen = settings.images.packer.subnet_id
    filters = [{"Name": "subnet-id", "Values": [chosen]}] if chosen else []
    filters = filters or [{"Name": "default-for-az", "Values": ["true"]}]
    found = paginate(settings, "ec2", "describe_subnets", "Subnets", Filters=filters)
    subnets = sorted(found, key=lambda one: (one["AvailabilityZone"], one["SubnetId"]))
    if not subnets:
        raise Refused(
            f"subnet {chosen} does not exist in {settings.region}"
            if chosen
            else f"{settings.region} has no default VPC to build images in",
            untouched="Nothing was changed",
            next="set fleet.images.packer.subnet_id to a subnet with a route to the packages",
        )
    return subnets[0]["VpcId"], subnets[0]["SubnetId"]


def _hosts(settings: Settings, filters: list[dict[str, Any]]) -> list[str]:
    alive = {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}
    found = paginate(
        settings, "ec2", "describe_instances", "Reservations", Filters=[*filters, alive]
    )
    return [one["InstanceId"] for reservation in found for one in reservation["Instances"]]


def _address(settings: Settings, instance_id: str, seconds: float) -> str:
    private = settings.images.packer.ssh_interface == "private_ip"
    wanted = "PrivateIpAddress" if private else "PublicIpAddress"

    def known() -> str | None:
        filters = [{"Name": "instance-id", "Values": [instance_id]}]
        for reservation in paginate(
            settings, "ec2", "describe_instances", "Reservations", Filters=filters
        ):
            for instance in reservation["Instances"]:
                if instance["State"]["Name"] == "running":
                    return str(instance.get(wanted, ""))
        return None

    try:
        return until(known, seconds=seconds, every=0.5)
    except DeadlineError:
        raise Unreachable(f"{instance_id} is not running after {seconds:g} s") from None


def _delete_group(ec2: Any, group_id: str, sleep: Callable[[float], None]) -> None:
    """A terminated host lets go of its group some seconds later than it says it is gone."""

    def deleted() -> bool:
        try:
            ec2.delete_security_group(GroupId=group_id)
        except ClientError as error:
            if code(error) == "DependencyViolation":
                return False
            if not code(error).startswith("InvalidGroup"):
                raise
        return True

    with suppress(DeadlineError):  # the next bake finds it by its name
        until(deleted, seconds=60, every=2, sleep=sleep)


def _specification(resources: list[str], tags: Mapping[str, str]) -> list[dict[str, Any]]:
    pairs = [{"Key": key, "Value": value} for key, value in tags.items()]
    return [{"ResourceType": resource, "Tags": pairs} for resource in resources]
