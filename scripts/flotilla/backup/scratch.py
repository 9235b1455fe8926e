"""Hosts that live for one restore drill: launched, looked at, ended, through the EC2 API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from botocore import exceptions as boto

from flotilla.errors import FlotillaError, Unreachable
from flotilla.rules.restore_drill import ROLE

_ALIVE = ["pending", "running", "stopping", "stopped"]
_TAGGED = ("instance", "volume", "network-interface")


class Scratch:
    """The scratch hosts of a fleet. ``ec2`` is a boto3 client."""

    def __init__(self, ec2: Any, fleet: str, env: str) -> None:
        self._ec2 = ec2
        self._template = f"{fleet}-{env}-{ROLE}"
        self._tags = {"Fleet": fleet, "Env": env, "Role": ROLE}

    @contextmanager
    def launched(self, beside: str, user_data: str) -> Iterator[str]:
        """A host in the subnet of another one; its id. It is gone afterwards, whatever happens."""
        with _described("launch a scratch host"):
            near = self._ec2.describe_instances(InstanceIds=[beside])["Reservations"]
            made = self._ec2.run_instances(
                LaunchTemplate={"LaunchTemplateName": self._template, "Version": "$Default"},
                SubnetId=near[0]["Instances"][0]["SubnetId"],
                MinCount=1,
                MaxCount=1,
                InstanceInitiatedShutdownBehavior="terminate",
                UserData=user_data,
                TagSpecifications=[
                    {"ResourceType": kind, "Tags": _pairs(self._tags | _NAMED)} for kind in _TAGGED
                ],
            )["Instances"][0]["InstanceId"]
        try:
            yield str(made)
        finally:
            self._end([made])

    def is_alive(self, instance_id: str) -> bool:
        """Whether it may still answer. Raises Unreachable."""
        with _described(f"look up {instance_id}"):
            found = self._ec2.describe_instances(InstanceIds=[instance_id])["Reservations"]
        return any(one["State"]["Name"] in _ALIVE for r in found for one in r["Instances"])

    def sweep(self) -> list[str]:
        """End hosts that an earlier drill left behind, by their tags; their ids."""
        filters = [{"Name": f"tag:{key}", "Values": [value]} for key, value in self._tags.items()]
        filters.append({"Name": "instance-state-name", "Values": _ALIVE})
        with _described("look for scratch hosts"):
            found = self._ec2.describe_instances(Filters=filters)["Reservations"]
        # Read once more: a filter that an API ignores must not cost another host.
        left = [
            str(one["InstanceId"])
            for r in found
            for one in r["Instances"]
            if {tag["Key"]: tag["Value"] for tag in one.get("Tags", ())}.items()
            >= self._tags.items()
        ]
        if left:
            self._end(left)
        return left

    def _end(self, ids: list[str]) -> None:
        with _described(f"terminate {', '.join(ids)}"), suppress(boto.ClientError):
            # One that powered off is terminated already; the next drill's sweep is the second try.
            self._ec2.terminate_instances(InstanceIds=ids)


_NAMED = {"Name": f"{ROLE}-1", "ManagedBy": "flotilla"}


def _pairs(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


@contextmanager
def _described(doing: str) -> Iterator[None]:
    try:
        yield
    except boto.ClientError as error:
        found = error.response.get("Error", {})
        raise FlotillaError(
            f"could not {doing}: {found.get('Code')} {found.get('Message')}",
            untouched="No scratch host is left",
            next="fab backup.drill",
        ) from error
    except (boto.BotoCoreError, OSError) as error:
        raise Unreachable(f"could not {doing}: {error}", next="fab backup.drill") from error
