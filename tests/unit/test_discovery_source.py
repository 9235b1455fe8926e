"""What the load balancers hear of EC2 and Auto Scaling: everything, or nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from botocore.exceptions import ClientError
from fleets import Make, maker, register_images
from moto import mock_aws

from flotilla.discovery import source
from flotilla.discovery.source import Ec2, as_hosts
from flotilla.inventory import collect
from flotilla.provision import hosts, parts
from flotilla.provision.world import by_name, tag


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    make = maker(tmp_path_factory.mktemp("repo"))
    with mock_aws(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
        register_images(make())
        parts.converge(make())
        yield make


@pytest.fixture
def ec2(fleet: Make) -> Ec2:
    return Ec2("flotilla", "lab", "flotilla-lab-app")


def test_hosts_have_the_names_and_addresses_of_the_inventory(fleet, ec2):
    snapshot = collect(fleet().settings, now=0)
    wanted = {host.name: host.private_ip for host in snapshot.by_role("app")}
    assert {host.name: host.address for host in ec2.hosts()} == wanted
    assert {host.lifecycle for host in ec2.hosts()} == {"InService"}
    assert all(host.is_wanted for host in ec2.hosts())


def test_other_fleets_and_roles_are_not_seen(fleet):
    assert Ec2("flotilla", "production", "flotilla-production-app").hosts() == []


def test_every_page_is_read_and_one_that_fails_fails_the_whole(fleet, ec2, monkeypatch):
    monkeypatch.setattr(source, "PAGE", 5)  # the least EC2 takes
    world = fleet()
    image, tags = register_images(world)["app"], world.tagged("instance", "", Role="app")
    launched = [  # one by one: a page holds so many launches
        world.ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1, TagSpecifications=tags)
        for _ in range(8)
    ]
    ids = [one["Instances"][0]["InstanceId"] for one in launched]
    assert len(ec2.hosts()) == 11
    pages = 0
    call = ec2._ec2._make_api_call

    def second_page_is_throttled(name, parameters):
        nonlocal pages
        pages += 1
        if pages == 2:
            raise ClientError({"Error": {"Code": "RequestLimitExceeded"}}, name)
        return call(name, parameters)

    monkeypatch.setattr(ec2._ec2, "_make_api_call", second_page_is_throttled)
    with pytest.raises(ClientError):
        ec2.hosts()
    monkeypatch.undo()
    world.ec2.terminate_instances(InstanceIds=ids)
    gone = [host for host in ec2.hosts() if host.state == "terminated"]
    assert len(gone) == 8
    assert not any(host.is_wanted for host in gone)


def made(number: int, name: str, state: str = "running", address: str = "") -> dict:
    tags = {"Role": "app", "Name": name, source.GROUP_TAG: "g"}
    return {
        "InstanceId": f"i-{number:017x}",
        "State": {"Name": state},
        "PrivateIpAddress": address or f"10.0.0.{number}",
        "Tags": [{"Key": key, "Value": value} for key, value in tags.items() if value],
    }


def test_a_host_that_is_gone_may_have_the_name_of_one_that_lives():
    found = as_hosts([made(1, "app-3", "terminated"), made(2, "app-3")], {})
    assert [(host.name, host.instance_id[-1], host.state) for host in found] == [
        ("app-3", "1", "terminated"),
        ("app-3", "2", "running"),
    ]


def test_a_new_host_is_followed_from_when_it_has_its_name():
    assert as_hosts([made(1, "")], {}) == []
    assert [host.name for host in as_hosts([made(1, "app-4")], {})] == ["app-4"]


def test_hosts_that_claim_one_name_are_called_as_in_the_inventory():
    found = as_hosts([made(0xABCDE1, "app-4"), made(0xABCDE2, "app-4")], {})
    assert [host.name for host in found] == ["app-abcde1", "app-abcde2"]


def test_lifecycles_are_found_by_instance():
    found = as_hosts([made(1, "app-1")], {made(1, "")["InstanceId"]: "Terminating:Wait"})
    assert found[0].why_leaving == "Auto Scaling says Terminating:Wait"


def test_the_group_tag_is_the_one_that_auto_scaling_gives(fleet):
    found = by_name(hosts.instances(fleet()))["app-1"]
    assert tag(found, source.GROUP_TAG) == "flotilla-lab-app"
