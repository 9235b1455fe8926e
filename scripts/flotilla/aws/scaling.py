"""An Auto Scaling group and the launch template it starts hosts from; each change is read back."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flotilla.aws.session import client, described
from flotilla.aws.waiters import paginate
from flotilla.errors import FlotillaError
from flotilla.settings import Settings
from flotilla.wait import DeadlineError, until

# On their way out: Auto Scaling replaces them, or was told not to.
LEAVING = ("Terminating", "Detaching", "Terminated")
# What would launch or end hosts for reasons of its own while hosts are exchanged one by one. Not
# suspended: Launch and Terminate, which do the exchange, and what replaces a host that dies.
DISTURBING = ("AZRebalance", "AlarmNotification", "ScheduledActions", "InstanceRefresh")
# Answers of Auto Scaling may be some seconds old.
READ_BACK_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Member:
    """An instance of a group; ``lifecycle`` is Auto Scaling's word for where it stands."""

    instance_id: str
    lifecycle: str

    @property
    def is_leaving(self) -> bool:
        """Whether it is on its way out."""
        return self.lifecycle.startswith(LEAVING)


@dataclass(frozen=True, slots=True)
class Group:
    """A group as it is; ``version`` is the number of the launch template's version."""

    name: str
    desired: int
    largest: int
    version: str
    members: tuple[Member, ...]
    suspended: frozenset[str]

    @property
    def staying(self) -> list[str]:
        """Instances that are not on their way out."""
        return [member.instance_id for member in self.members if not member.is_leaving]

    @property
    def launching(self) -> int:
        """Hosts it should have and has not begun to start."""
        counted = [m for m in self.members if not m.is_leaving and m.lifecycle != "Standby"]
        return max(0, self.desired - len(counted))


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a launch template; ``content`` is the description provisioning gives it."""

    number: str
    image_id: str
    content: str


def group(settings: Settings, role: str) -> Group:
    """The group of a role. Raises FlotillaError when there is none."""
    name = settings.name_of(role)
    with described(settings, f"look at the Auto Scaling group {name}"):
        found = client(settings, "autoscaling").describe_auto_scaling_groups(
            AutoScalingGroupNames=[name]
        )["AutoScalingGroups"]
    if not found:
        raise FlotillaError(f"there is no Auto Scaling group {name}", next="fab fleet.provision")
    one = found[0]
    return Group(
        name=name,
        desired=int(one["DesiredCapacity"]),
        largest=int(one["MaxSize"]),
        version=str(one["LaunchTemplate"]["Version"]),
        members=tuple(Member(m["InstanceId"], m["LifecycleState"]) for m in one["Instances"]),
        suspended=frozenset(p["ProcessName"] for p in one["SuspendedProcesses"]),
    )


def resize(settings: Settings, role: str, *, desired: int, largest: int) -> None:
    """Set how many hosts there should be, and may be."""
    _update(settings, role, f"{desired} hosts", DesiredCapacity=desired, MaxSize=largest)
    _read_back(
        settings,
        role,
        lambda seen: (seen.desired, seen.largest) == (desired, largest),
        f"{desired} hosts of at most {largest}",
    )


def launch_from(settings: Settings, role: str, version: str) -> None:
    """Make ``version`` what the group, and everybody else, launches hosts of ``role`` from."""
    make_default(settings, role, version)
    template = {"LaunchTemplateName": settings.name_of(role), "Version": version}
    _update(settings, role, f"version {version}", LaunchTemplate=template)
    _read_back(settings, role, lambda seen: seen.version == version, f"version {version}")


def make_default(settings: Settings, role: str, version: str) -> None:
    """Make ``version`` the launch template's default; hosts without a group start from that."""
    name, ec2 = settings.name_of(role), client(settings, "ec2")
    with described(settings, f"make version {version} of the launch template {name} the default"):
        ec2.modify_launch_template(LaunchTemplateName=name, DefaultVersion=version)
        default = ec2.describe_launch_templates(LaunchTemplateNames=[name])["LaunchTemplates"][0]
    if str(default["DefaultVersionNumber"]) != version:
        raise FlotillaError(
            f"the default version of {name} is {default['DefaultVersionNumber']}, not {version}",
            why="somebody else changes the launch template",
        )


def end(settings: Settings, role: str, instance_id: str) -> None:
    """Terminate a host and want one fewer: no other one is started in its place."""
    with described(settings, f"terminate {instance_id}"):
        client(settings, "autoscaling").terminate_instance_in_auto_scaling_group(
            InstanceId=instance_id, ShouldDecrementDesiredCapacity=True
        )
    _read_back(
        settings, role, lambda seen: instance_id not in seen.staying, f"{instance_id} leaving"
    )


def suspend(settings: Settings, role: str, processes: Collection[str]) -> None:
    """Let these processes of the group rest."""
    name = settings.name_of(role)
    if processes:
        with described(settings, f"suspend {', '.join(sorted(processes))} of {name}"):
            client(settings, "autoscaling").suspend_processes(
                AutoScalingGroupName=name, ScalingProcesses=sorted(processes)
            )
    wanted = set(processes)
    _read_back(settings, role, lambda seen: wanted <= seen.suspended, "to rest")


def resume(settings: Settings, role: str, processes: Collection[str]) -> None:
    """Let these processes of the group go on."""
    name = settings.name_of(role)
    if processes:
        with described(settings, f"resume {', '.join(sorted(processes))} of {name}"):
            client(settings, "autoscaling").resume_processes(
                AutoScalingGroupName=name, ScalingProcesses=sorted(processes)
            )
    wanted = set(processes)
    _read_back(settings, role, lambda seen: not wanted & seen.suspended, "to go on")


def last_failure(settings: Settings, role: str) -> str:
    """Why the newest activity of the group failed, in Auto Scaling's words; "" when it did not."""
    name = settings.name_of(role)
    with described(settings, f"look at the activities of {name}"):
        found = client(settings, "autoscaling").describe_scaling_activities(
            AutoScalingGroupName=name, MaxRecords=1
        )["Activities"]
    failed = [one for one in found if one["StatusCode"] in {"Failed", "Cancelled"}]
    return str(failed[0].get("StatusMessage", "")) if failed else ""


def versions(settings: Settings, role: str) -> list[Version]:
    """The versions of a role's launch template, newest first."""
    found = paginate(
        settings,
        "ec2",
        "describe_launch_template_versions",
        "LaunchTemplateVersions",
        LaunchTemplateName=settings.name_of(role),
    )
    made = [
        Version(
            number=str(one["VersionNumber"]),
            image_id=str(one["LaunchTemplateData"].get("ImageId", "")),
            content=str(one.get("VersionDescription", "")),
        )
        for one in found
    ]
    return sorted(made, key=lambda one: int(one.number), reverse=True)


def add_version(settings: Settings, role: str, data: Mapping[str, Any], content: str) -> str:
    """Add a version, without anybody launching from it; its number."""
    with described(settings, f"add a version to the launch template {settings.name_of(role)}"):
        made = client(settings, "ec2").create_launch_template_version(
            LaunchTemplateName=settings.name_of(role),
            VersionDescription=content,
            LaunchTemplateData=data,
        )["LaunchTemplateVersion"]
    return str(made["VersionNumber"])


def states(settings: Settings, instances: Sequence[str]) -> dict[str, str]:
    """EC2's word for each instance; one that it no longer shows is "terminated"."""
    if not instances:
        return {}
    wanted = {"Name": "instance-id", "Values": list(instances)}
    found = paginate(settings, "ec2", "describe_instances", "Reservations", Filters=[wanted])
    seen = {i["InstanceId"]: str(i["State"]["Name"]) for r in found for i in r["Instances"]}
    return dict.fromkeys(instances, "terminated") | seen


def _update(settings: Settings, role: str, what: str, **changes: Any) -> None:
    name = settings.name_of(role)
    with described(settings, f"set the Auto Scaling group {name} to {what}"):
        client(settings, "autoscaling").update_auto_scaling_group(
            AutoScalingGroupName=name, **changes
        )


def _read_back(
    settings: Settings,
    role: str,
    holds: Callable[[Group], bool],
    what: str,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    try:
        until(
            lambda: holds(group(settings, role)),
            seconds=READ_BACK_SECONDS,
            every=0.5,
            sleep=sleep,
        )
    except DeadlineError:
        raise FlotillaError(
            f"the Auto Scaling group {settings.name_of(role)} was told {what}, and does not say so"
        ) from None
