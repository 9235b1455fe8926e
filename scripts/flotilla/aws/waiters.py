"""List in pages, and wait for AWS with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

from flotilla.aws.session import client, described
from flotilla.errors import FlotillaError, Unreachable
from flotilla.settings import Settings
from flotilla.wait import DeadlineError, until


def paginate(
    settings: Settings, service: str, operation: str, result: str, **arguments: Any
) -> Iterator[Any]:
    """Every item of an answer in pages: ``paginate(s, "s3", "list_objects_v2", "Contents", ...)``.

    ``operation`` is boto3's method, ``result`` the key that holds the items. Raises what
    ``described`` raises.
    """
    with described(settings, f"{operation.replace('_', ' ')} ({service})"):
        pages = client(settings, service).get_paginator(operation).paginate(**arguments)
        for page in pages:
            yield from page.get(result, ())


def instances_in_state(
    settings: Settings,
    instance_ids: Collection[str],
    state: str,
    *,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until every instance is in ``state`` ("running", "stopped", "terminated").

    An instance that EC2 does not show counts as terminated when that is waited for, else as
    pending. Raises Unreachable naming those that are not there after ``seconds``, FlotillaError as
    soon as one can no longer get there.
    """
    seen: dict[str, str] = {}

    def arrived() -> bool:
        unseen = state if state == "terminated" else "pending"
        seen.update(dict.fromkeys(instance_ids, unseen) | _states(settings, instance_ids))
        lost = [i for i, now in seen.items() if now == "terminated" != state]
        if lost:
            raise FlotillaError(f"{', '.join(lost)} terminated instead of becoming {state}")
        return all(now == state for now in seen.values())

    try:
        until(arrived, seconds=seconds, every=1.0, clock=clock, sleep=sleep)
    except DeadlineError:
        late = ", ".join(f"{i} ({now})" for i, now in sorted(seen.items()) if now != state)
        raise Unreachable(f"not {state} after {seconds:g} s: {late}") from None


def _states(settings: Settings, instance_ids: Collection[str]) -> dict[str, str]:
    # A filter, unlike InstanceIds, is not refused as a whole when one instance is unknown.
    wanted = {"Name": "instance-id", "Values": sorted(instance_ids)}
    found = paginate(settings, "ec2", "describe_instances", "Reservations", Filters=[wanted])
    return {
        instance["InstanceId"]: instance["State"]["Name"]
        for reservation in found
        for instance in reservation["Instances"]
    }
