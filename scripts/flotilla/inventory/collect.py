"""Ask EC2 which instances belong to the fleet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flotilla.aws.session import client, described
from flotilla.rules.hostnames import Named, Tagged, named
from flotilla.settings import ROLES, SCRATCH, Settings
from flotilla.snapshot import Host, Snapshot, ordered

# The most DescribeInstances gives in one answer.
PAGE = 1000

STATES = ("pending", "running", "stopping", "stopped")

# Behind each miss stands a snapshot, so an outage is better noticed at once than waited out.
ATTEMPTS = 2


def collect(settings: Settings, *, now: float) -> Snapshot:
    """Every instance of the fleet, all regions at once; ``now`` in seconds since the epoch.

    Raises what ``flotilla.aws.session.described`` raises: Unreachable when the API is down.
    """
    regions = (settings.region, *settings.inventory.other_regions)
    with ThreadPoolExecutor(max_workers=len(regions)) as pool:
        pages = pool.map(lambda region: _instances(settings, region), regions)
        return snapshot([one for page in pages for one in page], now=now)


def snapshot(instances: Sequence[Mapping[str, Any]], *, now: float) -> Snapshot:
    """A snapshot from instances in the shape that boto3's DescribeInstances gives."""
    instances = [one for one in instances if _tags(one).get("Role") not in SCRATCH]
    tags = [_tags(one) for one in instances]
    names, problems = named([_tagged(*pair) for pair in zip(instances, tags, strict=True)], ROLES)
    hosts = (
        _host(one, theirs, names[one["InstanceId"]])
        for one, theirs in zip(instances, tags, strict=True)
    )
    return Snapshot(now, ordered(hosts, ROLES), tuple(problems))


def filters(settings: Settings) -> list[dict[str, Any]]:
    """What EC2 is asked to leave out, so that other people's instances never cross the wire."""
    tags = {"Fleet": settings.name, "Env": settings.env, "ManagedBy": "flotilla"}
    return [
        *({"Name": f"tag:{key}", "Values": [value]} for key, value in tags.items()),
        {"Name": "instance-state-name", "Values": list(STATES)},
    ]


def _instances(settings: Settings, region: str) -> list[Mapping[str, Any]]:
    there = settings.elsewhere(region)
    with described(there, f"list the instances of {settings.prefix} in {region}"):
        pages: Iterable[Any] = (
            client(there, "ec2", attempts=ATTEMPTS)
            .get_paginator("describe_instances")
            .paginate(Filters=filters(settings), PaginationConfig={"PageSize": PAGE})
        )
        return [
            instance
            for page in pages
            for reservation in page["Reservations"]
            for instance in reservation["Instances"]
        ]


def _tags(instance: Mapping[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in instance.get("Tags", ())}


def _tagged(instance: Mapping[str, Any], tags: Mapping[str, str]) -> Tagged:
    return Tagged(
        instance["InstanceId"],
        tags.get("Role", ""),
        tags.get("Name", ""),
        "aws:autoscaling:groupName" in tags,
    )


def _host(instance: Mapping[str, Any], tags: Mapping[str, str], name: Named) -> Host:
    return Host(
        name=name.name,
        instance_id=instance["InstanceId"],
        role=tags.get("Role", ""),
        number=name.number,
        zone=instance["Placement"]["AvailabilityZone"],
        state=instance["State"]["Name"],
        private_ip=instance.get("PrivateIpAddress") or None,
        public_ip=instance.get("PublicIpAddress") or None,
        image_id=instance["ImageId"],
        type=instance["InstanceType"],
        launched_at=instance["LaunchTime"],
        tags=tags,
        asg=tags.get("aws:autoscaling:groupName"),
    )
