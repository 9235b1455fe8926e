"""What may not be deleted while something stands on it: EC2 refuses, moto does not.

A lab that let a subnet go under a host would hide the mistake until it is made on AWS.
"""

from __future__ import annotations

from typing import Any

from moto.ec2.exceptions import DependencyViolationError

from lab.views import live_instances


def of_subnet(ec2: Any, subnet_id: str) -> list[str]:
    """Instances in the subnet that are not terminated."""
    return [i.id for i in live_instances(ec2) if i.subnet_id == subnet_id]


def of_security_group(ec2: Any, group_id: str) -> list[str]:
    """Instances in the group, and groups whose rules name it."""
    members = [
        i.id
        for i in live_instances(ec2)
        if any(group.id == group_id for nic in i.nics.values() for group in nic.group_set)
    ]
    groups = [group for vpc in ec2.groups.values() for group in vpc.values()]
    naming = [group.id for group in groups if group.id != group_id and _names(group, group_id)]
    return members + naming


def _names(group: Any, group_id: str) -> bool:
    rules = [*group.ingress_rules, *group.egress_rules]
    return any((rule.source_group or {}).get("GroupId") == group_id for rule in rules)


def delete_subnet(original: Any, self: Any, subnet_id: str) -> Any:
    """DeleteSubnet, refused while there is an instance in it."""
    _refuse(f"The subnet '{subnet_id}'", of_subnet(self, subnet_id))
    return original(self, subnet_id)


def delete_security_group(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """DeleteSecurityGroup, refused while an instance or another group's rule needs it."""
    group_id = kwargs.get("group_id") or (args[1] if len(args) > 1 else None)
    if group_id:
        _refuse(f"resource {group_id}", of_security_group(self, group_id))
    return original(self, *args, **kwargs)


def _refuse(what: str, needed_by: list[str]) -> None:
    if needed_by:
        raise DependencyViolationError(
            f"{what} has dependencies and cannot be deleted: {', '.join(sorted(needed_by)[:5])}"
        )
