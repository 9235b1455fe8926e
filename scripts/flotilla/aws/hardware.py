"""What EC2 says of an instance type, and of instances as hardware."""

from __future__ import annotations

from collections.abc import Iterable

from botocore.exceptions import ClientError

from flotilla.aws.errors import code
from flotilla.aws.session import client, described
from flotilla.aws.waiters import paginate
from flotilla.errors import BadOption
from flotilla.rules.redis_resize import Machine, Size
from flotilla.settings import Settings
from flotilla.snapshot import Host

_UNKNOWN = {"InvalidInstanceType", "InvalidParameterValue"}


def size(settings: Settings, name: str) -> Size:
    """An instance type of this region. Raises BadOption for one that EC2 does not know."""
    with described(settings, f"look up the instance type {name}"):
        ec2 = client(settings, "ec2")
        try:
            found = ec2.describe_instance_types(InstanceTypes=[name])["InstanceTypes"]
        except ClientError as error:
            if code(error) not in _UNKNOWN:
                raise
            found = []
        if not found:
            raise BadOption(
                f"there is no instance type {name!r} in {settings.region}",
                untouched="Nothing was changed",
                next="aws ec2 describe-instance-types",
            )
    offers = paginate(
        settings,
        "ec2",
        "describe_instance_type_offerings",
        "InstanceTypeOfferings",
        LocationType="availability-zone",
        Filters=[{"Name": "instance-type", "Values": [name]}],
    )
    return Size(
        name,
        int(found[0]["MemoryInfo"]["SizeInMiB"]),
        frozenset(found[0]["ProcessorInfo"]["SupportedArchitectures"]),
        frozenset(offer["Location"] for offer in offers),
    )


def machines(settings: Settings, hosts: Iterable[Host]) -> list[Machine]:
    """The hosts as EC2 sees them now, in their order; one that EC2 does not show is left out."""
    by_id = {host.instance_id: host for host in hosts}
    if not by_id:
        return []
    wanted = {"Name": "instance-id", "Values": list(by_id)}
    pages = paginate(settings, "ec2", "describe_instances", "Reservations", Filters=[wanted])
    found = {one["InstanceId"]: one for page in pages for one in page["Instances"]}
    return [
        Machine(
            name=host.name,
            instance_id=key,
            type=found[key]["InstanceType"],
            state=found[key]["State"]["Name"],
            zone=found[key]["Placement"]["AvailabilityZone"],
            architecture=found[key]["Architecture"],
        )
        for key, host in by_id.items()
        if key in found
    ]
