"""The hosts of a database cluster as EC2 has them, and the stop that fences one of them.

A security group would not do: connections that stand outlive a change of it, by days. A network ACL
cuts them, but only between subnets, and clients share the subnet of the server. A forced stop cuts
everything, and whether it is over can be seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree as ET

from flotilla.aws.lean import AnswerError, Api
from flotilla.errors import HostFailed
from flotilla.rules.mysql_state import Place

# Gone from every network, and it cannot come back with what it had in memory.
CLOSED = frozenset({"stopped", "terminated"})
PAGE = "1000"


class Peers:
    """Hosts of one role of one fleet. Calls raise Unreachable when EC2 does not answer."""

    def __init__(self, api: Api, fleet: str, env: str, role: str) -> None:
        self._api = api
        self._tags = {"Fleet": fleet, "Env": env, "Role": role, "ManagedBy": "flotilla"}

    def places(self) -> tuple[Place, ...]:
        """Every member that may come back to life, by name."""
        states = {"instance-state-name": "pending,running,stopping,stopped"}
        tags = {f"tag:{key}": value for key, value in self._tags.items()}
        answer = self._api.ec2(
            "DescribeInstances", {**_filters({**tags, **states}), "MaxResults": PAGE}
        )
        found = (_place(one) for one in answer.findall(".//{*}instancesSet/{*}item"))
        return tuple(sorted((place for place in found if place), key=lambda place: place.rank))

    def state(self, instance_id: str) -> str:
        """The state of an instance in EC2's words; "terminated" once EC2 has forgotten it."""
        try:
            answer = self._api.ec2("DescribeInstances", {"InstanceId.1": instance_id})
        except AnswerError as error:
            if error.code == "InvalidInstanceID.NotFound":
                return "terminated"
            raise
        state = answer.findtext(".//{*}instanceState/{*}name")
        if not state:
            raise HostFailed(f"EC2 does not say in which state {instance_id} is")
        return state

    def stop(self, instance_id: str) -> None:
        """Ask EC2 to stop an instance without waiting for its system; does not wait."""
        self._api.ec2("StopInstances", {"InstanceId.1": instance_id, "Force": "true"})


def _filters(wanted: Mapping[str, str]) -> dict[str, str]:
    request = {}
    for n, (name, values) in enumerate(wanted.items(), 1):
        request[f"Filter.{n}.Name"] = name
        for m, value in enumerate(values.split(","), 1):
            request[f"Filter.{n}.Value.{m}"] = value
    return request


def _place(instance: ET.Element) -> Place | None:
    tags = {
        item.findtext("{*}key", ""): item.findtext("{*}value", "")
        for item in instance.findall("{*}tagSet/{*}item")
    }
    name = tags.get("Name", "")
    address = instance.findtext("{*}privateIpAddress", "")
    if not name or not address:
        return None  # not yet named, or on its way out
    return Place(
        name=name,
        instance_id=instance.findtext("{*}instanceId", ""),
        address=address,
        zone=instance.findtext("{*}placement/{*}availabilityZone", ""),
    )
