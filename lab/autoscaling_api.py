"""Where moto's Auto Scaling is taught to leave acting to the engine, and to say what it does.

moto launches and terminates inside SetDesiredCapacity, all in one subnet, and knows no lifecycle
actions and no activities. Groups of regions without hosts stay as moto has them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from moto.autoscaling.exceptions import AutoscalingClientError, ValidationError
from moto.autoscaling.models import AutoScalingBackend, FakeAutoScalingGroup, InstanceState
from moto.autoscaling.responses import AutoScalingResponse
from moto.core.responses import ActionResult, EmptyResult

from lab.autoscaling import DELETING, Engine

_engines: list[Engine] = []  # the last one acts
_original: dict[tuple[type, str], Any] = {}


def install(engine: Engine) -> None:
    """Let `engine` act for the groups of its region, in this process, from now on."""
    _engines.append(engine)
    if _original:
        return
    _wrap(FakeAutoScalingGroup, "set_desired_capacity", _set_desired_capacity)
    _wrap(AutoScalingBackend, "create_auto_scaling_group", _create)
    _wrap(AutoScalingBackend, "update_auto_scaling_group", _update)
    _wrap(AutoScalingBackend, "delete_auto_scaling_group", _delete)
    _wrap(AutoScalingBackend, "notify_terminate_instances", _notify)
    _wrap(AutoScalingBackend, "terminate_instance", _terminate)
    _wrap(AutoScalingResponse, "delete_auto_scaling_group", _delete_response)
    _wrap(AutoScalingResponse, "set_instance_health", _then_wake)
    _wrap(AutoScalingResponse, "resume_processes", _then_wake)
    for name, answer in (
        ("describe_scaling_activities", _describe_scaling_activities),
        ("complete_lifecycle_action", _complete_lifecycle_action),
        ("record_lifecycle_action_heartbeat", _record_heartbeat),
    ):
        setattr(AutoScalingResponse, name, answer)
    setattr(InstanceState, "launch_template", property(_launch_template))  # noqa: B010  for mypy


def _engine() -> Engine:
    return _engines[-1]


def _wrap(owner: type, name: str, around: Callable[..., Any]) -> None:
    original = _original[owner, name] = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(original, self, *args, **kwargs)

    setattr(owner, name, wrapped)


def _set_desired_capacity(original: Any, self: Any, new_capacity: int | None) -> None:
    if self.region != _engine().region:
        original(self, new_capacity)
        return
    wanted = int(self.min_size if new_capacity is None else new_capacity)
    low, high = int(self.min_size), int(self.max_size)
    if not low <= wanted <= high:
        raise ValidationError(
            f"Desired capacity:{wanted} must be between the specified min size:{low} and max "
            f"size:{high}"
        )
    self.desired_capacity = wanted
    _engine().wake.set()


def _update(original: Any, self: Any, name: str, **kwargs: Any) -> Any:
    group = self.autoscaling_groups.get(name)
    if group is not None and self.region_name == _engine().region:
        low, high = (
            int(group_value if kwargs.get(key) is None else kwargs[key])
            for key, group_value in (("min_size", group.min_size), ("max_size", group.max_size))
        )
        if low > high:
            raise ValidationError(f"Max bound, {high}, must be greater than min bound, {low}")
        if kwargs.get("desired_capacity") is None:
            kwargs["desired_capacity"] = min(max(int(group.desired_capacity), low), high)
    return original(self, name=name, **kwargs)


def _delete_response(original: Any, self: Any) -> ActionResult:
    backend = self.autoscaling_backend
    name = self._get_param("AutoScalingGroupName")
    group = backend.autoscaling_groups.get(name)
    forced = self._get_bool_param("ForceDelete", False)
    if group is not None and group.instance_states and not forced:
        raise AutoscalingClientError(
            "ResourceInUse",
            "You cannot delete an AutoScalingGroup while there are instances or pending Spot "
            "instance request(s) still in the group.",
        )
    result: ActionResult = original(self)
    return result


def _delete(original: Any, self: Any, group_name: str) -> None:
    group = self.autoscaling_groups.get(group_name)
    if group is None or self.region_name != _engine().region:
        original(self, group_name)
        return
    for hook in self.describe_lifecycle_hooks(group_name):
        self.delete_lifecycle_hook(group_name, hook.name)
    # It stays listed, with its members, until the last of them is terminated.
    group.status = DELETING
    group.min_size = group.desired_capacity = 0
    _engine().wake.set()


def _create(original: Any, self: Any, **kwargs: Any) -> Any:
    name = kwargs.get("name")
    if name in self.autoscaling_groups:
        raise AutoscalingClientError(
            "AlreadyExists",
            "AutoScalingGroup by this name already exists - A group with the name "
            f"{name} already exists",
        )
    return original(self, **kwargs)


def _notify(original: Any, self: Any, instance_ids: list[str]) -> None:
    if self.region_name != _engine().region:
        original(self, instance_ids)
    _engine().wake.set()


def _terminate(
    original: Any,
    self: Any,
    instance_id: str,
    should_decrement: bool,  # noqa: FBT001  moto's own signature
) -> Any:
    if self.region_name != _engine().region:
        return original(self, instance_id, should_decrement)
    for group in self.autoscaling_groups.values():
        for state in group.instance_states:
            if state.instance_id == instance_id:
                if should_decrement:
                    group.set_desired_capacity(int(group.desired_capacity) - 1)
                return _engine().dismiss(state, "a user request")
    raise ValidationError(f"Instance Id not found - No managed instance found for {instance_id}")


def _then_wake(original: Any, self: Any) -> Any:
    answer = original(self)
    _engine().wake.set()
    return answer


def _describe_scaling_activities(self: Any) -> ActionResult:
    group = self._get_param("AutoScalingGroupName")
    ids = self._get_param("ActivityIds", [])
    most = self._get_int_param("MaxRecords", 100)
    found = [
        activity
        for activity in _engine().activities
        if group in (None, activity["AutoScalingGroupName"])
        and (not ids or activity["ActivityId"] in ids)
    ]
    return ActionResult({"Activities": found[:most]})


def _complete_lifecycle_action(self: Any) -> ActionResult:
    group, hook, instance_id = _action_of(self)
    result = self._get_param("LifecycleActionResult")
    if result not in ("CONTINUE", "ABANDON"):
        raise ValidationError("LifecycleActionResult must be CONTINUE or ABANDON")
    if not _engine().complete(group, hook, instance_id, result):
        raise _no_action(instance_id)
    return EmptyResult()


def _record_heartbeat(self: Any) -> ActionResult:
    group, hook, instance_id = _action_of(self)
    if not _engine().heartbeat(group, hook, instance_id):
        raise _no_action(instance_id)
    return EmptyResult()


def _action_of(self: Any) -> tuple[str, str, str]:
    group = self._get_param("AutoScalingGroupName")
    if group not in self.autoscaling_backend.autoscaling_groups:
        raise ValidationError(f"AutoScalingGroup name not found - {group}")
    hook, instance_id = self._get_param("LifecycleHookName"), self._get_param("InstanceId")
    if not instance_id:
        raise ValidationError("the lab knows lifecycle actions by their InstanceId")
    return group, hook, instance_id


def _no_action(instance_id: str) -> ValidationError:
    return ValidationError(f"No active Lifecycle Action found with instance ID {instance_id}")


def _launch_template(self: Any) -> dict[str, str] | None:
    """What this member was launched from; moto names the default version of today."""
    template = self.auto_scaling_group.ec2_launch_template if self.auto_scaling_group else None
    if template is None:
        return None
    number = getattr(self, "lab_template", ("", str(template.default_version_number)))[1]
    return {
        "LaunchTemplateId": template.id,
        "LaunchTemplateName": template.name,
        "Version": number,
    }
