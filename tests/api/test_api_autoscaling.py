"""Groups reach and keep their capacity: the decision on many states, the engine on moto's."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import boto3
import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws
from moto.backends import get_backend
from moto.core import DEFAULT_ACCOUNT_ID

from lab import autoscaling_api
from lab.autoscaling import LAUNCHING, TERMINATING, Engine
from lab.ports import Context
from lab.scaling import Group, Launch, Member, Subnet, Terminate, plan

# Not the lab's own region: there, other tests of this process make moto launch real hosts.
REGION = "eu-west-1"
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
SUBNETS = (Subnet("s-a", "a"), Subnet("s-b", "b"), Subnet("s-c", "c"))


# --- the decision ---------------------------------------------------------------------------------


@st.composite
def members(draw: st.DrawFn) -> list[Member]:
    return [
        Member(
            instance_id=f"i-{number}",
            subnet=f"s-{zone}",
            zone=zone,
            lifecycle=draw(
                st.sampled_from(
                    ["InService"] * 4 + ["Pending", "Pending:Wait", "Standby", "Terminating"]
                )
            ),
            launched_at=BEGAN + timedelta(minutes=draw(st.integers(0, 50))),
            failure=draw(st.sampled_from(["", "", "", "it is stopped"])),
            protected=draw(st.booleans()),
            current=draw(st.booleans()),
        )
        for number, zone in enumerate(draw(st.lists(st.sampled_from("abc"), max_size=8)))
    ]


GROUPS = st.builds(
    Group,
    desired=st.integers(0, 6),
    subnets=st.lists(st.sampled_from(SUBNETS), min_size=1, max_size=3, unique=True).map(tuple),
    suspended=st.frozensets(
        st.sampled_from(["Launch", "Terminate", "ReplaceUnhealthy"]), max_size=1
    ),
)


def carried_out(group: Group, before: list[Member]) -> list[Member]:
    """The members once every action of the plan has been done."""
    after = {member.instance_id: member for member in before}
    for number, action in enumerate(plan(group, before)):
        if isinstance(action, Terminate):
            old = after[action.instance_id]
            after[action.instance_id] = replace(old, lifecycle="Terminating")
        else:
            name = f"new-{number}"
            after[name] = Member(name, action.subnet.id, action.subnet.zone, "Pending", BEGAN)
    return list(after.values())


def counted(found: list[Member]) -> list[Member]:
    return [m for m in found if m.lifecycle in ("InService", "Pending", "Pending:Wait")]


@given(GROUPS, members())
def test_a_plan_that_was_carried_out_leaves_nothing_to_do(
    group: Group, before: list[Member]
) -> None:
    assert plan(group, carried_out(group, before)) == []


@given(GROUPS, members())
def test_the_desired_capacity_is_reached_by_well_members(
    group: Group, before: list[Member]
) -> None:
    group = replace(group, suspended=frozenset())
    after = counted(carried_out(group, before))
    unmovable = [m for m in counted(before) if m.protected and not m.failure]
    assert len(after) == max(group.desired, len(unmovable))
    assert not any(member.failure for member in after)


@given(GROUPS, members())
def test_what_is_protected_in_standby_or_leaving_is_not_touched(
    group: Group, before: list[Member]
) -> None:
    taken = {action.instance_id for action in plan(group, before) if isinstance(action, Terminate)}
    for member in before:
        if member.lifecycle in ("Standby", "Terminating") or (
            member.protected and not member.failure
        ):
            assert member.instance_id not in taken


@given(st.integers(0, 9), st.lists(st.sampled_from(SUBNETS), min_size=1, max_size=3, unique=True))
def test_a_new_group_is_spread_evenly(desired: int, subnets: list[Subnet]) -> None:
    launched = plan(Group(desired, tuple(subnets)), [])
    zones = Counter(action.subnet.zone for action in launched if isinstance(action, Launch))
    sizes = [zones[subnet.zone] for subnet in subnets]
    assert sum(sizes) == desired
    assert max(sizes) - min(sizes) <= 1


def member(name: str, zone: str = "a", minutes: int = 0, **more) -> Member:
    launched = BEGAN + timedelta(minutes=minutes)
    return Member(name, f"s-{zone}", zone, "InService", launched, **more)


def taken(actions: list) -> list[str]:
    return [action.instance_id for action in actions if isinstance(action, Terminate)]


def test_a_dead_member_is_replaced_in_the_emptiest_zone() -> None:
    members = [member("i-1", "a"), member("i-2", "b"), member("i-3", "c", failure="it is stopped")]
    actions = plan(Group(3, SUBNETS), members)
    assert taken(actions) == ["i-3"]
    assert [action.subnet.zone for action in actions if isinstance(action, Launch)] == ["c"]


def test_the_fullest_zone_shrinks_first_and_the_outdated_before_the_old() -> None:
    here = [member("i-old", "a", 0), member("i-outdated", "a", 9, current=False)]
    others = [member("i-b", "b", 0), member("i-c", "c", 0)]
    assert taken(plan(Group(3, SUBNETS), here + others)) == ["i-outdated"]


@pytest.mark.parametrize(
    ("suspended", "desired", "acts"),
    [("Launch", 3, False), ("Terminate", 1, False), ("ReplaceUnhealthy", 2, False), ("x", 2, True)],
)
def test_a_suspended_process_does_nothing(suspended: str, desired: int, acts: bool) -> None:
    members = [member("i-1"), member("i-2", "b", failure="" if desired != 2 else "it is stopped")]
    group = Group(desired, SUBNETS, frozenset({suspended}))
    assert bool(plan(group, members)) is acts


# --- the engine on moto's state -------------------------------------------------------------------


@functools.cache  # every new one reads EC2's whole description again
def client(service: str):
    return boto3.client(
        service, region_name=REGION, aws_access_key_id="testing", aws_secret_access_key="testing"
    )


class Cloud:
    """A VPC with three subnets, a launch template, and an engine whose clock the test moves."""

    def __init__(self) -> None:
        self.ec2, self.asg = client("ec2"), client("autoscaling")
        self.now = BEGAN
        vpc = self.ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
        self.subnets = [
            self.ec2.create_subnet(
                VpcId=vpc, CidrBlock=f"10.9.{number}.0/24", AvailabilityZone=REGION + zone
            )["Subnet"]["SubnetId"]
            for number, zone in enumerate("abc")
        ]
        self.image = self.ec2.register_image(Name="test")["ImageId"]
        self.ec2.create_launch_template(
            LaunchTemplateName="web",
            LaunchTemplateData={"ImageId": self.image, "InstanceType": "t3.micro"},
        )
        self.engine = Engine(self.context(), now=lambda: self.now)
        autoscaling_api.install(self.engine)

    def context(self) -> Context:
        def backend(name: str):
            return get_backend(name)[DEFAULT_ACCOUNT_ID][REGION]

        return Context(
            hosts=None,
            ec2=lambda: backend("ec2"),
            backend=backend,
            account=DEFAULT_ACCOUNT_ID,
            region=REGION,
            zones=(),
            cache="",
            log=lambda *_: None,
            on_instance_state=lambda _: None,
        )

    def group(self, desired: int, version: str = "$Latest", **more) -> None:
        sizes = {"MinSize": 0, "MaxSize": 6, "DesiredCapacity": desired}
        self.asg.create_auto_scaling_group(
            AutoScalingGroupName="web",
            LaunchTemplate={"LaunchTemplateName": "web", "Version": version},
            VPCZoneIdentifier=",".join(self.subnets),
            **(sizes | more),
        )
        self.settle()

    def settle(self, seconds: float = 0) -> None:
        self.now += timedelta(seconds=seconds)
        for _ in range(4):
            self.engine.tick()

    def members(self) -> dict[str, dict]:
        groups = self.asg.describe_auto_scaling_groups(AutoScalingGroupNames=["web"])
        return {m["InstanceId"]: m for m in groups["AutoScalingGroups"][0]["Instances"]}

    def states(self) -> list[str]:
        return sorted(member["LifecycleState"] for member in self.members().values())

    def tags(self, instance_id: str) -> dict[str, str]:
        said = self.ec2.describe_instances(InstanceIds=[instance_id])
        return {tag["Key"]: tag["Value"] for tag in said["Reservations"][0]["Instances"][0]["Tags"]}

    def activities(self) -> list[dict]:
        return self.asg.describe_scaling_activities(AutoScalingGroupName="web")["Activities"]

    def hook(self, transition: str, **more) -> None:
        self.asg.put_lifecycle_hook(
            AutoScalingGroupName="web",
            LifecycleHookName="warm",
            LifecycleTransition=transition,
            **({"HeartbeatTimeout": 60, "DefaultResult": "ABANDON"} | more),
        )

    def complete(self, instance_id: str, result: str = "CONTINUE") -> None:
        self.asg.complete_lifecycle_action(
            AutoScalingGroupName="web",
            LifecycleHookName="warm",
            InstanceId=instance_id,
            LifecycleActionResult=result,
        )


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        yield Cloud()


def test_a_group_is_spread_over_the_zones_of_its_subnets(cloud: Cloud) -> None:
    cloud.group(3)
    assert {m["AvailabilityZone"] for m in cloud.members().values()} == {
        REGION + zone for zone in "abc"
    }
    assert cloud.states() == ["InService"] * 3


def test_capacity_follows_in_both_directions(cloud: Cloud) -> None:
    cloud.group(1)
    for desired in (4, 2, 0):
        cloud.asg.set_desired_capacity(AutoScalingGroupName="web", DesiredCapacity=desired)
        cloud.settle()
        assert len(cloud.members()) == desired


@pytest.mark.parametrize("how", ["stop_instances", "terminate_instances"])
def test_a_member_that_was_stopped_or_terminated_outside_is_replaced(
    cloud: Cloud, how: str
) -> None:
    cloud.group(3)
    lost = next(iter(cloud.members()))
    getattr(cloud.ec2, how)(InstanceIds=[lost])
    cloud.settle()
    assert lost not in cloud.members()
    assert cloud.states() == ["InService"] * 3
    zones = Counter(member["AvailabilityZone"] for member in cloud.members().values())
    assert set(zones.values()) == {1}


def test_a_member_reported_unhealthy_is_replaced(cloud: Cloud) -> None:
    cloud.group(2)
    sick = next(iter(cloud.members()))
    cloud.asg.set_instance_health(InstanceId=sick, HealthStatus="Unhealthy")
    cloud.settle()
    assert sick not in cloud.members()
    assert len(cloud.members()) == 2


def test_capacity_outside_the_bounds_is_refused_and_nothing_changes(cloud: Cloud) -> None:
    cloud.group(2)
    with pytest.raises(ClientError, match="between the specified min size:0 and max size:6"):
        cloud.asg.set_desired_capacity(AutoScalingGroupName="web", DesiredCapacity=7)
    cloud.settle()
    assert len(cloud.members()) == 2


def test_new_bounds_move_the_capacity_inside_them(cloud: Cloud) -> None:
    cloud.group(2)
    cloud.asg.update_auto_scaling_group(AutoScalingGroupName="web", MinSize=4)
    cloud.settle()
    assert len(cloud.members()) == 4
    cloud.asg.update_auto_scaling_group(AutoScalingGroupName="web", MinSize=0, MaxSize=1)
    cloud.settle()
    assert len(cloud.members()) == 1


@pytest.mark.parametrize(("version", "expected"), [("$Latest", "2"), ("$Default", "1"), ("1", "1")])
def test_a_launch_takes_the_version_the_group_names(
    cloud: Cloud, version: str, expected: str
) -> None:
    cloud.ec2.create_launch_template_version(
        LaunchTemplateName="web",
        LaunchTemplateData={"ImageId": cloud.image, "InstanceType": "t3.large"},
    )
    cloud.group(1, version)
    (found,) = cloud.members().values()
    assert found["LaunchTemplate"]["Version"] == expected
    assert found["InstanceType"] == {"1": "t3.micro", "2": "t3.large"}[expected]


def test_a_member_keeps_the_version_it_was_launched_from(cloud: Cloud) -> None:
    cloud.group(1)
    cloud.ec2.create_launch_template_version(
        LaunchTemplateName="web", LaunchTemplateData={"ImageId": cloud.image}
    )
    cloud.settle()
    assert [m["LaunchTemplate"]["Version"] for m in cloud.members().values()] == ["1"]


def test_tags_propagate_and_name_the_group(cloud: Cloud) -> None:
    tag = {"ResourceId": "web", "ResourceType": "auto-scaling-group"}
    cloud.group(
        1,
        Tags=[
            tag | {"Key": "Role", "Value": "app", "PropagateAtLaunch": True},
            tag | {"Key": "Private", "Value": "x", "PropagateAtLaunch": False},
        ],
    )
    tags = cloud.tags(next(iter(cloud.members())))
    assert tags["Role"] == "app"
    assert tags["aws:autoscaling:groupName"] == "web"
    assert "Private" not in tags


def test_a_launch_waits_for_its_hook_and_goes_on_when_told(cloud: Cloud) -> None:
    cloud.group(0)
    cloud.hook(LAUNCHING)
    cloud.asg.set_desired_capacity(AutoScalingGroupName="web", DesiredCapacity=1)
    cloud.settle()
    assert cloud.states() == ["Pending:Wait"]
    cloud.complete(next(iter(cloud.members())))
    cloud.settle()
    assert cloud.states() == ["InService"]


def test_a_launch_that_is_abandoned_is_tried_anew(cloud: Cloud) -> None:
    cloud.group(0)
    cloud.hook(LAUNCHING)
    cloud.asg.set_desired_capacity(AutoScalingGroupName="web", DesiredCapacity=1)
    cloud.settle()
    (first,) = cloud.members()
    cloud.complete(first, "ABANDON")
    cloud.settle()
    assert cloud.members() == {}, "not at once: a hook that always abandons must not spin"
    cloud.settle(5)
    assert cloud.states() == ["Pending:Wait"]
    assert first not in cloud.members()


def test_a_silent_hook_ends_with_its_default(cloud: Cloud) -> None:
    cloud.group(0)
    cloud.hook(LAUNCHING, DefaultResult="CONTINUE")
    cloud.asg.set_desired_capacity(AutoScalingGroupName="web", DesiredCapacity=1)
    cloud.settle()
    cloud.settle(59)
    assert cloud.states() == ["Pending:Wait"]
    cloud.settle(1)
    assert cloud.states() == ["InService"]


def test_a_heartbeat_gives_a_hook_more_time(cloud: Cloud) -> None:
    cloud.group(0)
    cloud.hook(LAUNCHING, DefaultResult="CONTINUE")
    cloud.asg.set_desired_capacity(AutoScalingGroupName="web", DesiredCapacity=1)
    cloud.settle()
    cloud.settle(50)
    cloud.asg.record_lifecycle_action_heartbeat(
        AutoScalingGroupName="web",
        LifecycleHookName="warm",
        InstanceId=next(iter(cloud.members())),
    )
    cloud.settle(50)
    assert cloud.states() == ["Pending:Wait"]


def test_a_member_that_leaves_waits_for_its_hook_and_runs_until_then(cloud: Cloud) -> None:
    cloud.group(1)
    cloud.hook(TERMINATING)
    (leaving,) = cloud.members()
    cloud.asg.set_desired_capacity(AutoScalingGroupName="web", DesiredCapacity=0)
    cloud.settle()
    said = cloud.ec2.describe_instances(InstanceIds=[leaving])
    assert said["Reservations"][0]["Instances"][0]["State"]["Name"] == "running"
    assert cloud.states() == ["Terminating:Wait"]
    cloud.complete(leaving)
    cloud.settle()
    assert cloud.members() == {}


def test_a_lifecycle_action_nobody_waits_for_is_refused(cloud: Cloud) -> None:
    cloud.group(1)
    with pytest.raises(ClientError, match="No active Lifecycle Action"):
        cloud.complete(next(iter(cloud.members())))


def test_a_member_terminated_through_the_group_can_shrink_it(cloud: Cloud) -> None:
    cloud.group(3)
    gone, replaced, _ = cloud.members()
    for instance_id, shrink in ((gone, True), (replaced, False)):
        cloud.asg.terminate_instance_in_auto_scaling_group(
            InstanceId=instance_id, ShouldDecrementDesiredCapacity=shrink
        )
    cloud.settle()
    assert len(cloud.members()) == 2
    assert not {gone, replaced} & set(cloud.members())


def test_a_group_with_members_is_deleted_only_by_force(cloud: Cloud) -> None:
    cloud.group(2)
    members = list(cloud.members())
    with pytest.raises(ClientError, match="ResourceInUse"):
        cloud.asg.delete_auto_scaling_group(AutoScalingGroupName="web")
    cloud.asg.set_instance_protection(
        AutoScalingGroupName="web", InstanceIds=members, ProtectedFromScaleIn=True
    )
    cloud.asg.delete_auto_scaling_group(AutoScalingGroupName="web", ForceDelete=True)
    assert set(cloud.members()) == set(members), "listed for as long as it has instances"
    cloud.settle()
    assert cloud.asg.describe_auto_scaling_groups()["AutoScalingGroups"] == []
    said = cloud.ec2.describe_instances(InstanceIds=members)
    states = {i["State"]["Name"] for r in said["Reservations"] for i in r["Instances"]}
    assert states == {"terminated"}


def test_a_second_group_of_the_same_name_is_refused(cloud: Cloud) -> None:
    cloud.group(1)
    with pytest.raises(ClientError, match="AlreadyExists"):
        cloud.group(1)


def test_standby_members_are_left_alone_and_do_not_count(cloud: Cloud) -> None:
    cloud.group(2)
    resting = next(iter(cloud.members()))
    cloud.asg.enter_standby(
        AutoScalingGroupName="web", InstanceIds=[resting], ShouldDecrementDesiredCapacity=False
    )
    cloud.ec2.stop_instances(InstanceIds=[resting])
    cloud.settle()
    assert cloud.states() == ["InService", "InService", "Standby"]


def test_activities_tell_what_happened_and_why(cloud: Cloud) -> None:
    cloud.group(1)
    (lost,) = cloud.members()
    cloud.ec2.stop_instances(InstanceIds=[lost])
    cloud.settle()
    newest, taken_out, first = cloud.activities()
    assert first["Cause"].endswith("increasing the capacity from 0 to 1.")
    assert taken_out["Description"] == f"Terminating EC2 instance: {lost}"
    assert "EC2 health check" in taken_out["Cause"]
    assert {a["StatusCode"] for a in (newest, taken_out, first)} == {"Successful"}


def test_a_launch_that_fails_is_reported_and_tried_again_later(cloud: Cloud) -> None:
    cloud.group(0)
    (template,) = get_backend("ec2")[DEFAULT_ACCOUNT_ID][REGION].launch_templates.values()
    template.versions[0].data["SecurityGroupIds"] = ["sg-that-is-gone"]
    cloud.asg.set_desired_capacity(AutoScalingGroupName="web", DesiredCapacity=1)
    cloud.settle()
    (failed,) = cloud.activities()
    assert failed["StatusCode"] == "Failed"
    assert "sg-that-is-gone" in failed["StatusMessage"]
    del template.versions[0].data["SecurityGroupIds"]
    cloud.settle(1)
    assert cloud.members() == {}
    cloud.settle(2)
    assert cloud.states() == ["InService"]
