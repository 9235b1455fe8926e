"""An instance gets another type, against moto's EC2 in this process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError
from fleets import maker
from moto import mock_aws

from flotilla.aws import resize
from flotilla.aws.session import client
from flotilla.errors import HostFailed
from flotilla.settings import Settings


@pytest.fixture
def settings(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        yield maker(tmp_path)().settings


@pytest.fixture
def instance(settings: Settings) -> str:
    made = client(settings, "ec2").run_instances(
        ImageId="ami-12345678", InstanceType="t3.medium", MinCount=1, MaxCount=1
    )
    return str(made["Instances"][0]["InstanceId"])


def seen(settings: Settings, instance: str) -> tuple[str, str]:
    found = client(settings, "ec2").describe_instances(InstanceIds=[instance])
    one = found["Reservations"][0]["Instances"][0]
    return one["InstanceType"], one["State"]["Name"]


def test_an_instance_runs_with_its_new_type(settings: Settings, instance: str) -> None:
    resize.retype(settings, instance, before="t3.medium", to="r6g.large", sleep=lambda _: None)
    assert seen(settings, instance) == ("r6g.large", "running")


def test_without_room_for_the_new_type_it_runs_as_before(
    settings: Settings, instance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ec2 = client(settings, "ec2")
    start = ec2.start_instances

    def no_room(**request: Any) -> Any:
        if seen(settings, instance)[0] == "r6g.large":
            error = {"Code": "InsufficientInstanceCapacity", "Message": "no room"}
            raise ClientError({"Error": error}, "StartInstances")
        return start(**request)

    monkeypatch.setattr(ec2, "start_instances", no_room)
    with pytest.raises(HostFailed, match="did not become") as failed:
        resize.retype(settings, instance, before="t3.medium", to="r6g.large", sleep=lambda _: None)
    assert "It runs as t3.medium again" in failed.value.untouched
    assert seen(settings, instance) == ("t3.medium", "running")
