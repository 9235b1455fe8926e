"""Where moto is not AWS, in one list. A test here fails when a gap closes: then the line in `GAPS`
says which workaround has lost its reason.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

REGION = "eu-central-1"


class Account:
    """An empty account with a VPC, a subnet in each of two zones, and a launch template."""

    def __init__(self) -> None:
        self.ec2 = self.client("ec2")
        self.vpc = self.ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        self.subnets = [
            self.ec2.create_subnet(
                VpcId=self.vpc, CidrBlock=f"10.0.{n}.0/24", AvailabilityZone=f"{REGION}{zone}"
            )["Subnet"]["SubnetId"]
            for n, zone in enumerate("ab")
        ]
        self.image = self.ec2.register_image(Name="image", RootDeviceName="/dev/sda1")["ImageId"]
        self.client("iam").create_instance_profile(InstanceProfileName="profile")
        self.ec2.create_launch_template(
            LaunchTemplateName="template",
            LaunchTemplateData={
                "ImageId": self.image,
                "InstanceType": "t3.micro",
                "IamInstanceProfile": {"Name": "profile"},
                "MetadataOptions": {"HttpTokens": "required"},
            },
        )

    def client(self, service: str) -> Any:
        return boto3.client(service, region_name=REGION)

    def run(self, **arguments: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.ec2.run_instances(
            LaunchTemplate={"LaunchTemplateName": "template"},
            MinCount=1,
            MaxCount=1,
            SubnetId=self.subnets[0],
            **arguments,
        )["Instances"][0]
        return found

    def group(self, capacity: int) -> list[dict[str, Any]]:
        scaling = self.client("autoscaling")
        scaling.create_auto_scaling_group(
            AutoScalingGroupName="group",
            MinSize=0,
            MaxSize=9,
            DesiredCapacity=capacity,
            LaunchTemplate={"LaunchTemplateName": "template", "Version": "1"},
            VPCZoneIdentifier=",".join(self.subnets),
        )
        found = scaling.describe_auto_scaling_groups(AutoScalingGroupNames=["group"])
        return list(found["AutoScalingGroups"][0]["Instances"])


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    with mock_aws():
        yield Account()


def is_missing(call: Callable[[], object]) -> bool:
    try:
        call()
    except NotImplementedError:
        return True
    except ClientError as error:
        return error.response["Error"]["Code"] in {"NotImplemented", "InternalFailure"}
    return False


def asg_ignores_zones(account: Account) -> bool:
    return len({one["AvailabilityZone"] for one in account.group(4)}) == 1


def template_loses_metadata_options(account: Account) -> bool:
    return bool(account.run()["MetadataOptions"]["HttpTokens"] != "required")


def template_loses_profile(account: Account) -> bool:
    return "IamInstanceProfile" not in account.run()


def template_version_forgets_its_source(account: Account) -> bool:
    made = account.ec2.create_launch_template_version(
        LaunchTemplateName="template",
        SourceVersion="1",
        LaunchTemplateData={"InstanceType": "t3.small"},
    )["LaunchTemplateVersion"]
    return "ImageId" not in made["LaunchTemplateData"]


def client_token_is_ignored(account: Account) -> bool:
    twice = {account.run(ClientToken="once")["InstanceId"] for _ in range(2)}
    return len(twice) == 2


def nat_filter_ignores_tags(account: Account) -> bool:
    address = account.ec2.allocate_address(Domain="vpc")["AllocationId"]
    account.ec2.create_nat_gateway(SubnetId=account.subnets[0], AllocationId=address)
    nobody = [{"Name": "tag:Fleet", "Values": ["nobody"]}]
    return bool(account.ec2.describe_nat_gateways(Filters=nobody)["NatGateways"])


def key_pair_id_is_ignored(account: Account) -> bool:
    made = account.ec2.create_key_pair(KeyName="key")["KeyPairId"]
    account.ec2.delete_key_pair(KeyPairId=made)
    return bool(account.ec2.describe_key_pairs()["KeyPairs"])


def register_image_drops_tags(account: Account) -> bool:
    tags = [{"ResourceType": "image", "Tags": [{"Key": "Role", "Value": "lb"}]}]
    made = account.ec2.register_image(Name="tagged", TagSpecifications=tags)["ImageId"]
    return not account.ec2.describe_images(ImageIds=[made])["Images"][0]["Tags"]


def protocol_needs_ports(account: Account) -> bool:
    group = account.ec2.create_security_group(
        GroupName="group", Description="group", VpcId=account.vpc
    )["GroupId"]
    vrrp = {"IpProtocol": "112", "IpRanges": [{"CidrIp": "10.0.0.0/16"}]}
    try:
        account.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[vrrp])
    except TypeError:
        return True
    return False


def new_bucket_has_no_encryption(account: Account) -> bool:
    s3 = account.client("s3")
    where = {"LocationConstraint": REGION}
    s3.create_bucket(Bucket="a-bucket", CreateBucketConfiguration=where)
    try:
        s3.get_bucket_encryption(Bucket="a-bucket")
    except ClientError:
        return True
    return False


def wrong_checksum_is_accepted(account: Account) -> bool:
    s3 = account.client("s3")
    where = {"LocationConstraint": REGION}
    s3.create_bucket(Bucket="a-bucket", CreateBucketConfiguration=where)
    try:
        s3.put_object(
            Bucket="a-bucket",
            Key="key",
            Body=io.BytesIO(b"body"),
            ChecksumSHA256="47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",  # of nothing
        )
    except ClientError:
        return False
    return True


def instance_refresh_is_missing(account: Account) -> bool:
    account.group(1)
    scaling = account.client("autoscaling")
    return is_missing(lambda: scaling.start_instance_refresh(AutoScalingGroupName="group"))


def lifecycle_actions_are_missing(account: Account) -> bool:
    account.group(1)
    scaling = account.client("autoscaling")
    return is_missing(
        lambda: scaling.complete_lifecycle_action(
            AutoScalingGroupName="group",
            LifecycleHookName="hook",
            LifecycleActionResult="CONTINUE",
        )
    )


def metadata_defaults_are_missing(account: Account) -> bool:
    return is_missing(lambda: account.ec2.modify_instance_metadata_defaults(HttpTokens="required"))


def iam_simulation_is_missing(account: Account) -> bool:
    iam = account.client("iam")
    return is_missing(
        lambda: iam.simulate_custom_policy(PolicyInputList=["{}"], ActionNames=["s3:GetObject"])
    )


def composite_alarms_are_missing(account: Account) -> bool:
    watch = account.client("cloudwatch")
    return is_missing(lambda: watch.put_composite_alarm(AlarmName="both", AlarmRule="TRUE"))


def alarms_are_not_evaluated(account: Account) -> bool:
    watch = account.client("cloudwatch")
    watch.put_metric_alarm(
        AlarmName="high",
        Namespace="N",
        MetricName="m",
        Statistic="Maximum",
        Period=60,
        EvaluationPeriods=1,
        Threshold=1,
        ComparisonOperator="GreaterThanThreshold",
    )
    watch.put_metric_data(Namespace="N", MetricData=[{"MetricName": "m", "Value": 9}])
    return bool(watch.describe_alarms()["MetricAlarms"][0]["StateValue"] != "ALARM")


@dataclass(frozen=True)
class Gap:
    """`is_open` tells whether moto still differs; `instead` is what we do because of it."""

    is_open: Callable[[Account], bool]
    instead: str


GAPS = [
    Gap(asg_ignores_zones, "lab.autoscaling spreads the hosts of a group"),
    Gap(template_loses_metadata_options, "lab.patches fills them in from the template"),
    Gap(template_loses_profile, "lab.patches associates the profile"),
    Gap(template_version_forgets_its_source, "provision.templates sends the whole content"),
    Gap(client_token_is_ignored, "provision.hosts looks again before it launches"),
    Gap(nat_filter_ignores_tags, "provision.destroy reads the tags of what it was given"),
    Gap(key_pair_id_is_ignored, "provision deletes key pairs by name"),
    Gap(register_image_drops_tags, "tests tag their images in a call of their own"),
    Gap(protocol_needs_ports, "provision.groups sends -1, which AWS takes too"),
    Gap(new_bucket_has_no_encryption, "provision.storage reads a refusal as not encrypted"),
    Gap(wrong_checksum_is_accepted, "downloads are compared with the hash we recorded"),
    Gap(instance_refresh_is_missing, "hosts are replaced through Standby and termination"),
    Gap(lifecycle_actions_are_missing, "names are given after launch, by tag"),
    Gap(metadata_defaults_are_missing, "every launch template demands IMDSv2 itself"),
    Gap(iam_simulation_is_missing, "rules.policies evaluates our own documents"),
    Gap(composite_alarms_are_missing, "alarms are simple ones"),
    Gap(alarms_are_not_evaluated, "no run-book waits for an alarm in the lab"),
]


@pytest.mark.parametrize("gap", GAPS, ids=lambda gap: gap.is_open.__name__)
def test_the_gap_is_still_open(account: Account, gap: Gap):
    assert gap.is_open(account), f"moto has closed it; not needed any more: {gap.instead}"
