"""Auto Scaling that acts: what moto's groups only store is made true, and kept true.

A member that is stopped, terminated or reported unhealthy is replaced; capacity is spread over the
zones of the group's subnets; lifecycle hooks are waited for. `lab.scaling` decides how many and
where, this module carries it out and writes the activities. Not done: rebalancing of zones that
became uneven by themselves, warm pools, instance refresh, weighted capacities, scheduled actions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from lab.ports import Context, Service
from lab.scaling import Group, Launch, Member, Subnet, Wait, plan

LAUNCHING = "autoscaling:EC2_INSTANCE_LAUNCHING"
TERMINATING = "autoscaling:EC2_INSTANCE_TERMINATING"
GROUP_TAG = "aws:autoscaling:groupName"
DELETING = "Delete in progress"

_DEAD = ("shutting-down", "terminated")
_BY_EC2 = "an EC2 health check indicating it has been terminated or stopped"
_BY_USER = "a user health-check"
_KEPT_ACTIVITIES = 500
# A launch that fails is tried again after 2 s, 4 s, ... 60 s: a broken template must not keep the
# machine busy.
_LONGEST_BACKOFF_SECONDS = 60.0


@dataclass(slots=True)
class Record:
    """What is known of a member beside moto's own state of it."""

    launched_at: datetime
    template: tuple[str, str]
    activity: dict[str, Any] | None = None
    wait: Wait | None = None
    failure: str = ""


class Engine:
    """Moves every group towards its desired capacity, a step at each `tick`.

    To be used with the context's lock held, except for `tick`, which takes it. `now` is the clock.
    """

    def __init__(
        self, context: Context, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.region = context.region
        self.wake = threading.Event()
        self.activities: list[dict[str, Any]] = []  # newest first
        self._context, self._now = context, now
        self._records: dict[str, Record] = {}
        self._backoff: dict[str, tuple[float, datetime]] = {}

    def tick(self) -> bool:
        """Do what can be done now; tells whether something waits for time to pass."""
        with self._context.lock:
            backend = self._context.backend("autoscaling")
            groups = list(backend.autoscaling_groups.values())
            for group in groups:
                self._tend(group)
                if _is_deleting(group) and not group.instance_states:
                    backend.autoscaling_groups.pop(group.name)
            known = {state.instance_id for group in groups for state in group.instance_states}
            self._records = {name: r for name, r in self._records.items() if name in known}
            waiting = any(record.wait is not None for record in self._records.values())
            now = self._now()
            return waiting or any(until > now for _, until in self._backoff.values())

    def complete(self, group: str, hook: str, instance_id: str, result: str) -> bool:
        """A lifecycle hook has spoken; False when the instance does not wait for it."""
        wait = self._waiting(group, hook, instance_id)
        if wait is None:
            return False
        wait.results[hook] = result
        self.wake.set()
        return True

    def heartbeat(self, group: str, hook: str, instance_id: str) -> bool:
        """A lifecycle hook needs more time; False when the instance does not wait for it."""
        wait = self._waiting(group, hook, instance_id)
        if wait is None:
            return False
        wait.deadlines[hook] = self._now() + timedelta(seconds=wait.seconds[hook])
        return True

    def dismiss(self, state: Any, cause: str) -> dict[str, Any]:
        """Take a member out at a user's request; returns the activity."""
        record = self._record(state)
        if not state.lifecycle_state.startswith("Terminating"):
            self._take_out(state.auto_scaling_group, state, cause)
        self.wake.set()
        return dict(record.activity or {})

    # --- one group --------------------------------------------------------------------------------

    def _tend(self, group: Any) -> None:
        for state in list(group.instance_states):
            self._advance(group, state)
        states = {state.instance_id: state for state in group.instance_states}
        if _is_deleting(group):
            for state in states.values():
                if not state.lifecycle_state.startswith("Terminating"):
                    self._take_out(group, state, "the deletion of its group")
        members = [self._member(group, state) for state in group.instance_states]
        for action in plan(self._wanted(group), members):
            if isinstance(action, Launch):
                self._launch(group, action)
            else:
                self._take_out(group, states[action.instance_id], action.cause)
        for state in list(group.instance_states):
            self._advance(group, state)

    def _wanted(self, group: Any) -> Group:
        ec2 = self._context.ec2()
        if group.vpc_zone_identifier:
            ids = [part.strip() for part in group.vpc_zone_identifier.split(",")]
            subnets = [ec2.get_subnet(subnet_id) for subnet_id in ids]
        else:
            defaults = ec2.get_default_subnets()
            subnets = [defaults[zone] for zone in group.availability_zones if zone in defaults]
        suspended = {process["ProcessName"] for process in group.suspended_processes}
        return Group(
            desired=int(group.desired_capacity or 0),
            subnets=tuple(Subnet(subnet.id, subnet.availability_zone) for subnet in subnets),
            suspended=frozenset(suspended),
        )

    def _member(self, group: Any, state: Any) -> Member:
        record = self._record(state)
        return Member(
            instance_id=state.instance_id,
            subnet=str(state.instance.subnet_id),
            zone=state.instance.placement.zone,
            lifecycle=state.lifecycle_state,
            launched_at=record.launched_at,
            failure=self._failure(group, state, record),
            protected=bool(state.protected_from_scale_in),
            current=record.template == _template(group),
        )

    def _failure(self, group: Any, state: Any, record: Record) -> str:
        if record.failure:
            return record.failure
        if any(p["ProcessName"] == "HealthCheck" for p in group.suspended_processes):
            return ""
        if state.instance.state not in ("pending", "running"):
            state.health_status = "Unhealthy"
            return _BY_EC2
        return _BY_USER if state.health_status.lower() == "unhealthy" else ""

    def _record(self, state: Any) -> Record:
        """The record of a member; a new one for an instance that was attached by hand."""
        found = self._records.get(state.instance_id)
        if found is None:
            launched = state.instance.launch_time.replace(tzinfo=UTC)
            found = Record(launched, _template(state.auto_scaling_group))
            self._records[state.instance_id] = found
        return found

    # --- members coming and going -----------------------------------------------------------------

    def _advance(self, group: Any, state: Any) -> None:
        record = self._record(state)
        if state.lifecycle_state.startswith("Pending"):
            if state.instance.state == "running" and not record.failure:
                self._come(group, state, record)
        elif state.lifecycle_state.startswith("Terminating"):
            self._go(group, state, record)

    def _come(self, group: Any, state: Any, record: Record) -> None:
        if record.wait is None:
            record.wait = self._hooks(group, LAUNCHING)
        verdict = record.wait.verdict(self._now())
        if verdict is None:
            state.lifecycle_state = "Pending:Wait"
            return
        record.wait = None
        if verdict == "ABANDON":
            record.failure = "a lifecycle hook that abandoned its launch"
            self._end(record, "Cancelled", record.failure)
            self._fail(group)
            return
        state.lifecycle_state = "InService"
        self._backoff.pop(group.name, None)
        self._end(record, "Successful")
        _registered(group)

    def _take_out(self, group: Any, state: Any, cause: str) -> None:
        record = self._record(state)
        if state.lifecycle_state.startswith("Pending"):
            if state.instance.state in ("pending", "running"):
                self._end(record, "Cancelled", cause)
            else:
                self._end(record, "Failed", _why_dead(state.instance))
                self._fail(group)
        text = f"At {_at(self._now())} an instance was taken out of service in response to {cause}."
        record.activity = self._begin(group, f"Terminating EC2 instance: {state.instance_id}", text)
        record.wait = self._hooks(group, TERMINATING)
        if state.instance.state in _DEAD:
            record.wait = Wait({}, {}, {})
        state.lifecycle_state = "Terminating"

    def _go(self, group: Any, state: Any, record: Record) -> None:
        if state.instance.state == "terminated":
            group.instance_states.remove(state)
            self._end(record, "Successful")
            _registered(group)
        elif state.instance.state != "shutting-down" and record.wait is not None:
            if record.wait.verdict(self._now()) is None:
                state.lifecycle_state = "Terminating:Wait"
                return
            record.wait = None
            state.lifecycle_state = "Terminating:Proceed"
            self._context.ec2().terminate_instances([state.instance_id])

    def _launch(self, group: Any, action: Launch) -> None:
        _, until = self._backoff.get(group.name, (0.0, self._now()))
        if until > self._now():
            return
        cause = f"At {_at(self._now())} an instance was started in response to {action.cause}."
        activity = self._begin(group, "Launching a new EC2 instance", cause)
        try:
            instance = self._run(group, action.subnet)
        except Exception as error:  # whatever the launch met is the group's to report, as on AWS
            self._end(Record(self._now(), ("", ""), activity), "Failed", str(error))
            self._fail(group)
            return
        activity["Description"] += f": {instance.id}"
        from moto.autoscaling.models import InstanceState  # noqa: PLC0415  slow to import

        instance.autoscaling_group = group
        state = InstanceState(
            instance,
            lifecycle_state="Pending",
            protected_from_scale_in=group.new_instances_protected_from_scale_in,
        )
        vars(state)["lab_template"] = _template(group)
        group.instance_states.append(state)
        self._records[instance.id] = Record(self._now(), _template(group), activity)

    def _run(self, group: Any, subnet: Subnet) -> Any:
        options: dict[str, Any] = {
            "subnet_id": subnet.id,
            "placement": subnet.zone,
            "region_name": self.region,
            "associate_public_ip": None,
            "tags": {"instance": {**group.get_propagated_tags(), GROUP_TAG: group.name}},
        }
        if group.ec2_launch_template:
            identifier, number = _template(group)
            options |= {
                "launch_template": {"LaunchTemplateId": identifier, "Version": number},
                "is_instance_type_default": True,
            }
            image, user_data, groups = None, None, []
        else:
            options |= {
                "launch_config": group.launch_config,
                "instance_type": group.instance_type,
                "is_instance_type_default": False,
                "associate_public_ip": group.launch_config.associate_public_ip_address,
            }
            image, user_data, groups = group.image_id, group.user_data, group.security_groups
        ec2 = self._context.ec2()
        return ec2.run_instances(image, 1, user_data, groups, **options).instances[0]

    # --- hooks, activities, failures --------------------------------------------------------------

    def _hooks(self, group: Any, transition: str) -> Wait:
        backend, now = self._context.backend("autoscaling"), self._now()
        hooks = [
            hook
            for hook in backend.describe_lifecycle_hooks(group.name)
            if hook.lifecycle_transition == transition
        ]
        seconds = {hook.name: int(hook.heartbeat_timeout) for hook in hooks}
        deadlines = {name: now + timedelta(seconds=value) for name, value in seconds.items()}
        return Wait(deadlines, {hook.name: hook.default_result for hook in hooks}, seconds)

    def _waiting(self, group: str, hook: str, instance_id: str) -> Wait | None:
        record = self._records.get(instance_id)
        wait = record.wait if record else None
        backend = self._context.backend("autoscaling")
        mine = {state.instance_id for state in backend.autoscaling_groups[group].instance_states}
        known = wait is not None and hook in wait.deadlines and hook not in wait.results
        return wait if known and instance_id in mine else None

    def _begin(self, group: Any, description: str, cause: str) -> dict[str, Any]:
        from moto.moto_api._internal import mock_random  # noqa: PLC0415  slow to import

        activity = {
            "ActivityId": str(mock_random.uuid4()),
            "AutoScalingGroupName": group.name,
            "AutoScalingGroupARN": group.arn,
            "Description": description,
            "Cause": cause,
            "StartTime": self._now(),
            "StatusCode": "InProgress",
            "Progress": 50,
        }
        self.activities.insert(0, activity)
        del self.activities[_KEPT_ACTIVITIES:]
        return activity

    def _end(self, record: Record, status: str, message: str = "") -> None:
        if record.activity is None or record.activity["StatusCode"] != "InProgress":
            return
        record.activity |= {"StatusCode": status, "Progress": 100, "EndTime": self._now()}
        if message:
            record.activity["StatusMessage"] = message
        told = ("AutoScalingGroupName", "Description", "Cause", "StatusCode", "StatusMessage")
        self._context.log(
            "autoscaling", {key: record.activity[key] for key in told if key in record.activity}
        )

    def _fail(self, group: Any) -> None:
        last, _ = self._backoff.get(group.name, (1.0, self._now()))
        pause = min(last * 2, _LONGEST_BACKOFF_SECONDS)
        self._backoff[group.name] = (pause, self._now() + timedelta(seconds=pause))


class Loop:
    """Ticks the engine whenever something changed, and once a second while something waits."""

    def __init__(self, engine: Engine, log: Callable[[str, Mapping[str, Any]], None]) -> None:
        self._engine, self._log = engine, log
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="lab-autoscaling", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop acting. Idempotent."""
        self._closed = True
        self._engine.wake.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._closed:
            self._engine.wake.clear()
            busy = True
            try:
                busy = self._engine.tick()
            except Exception as error:  # the loop outlives one bad state, and says so
                self._log("failed", {"what": "autoscaling", "error": repr(error)})
            self._engine.wake.wait(1.0 if busy else 30.0)


def start(context: Context) -> Service:
    """Make the groups of the lab's region act, until closed."""
    from lab import autoscaling_api  # noqa: PLC0415  it imports moto, which must be set up first

    engine = Engine(context)
    autoscaling_api.install(engine)
    context.on_instance_state(lambda _, __: engine.wake.set())
    return Loop(engine, context.log)


def _is_deleting(group: Any) -> bool:
    return getattr(group, "status", None) == DELETING


def _template(group: Any) -> tuple[str, str]:
    """What the group launches from now: template id and version number, or launch configuration."""
    if not group.ec2_launch_template:
        return (str(group.launch_configuration_name), "")
    version = group.ec2_launch_template.get_version(group.launch_template_version)
    return (str(group.ec2_launch_template.id), str(version.number))


def _registered(group: Any) -> None:
    """Let moto's load balancers follow the group's members."""
    backend = group.autoscaling_backend
    if group.name in backend.autoscaling_groups:
        backend.update_attached_elbs(group.name)
        backend.update_attached_target_groups(group.name)


def _why_dead(instance: Any) -> str:
    return instance.state_reason.message or f"the instance is {instance.state}"


def _at(now: datetime) -> str:
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")
