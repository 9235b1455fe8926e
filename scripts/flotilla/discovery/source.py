"""What EC2 and Auto Scaling say about the application hosts: all of it, or an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from flotilla.rules.discovery import COMING, GONE, Host
from flotilla.rules.hostnames import Tagged, named

# The most DescribeInstances gives in one answer.
PAGE = 1000
ROLE = "app"
# Which `fab fleet.provision` gives the group.
HOOK = "drain"
GROUP_TAG = "aws:autoscaling:groupName"
STOPPED = frozenset({"stopping", "stopped"})


class Ec2:
    """Reads the hosts of one fleet. boto3 takes region, endpoint and credentials from its own
    places: environment variables, then the instance's role.
    """

    def __init__(self, fleet: str, env: str, group: str) -> None:
        self._tags = {"Fleet": fleet, "Env": env, "ManagedBy": "flotilla", "Role": ROLE}
        self._group = group

    # Made when they are needed: what is missing for them is then trouble of that look, to be told.
    @cached_property
    def _ec2(self) -> Any:
        return _client("ec2")

    @cached_property
    def _scaling(self) -> Any:
        return _client("autoscaling")

    def hosts(self) -> list[Host]:
        """Every application host, also those on their way out. Whatever fails is raised: half an
        answer would read as hosts that are gone.
        """
        filters = [{"Name": f"tag:{key}", "Values": [value]} for key, value in self._tags.items()]
        filters.append(
            {"Name": "instance-state-name", "Values": sorted(COMING | STOPPED | GONE)},
        )
        pages: Iterable[Any] = self._ec2.get_paginator("describe_instances").paginate(
            Filters=filters, PaginationConfig={"PageSize": PAGE}
        )
        instances = [i for page in pages for r in page["Reservations"] for i in r["Instances"]]
        groups = self._scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[self._group])
        members = [m for group in groups["AutoScalingGroups"] for m in group["Instances"]]
        return as_hosts(instances, {m["InstanceId"]: m["LifecycleState"] for m in members})

    def let_go(self, host: Host) -> bool:
        """Tell Auto Scaling that it need not wait with the end of this host; False when it does not
        wait, for instance because another load balancer was first.
        """
        from botocore.exceptions import ClientError  # noqa: PLC0415  as above

        try:
            self._scaling.complete_lifecycle_action(
                AutoScalingGroupName=self._group,
                LifecycleHookName=HOOK,
                InstanceId=host.instance_id,
                LifecycleActionResult="CONTINUE",
            )
        except ClientError as error:
            if error.response["Error"]["Code"] == "ValidationError":
                return False
            raise
        return True


class Metrics:
    """Figures of the load balancers in CloudWatch; without a namespace, nowhere."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace

    @cached_property
    def _cloudwatch(self) -> Any:
        return _client("cloudwatch")

    def put(self, name: str, value: float) -> None:
        """Store one value; whatever fails is raised."""
        if self._namespace:
            self._cloudwatch.put_metric_data(
                Namespace=self._namespace,
                MetricData=[
                    {
                        "MetricName": name,
                        "Dimensions": [{"Name": "Role", "Value": "lb"}],
                        "Value": value,
                    }
                ],
            )


def _client(service: str) -> Any:
    import boto3  # noqa: PLC0415  half a second that tests of the rest need not pay
    from botocore.config import Config  # noqa: PLC0415

    # One attempt: the next look is seconds away, and must not wait for this one's repeats.
    config = Config(connect_timeout=1, read_timeout=5, retries={"total_max_attempts": 1})
    make: Any = boto3.client  # its stubs want to know which service
    return make(service, config=config)


def as_hosts(instances: Sequence[Mapping[str, Any]], lifecycles: Mapping[str, str]) -> list[Host]:
    """Hosts with the names that the fleet's inventory gives them.

    ``instances`` as DescribeInstances has them, ``lifecycles`` by instance id. Hosts that are gone
    may have the names of others: a name is free as soon as its host ends. A new host takes its name
    before it is configured: without one it cannot serve, and a server under an interim name would
    soon have to go again.
    """
    gone = [one for one in instances if one["State"]["Name"] in GONE]
    alive = [one for one in instances if one["State"]["Name"] not in GONE and not _is_nameless(one)]
    names = {**_names(gone), **_names(alive)}
    hosts = [
        Host(
            name=names[one["InstanceId"]],
            address=one.get("PrivateIpAddress") or "",
            state=one["State"]["Name"],
            lifecycle=lifecycles.get(one["InstanceId"], ""),
            instance_id=one["InstanceId"],
        )
        for one in (*gone, *alive)
    ]
    return sorted(hosts, key=lambda host: (host.name, host.instance_id))


def _is_nameless(instance: Mapping[str, Any]) -> bool:
    tags = {tag["Key"] for tag in instance.get("Tags", ())}
    return GROUP_TAG in tags and "Name" not in tags


def _names(instances: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    tagged = []
    for one in instances:
        tags = {tag["Key"]: tag["Value"] for tag in one.get("Tags", ())}
        name, scaled = tags.get("Name", ""), GROUP_TAG in tags
        tagged.append(Tagged(one["InstanceId"], tags.get("Role", ""), name, scaled))
    return {instance: host.name for instance, host in named(tagged, (ROLE,))[0].items()}
