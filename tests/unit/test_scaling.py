"""An Auto Scaling group, its launch template and what new hosts find in S3, on moto."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from moto import mock_aws

from flotilla import config
from flotilla.aws import joining, scaling
from flotilla.aws import session as aws
from flotilla.errors import FlotillaError
from flotilla.settings import Settings

AMI = "ami-12c6146b"  # one that moto has


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    lab = config.load("lab")
    plain = {"endpoint_url": None, "profile": None, "credentials_file": None}
    monkeypatch.setattr(aws, "_clients", {})
    with mock_aws():
        yield lab.model_copy(update={"aws": lab.aws.model_copy(update=plain)})


@pytest.fixture
def group(settings: Settings) -> str:
    name, ec2 = settings.name_of("app"), aws.client(settings, "ec2")
    ec2.create_launch_template(
        LaunchTemplateName=name,
        VersionDescription="one",
        LaunchTemplateData={"ImageId": AMI, "InstanceType": "t3.small"},
    )
    aws.client(settings, "autoscaling").create_auto_scaling_group(
        AutoScalingGroupName=name,
        MinSize=0,
        MaxSize=4,
        DesiredCapacity=2,
        AvailabilityZones=["eu-central-1a"],
        LaunchTemplate={"LaunchTemplateName": name, "Version": "1"},
    )
    return name


def test_a_group_is_read_resized_and_read_back(settings, group):
    before = scaling.group(settings, "app")
    assert (before.desired, before.largest, before.version) == (2, 4, "1")
    assert len(before.staying) == 2
    scaling.resize(settings, "app", desired=3, largest=6)
    after = scaling.group(settings, "app")
    assert (after.desired, after.largest, after.launching) == (3, 6, 0)


def test_a_host_is_ended_and_none_is_wanted_in_its_place(settings, group):
    leaving = scaling.group(settings, "app").staying[0]
    scaling.end(settings, "app", leaving)
    after = scaling.group(settings, "app")
    assert leaving not in after.staying
    assert after.desired == 1
    assert scaling.states(settings, [leaving])[leaving] in {"terminated", "shutting-down"}


def test_another_version_is_added_and_launched_from(settings, group):
    other = {"ImageId": "ami-03cf127a", "InstanceType": "t3.small"}
    number = scaling.add_version(settings, "app", other, "two")
    assert scaling.group(settings, "app").version == "1", "nobody launches from it yet"
    scaling.launch_from(settings, "app", number)
    assert scaling.group(settings, "app").version == number == "2"
    assert [(v.number, v.content) for v in scaling.versions(settings, "app")] == [
        ("2", "two"),
        ("1", "one"),
    ]


def test_processes_rest_and_go_on(settings, group):
    scaling.suspend(settings, "app", scaling.DISTURBING)
    assert scaling.group(settings, "app").suspended == set(scaling.DISTURBING)
    scaling.resume(settings, "app", ["AZRebalance"])
    assert "AZRebalance" not in scaling.group(settings, "app").suspended


def test_without_a_group_the_operator_is_told_what_makes_one(settings):
    with pytest.raises(FlotillaError, match=r"there is no Auto Scaling group flotilla-lab-app"):
        scaling.group(settings, "app")


@pytest.fixture
def bucket(settings: Settings) -> str:
    name = settings.name_of("artifacts")
    where = {"LocationConstraint": settings.region}
    aws.client(settings, "s3").create_bucket(Bucket=name, CreateBucketConfiguration=where)
    return name


def test_what_is_published_is_there_with_its_checksum_and_written_once(settings, bucket):
    assert joining.read(settings, "app", joining.BUNDLE) is None
    assert joining.publish(settings, "app", joining.BUNDLE, {"files": []})
    assert not joining.publish(settings, "app", joining.BUNDLE, {"files": []})
    assert joining.read(settings, "app", joining.BUNDLE) == {"files": []}
    head = aws.client(settings, "s3").head_object(Bucket=bucket, Key="join/app/bundle.json")
    assert len(head["Metadata"]["sha256"]) == 64


def test_a_rehearsal_writes_nothing(settings, bucket):
    assert joining.publish(settings, "app", joining.BUNDLE, {"files": []}, dry=True)
    assert joining.read(settings, "app", joining.BUNDLE) is None


def test_the_pointer_names_the_release_of_the_last_deploy(settings, bucket):
    joining.point(settings, "app", "1.2.3", "0" * 64)
    assert joining.point(settings, "app", "1.2.4", "1" * 64)
    found = aws.client(settings, "s3").get_object(Bucket=bucket, Key="join/app/release.json")
    assert json.loads(found["Body"].read()) == {"version": "1.2.4", "sha256": "1" * 64}
