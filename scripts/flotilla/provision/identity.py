"""Who a host is to AWS (a role with least privilege), and whose key opens it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from botocore.exceptions import ClientError

from flotilla.aws.errors import code
from flotilla.hosts import keys
from flotilla.provision.change import Change, Stage
from flotilla.provision.world import DATA, World, data
from flotilla.rules import policies
from flotilla.rules.policies import Document
from flotilla.settings import ROLES, SCRATCH

GONE = "NoSuchEntity"
# Hosts that have rights of their own; and what S3 may do to copy backups to another region.
HOLDERS = (*ROLES, *SCRATCH)
COPY = "copy"
PARTITIONS = {"cn": "aws-cn", "us-gov": "aws-us-gov"}


def stages(world: World) -> list[Stage]:
    """The operator's key, then roles, then what hangs on a role."""
    roles = [*HOLDERS, *([COPY] if world.settings.backups.copy_region else [])]
    hang_on = [
        *(change for role in roles for change in _policy(world, role)),
        *(change for role in HOLDERS for change in _profile(world, role)),
    ]
    return [[*_key(world), *(change for role in roles for change in _role(world, role))], hang_on]


def files(role: str) -> list[str]:
    """The policy documents of a role, under ``data``: what every host may do, and its own."""
    names = [role] if role == COPY else ["every_host", role]
    return [name for one in names if (DATA / (name := f"policies/{one}.json")).exists()]


def policy(world: World, role: str) -> Document:
    """What hosts of ``role`` may do: what every host may, and what their own file adds."""
    settings = world.settings
    values = {
        "partition": partition(settings.region),
        "region": settings.region,
        "account": world.account,
        "fleet": settings.name,
        "env": settings.env,
        "role": role,
        "namespace": settings.cloudwatch.namespace,
    }
    return policies.render(policies.merge(data(name) for name in files(role)), values)


def partition(region: str) -> str:
    """The part of AWS a region belongs to, as ARNs spell it."""
    return next((p for start, p in PARTITIONS.items() if region.startswith(start + "-")), "aws")


def _key(world: World) -> list[Change]:
    name = world.settings.name_of("operator")
    found = world.ec2.describe_key_pairs(Filters=world.mine(), IncludePublicKey=True)["KeyPairs"]
    present = next((k["PublicKey"] for k in found if k["KeyName"] == name), None)
    if present is None:
        return [Change("create", "key pair", name, partial(_import_key, world, name))]
    if _bare(present) != _bare(keys.public(world.settings)):
        act = partial(_import_key, world, name)
        return [Change("change", "key pair", name, act, "hosts that exist keep the old key")]
    return []


def _bare(public_key: str) -> list[str]:
    """Type and key without the comment, which EC2 does not always keep."""
    return public_key.split()[:2]


def _import_key(world: World, name: str) -> None:
    world.ec2.delete_key_pair(KeyName=name)  # answers "done" when there is none
    world.ec2.import_key_pair(
        KeyName=name,
        PublicKeyMaterial=keys.public(world.settings).encode(),
        TagSpecifications=world.tagged("key-pair", name),
    )


def _role(world: World, role: str) -> list[Change]:
    iam, name = world.client("iam"), world.settings.name_of(role)
    trust = data("policies/trust_s3.json" if role == COPY else "policies/trust.json")
    found = get(lambda: iam.get_role(RoleName=name)["Role"])
    if found is None:
        return [Change("create", "IAM role", name, partial(_make_role, world, role, trust))]
    if found["AssumeRolePolicyDocument"] != trust:
        act = partial(
            iam.update_assume_role_policy, RoleName=name, PolicyDocument=json.dumps(trust)
        )
        return [Change("change", "IAM role", name, act, "who may take it")]
    return []


def _make_role(world: World, role: str, trust: Mapping[str, Any]) -> None:
    name = world.settings.name_of(role)
    world.client("iam").create_role(
        RoleName=name,
        AssumeRolePolicyDocument=json.dumps(trust),
        Description=f"{role} of {world.settings.prefix}",
        Tags=world.tags(name, Role=role),
    )


def _policy(world: World, role: str) -> list[Change]:
    iam, name = world.client("iam"), world.settings.name_of(role)
    wanted = policy(world, role)
    found = get(lambda: iam.get_role_policy(RoleName=name, PolicyName=name)["PolicyDocument"])
    if found == wanted:
        return []
    act = partial(
        iam.put_role_policy, RoleName=name, PolicyName=name, PolicyDocument=json.dumps(wanted)
    )
    detail = f"{len(wanted['Statement'])} statements"
    return [Change("change" if found else "create", "IAM policy", name, act, detail)]


def _profile(world: World, role: str) -> list[Change]:
    iam, name = world.client("iam"), world.settings.name_of(role)
    found = get(lambda: iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"])
    if found and [held["RoleName"] for held in found["Roles"]] == [name]:
        return []
    act = partial(_make_profile, world, role, found)
    return [Change("change" if found else "create", "instance profile", name, act)]


def _make_profile(world: World, role: str, found: Mapping[str, Any] | None) -> None:
    iam, name = world.client("iam"), world.settings.name_of(role)
    if found is None:
        iam.create_instance_profile(InstanceProfileName=name, Tags=world.tags(name, Role=role))
    for held in found["Roles"] if found else ():
        iam.remove_role_from_instance_profile(InstanceProfileName=name, RoleName=held["RoleName"])
    iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)


def get(read: Callable[[], Any]) -> Any:
    """What ``read`` returns, None where IAM knows no such thing."""
    try:
        return read()
    except ClientError as error:
        if code(error) == GONE:
            return None
        raise
