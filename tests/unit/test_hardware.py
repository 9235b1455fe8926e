"""Instance types and instances as hardware, against moto's EC2 in this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from fleets import maker
from moto import mock_aws

from flotilla import inventory
from flotilla.aws import hardware
from flotilla.aws.session import client
from flotilla.errors import BadOption
from flotilla.settings import Settings


@pytest.fixture
def settings(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        yield maker(tmp_path)().settings


def test_a_type_has_memory_an_architecture_and_zones(settings: Settings) -> None:
    found = hardware.size(settings, "t3.medium")
    assert (found.name, found.memory_mb, found.architectures) == (
        "t3.medium",
        4096,
        frozenset({"x86_64"}),
    )
    assert found.zones >= set(settings.zones)
    assert hardware.size(settings, "t4g.small").architectures == frozenset({"arm64"})


def test_a_type_that_ec2_does_not_know_is_one_clear_error(settings: Settings) -> None:
    with pytest.raises(BadOption, match=r"no instance type 't9\.small' in eu-central-1") as error:
        hardware.size(settings, "t9.small")
    assert error.value.untouched == "Nothing was changed"


def test_a_stopped_host_is_shown_and_one_that_is_gone_is_not(settings: Settings) -> None:
    tags = {"Fleet": settings.name, "Env": settings.env, "ManagedBy": "flotilla", "Role": "redis"}
    ec2, ids = client(settings, "ec2"), []
    for number in (1, 2, 3):
        named = [{"Key": k, "Value": v} for k, v in {**tags, "Name": f"redis-{number}"}.items()]
        made = ec2.run_instances(
            ImageId="ami-12345678",
            InstanceType="t3.small",
            MinCount=1,
            MaxCount=1,
            TagSpecifications=[{"ResourceType": "instance", "Tags": named}],
        )
        ids.append(made["Instances"][0]["InstanceId"])
    hosts = inventory.load(settings, refresh=True).hosts
    ec2.stop_instances(InstanceIds=ids[1:2])
    forgotten = replace(hosts[2], instance_id="i-9")
    found = hardware.machines(settings, [*hosts[:2], forgotten])
    assert [(one.name, one.type, one.state) for one in found] == [
        ("redis-1", "t3.small", "running"),
        ("redis-2", "t3.small", "stopped"),
    ]
    assert hardware.machines(settings, []) == []
