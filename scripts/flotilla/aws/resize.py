"""Stopped instances: give one another type, which EC2 does only then, or start it again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from flotilla.aws.session import client, described
from flotilla.aws.waiters import instances_in_state
from flotilla.errors import FlotillaError, HostFailed
from flotilla.settings import Settings

STOP_SECONDS = 600.0
START_SECONDS = 600.0


def retype(
    settings: Settings,
    instance_id: str,
    *,
    before: str,
    to: str,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Stop, change the type, start, and wait until it runs. Its addresses and disks stay.

    One that is stopped already, or has the type already, is only given what it lacks.

    Where EC2 has no room for the new type, the instance gets the old one back and is started again.
    Raises HostFailed then, Unreachable when a state was not reached in time.
    """
    with described(settings, f"stop {instance_id}"):
        client(settings, "ec2").stop_instances(InstanceIds=[instance_id])
    instances_in_state(settings, [instance_id], "stopped", seconds=STOP_SECONDS, sleep=sleep)
    try:
        _started(settings, instance_id, to, sleep)
    except FlotillaError as error:
        _started(settings, instance_id, before, sleep)
        raise HostFailed(
            f"{instance_id} did not become {to}: {error.what}",
            untouched=f"It runs as {before} again",
            next="another type in fleet.yml, then the same command again",
        ) from error


def start(
    settings: Settings, instance_id: str, *, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Start an instance that is stopped, or is about to be, and wait until it runs."""
    instances_in_state(settings, [instance_id], "stopped", seconds=STOP_SECONDS, sleep=sleep)
    with described(settings, f"start {instance_id}"):
        client(settings, "ec2").start_instances(InstanceIds=[instance_id])
    instances_in_state(settings, [instance_id], "running", seconds=START_SECONDS, sleep=sleep)


def _started(settings: Settings, instance_id: str, to: str, sleep: Callable[[float], None]) -> None:
    ec2 = client(settings, "ec2")
    with described(settings, f"make {instance_id} a {to}"):
        # Not where it has it: one whose type nobody may change is at least started again.
        if _type(ec2, instance_id) != to:
            ec2.modify_instance_attribute(InstanceId=instance_id, InstanceType={"Value": to})
            if (found := _type(ec2, instance_id)) != to:
                raise FlotillaError(f"{instance_id} is a {found}, not a {to}")
        ec2.start_instances(InstanceIds=[instance_id])
    instances_in_state(settings, [instance_id], "running", seconds=START_SECONDS, sleep=sleep)


def _type(ec2: Any, instance_id: str) -> str:
    found = ec2.describe_instance_attribute(InstanceId=instance_id, Attribute="instanceType")
    return str(found["InstanceType"]["Value"])
