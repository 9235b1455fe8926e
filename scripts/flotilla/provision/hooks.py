"""Auto Scaling waits with the end of a host until the load balancers have drained it."""

from __future__ import annotations

from functools import partial
from typing import Any

from flotilla.provision.change import Change, Verb
from flotilla.provision.world import World

NAME = "drain"
# The least Auto Scaling takes.
LEAST_SECONDS = 30


def changes(world: World, role: str, *, exists: bool) -> list[Change]:
    """The hook of a role's group, where it is not as it should be."""
    group, wanted = world.settings.name_of(role), _wanted(world)
    present = _present(world, group) if exists else None
    if present and all(present.get(key) == value for key, value in wanted.items()):
        return []
    verb: Verb = "change" if present else "create"
    detail = f"at most {wanted['HeartbeatTimeout']} s"
    act = partial(_put, world, group, wanted)
    return [Change(verb, "lifecycle hook", f"{group} {NAME}", act, detail)]


def _wanted(world: World) -> dict[str, Any]:
    """Twice a deploy's patience: for the drain, and for load balancers that are slow to hear of it.

    CONTINUE, so that hosts end as well when no load balancer is there to let them go.
    """
    return {
        "LifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING",
        "HeartbeatTimeout": max(LEAST_SECONDS, 2 * int(world.settings.deploy.drain_seconds)),
        "DefaultResult": "CONTINUE",
    }


def _present(world: World, group: str) -> dict[str, Any] | None:
    found = world.client("autoscaling").describe_lifecycle_hooks(
        AutoScalingGroupName=group, LifecycleHookNames=[NAME]
    )["LifecycleHooks"]
    return next(iter(found), None)


def _put(world: World, group: str, wanted: dict[str, Any]) -> None:
    world.client("autoscaling").put_lifecycle_hook(
        AutoScalingGroupName=group, LifecycleHookName=NAME, **wanted
    )
