"""What a program on a host learns from the metadata service, and whom the API takes it for."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from guests import Guest, Place, client, needs_lab, place, until

pytestmark = needs_lab

READ = """
import sys, urllib.request
base = "http://169.254.169.254/latest/"
def ask(path, method="GET", **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(base + path, method=method, headers=headers)
    return urllib.request.urlopen(request, timeout=5).read().decode()
try:
    token = {}
    if "--no-token" not in sys.argv:
        made = ask("api/token", "PUT", X_aws_ec2_metadata_token_ttl_seconds="60")
        token = {"X_aws_ec2_metadata_token": made}
    print(ask(sys.argv[1], **token))
except urllib.error.HTTPError as error:
    print("HTTP", error.code)
"""
WHO = """
import boto3, json
said = boto3.client("sts").get_caller_identity()
print(json.dumps({"arn": said["Arn"], "region": boto3.Session().region_name}))
"""


@dataclass
class Scene:
    place: Place
    guest: Guest
    role: str

    def read(self, path: str, *options: str) -> str:
        return self.guest.python(READ, path, *options)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    iam, role = client("iam"), f"t-{uuid.uuid4().hex[:8]}"
    trust = json.dumps({"Version": "2012-10-17", "Statement": []})
    iam.create_role(RoleName=role, AssumeRolePolicyDocument=trust)
    iam.create_instance_profile(InstanceProfileName=role)
    iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
    try:
        with place() as where:
            (guest,) = where.launch(
                SecurityGroupIds=[where.group()],
                IamInstanceProfile={"Name": role},
                MetadataOptions={"InstanceMetadataTags": "enabled"},
                TagSpecifications=[
                    {"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "teller"}]}
                ],
            )
            yield Scene(where, guest, role)
    finally:
        iam.remove_role_from_instance_profile(InstanceProfileName=role, RoleName=role)
        iam.delete_instance_profile(InstanceProfileName=role)
        iam.delete_role(RoleName=role)


def test_a_host_knows_which_instance_it_is(scene: Scene) -> None:
    assert scene.read("meta-data/instance-id") == scene.guest.id
    assert scene.read("meta-data/local-ipv4") == scene.guest.address
    assert scene.read("meta-data/tags/instance/Name") == "teller"


def test_the_hardware_address_is_the_interface_s_own(scene: Scene) -> None:
    assert scene.guest.says("cat", "/sys/class/net/eth0/address") == scene.read("meta-data/mac")


def test_without_a_token_a_host_is_told_nothing(scene: Scene) -> None:
    assert scene.read("meta-data/instance-id", "--no-token") == "HTTP 401"


def test_a_moved_elastic_ip_is_seen_at_once(scene: Scene) -> None:
    ec2 = scene.place.ec2
    elastic = ec2.allocate_address(Domain="vpc")
    try:
        made = ec2.associate_address(
            AllocationId=elastic["AllocationId"], InstanceId=scene.guest.id
        )
        assert scene.read("meta-data/public-ipv4") == elastic["PublicIp"]
        ec2.disassociate_address(AssociationId=made["AssociationId"])
        until(lambda: scene.read("meta-data/public-ipv4") != elastic["PublicIp"], 1, "it is gone")
    finally:
        ec2.release_address(AllocationId=elastic["AllocationId"])


def test_boto3_on_a_host_without_keys_is_its_role_to_the_api(scene: Scene) -> None:
    # The machine's own boto3 in the host's network: what counts is where the calls come from.
    said = subprocess.run(
        ["nsenter", "-t", str(scene.guest.pid), "-n", "--", sys.executable, "-c", WHO],
        env={
            "HOME": "/nonexistent",
            "AWS_ENDPOINT_URL": "http://169.254.169.250:4566",
            "AWS_DEFAULT_REGION": "eu-central-1",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    arn = json.loads(said.stdout)["arn"]
    assert arn.endswith(f":assumed-role/{scene.role}/{scene.guest.id}")


PROXY = """
import http.client, sys
link = http.client.HTTPConnection("169.254.169.253", 3142, timeout=30)
link.request(sys.argv[1], sys.argv[2])
answer = link.getresponse()
answer.read()
print(answer.status)
"""


def test_packages_are_the_only_thing_outside_a_host_can_ask_for(scene: Scene) -> None:
    assert scene.guest.python(PROXY, "GET", "http://192.0.2.1/debian/pool/x.deb") == "403"
    assert scene.guest.python(PROXY, "POST", "http://192.0.2.1/") == "403"
    assert scene.guest.python(PROXY, "CONNECT", "192.0.2.1:443") == "403"


def test_the_mirror_of_the_host_s_own_apt_answers_through_the_proxy(scene: Scene) -> None:
    listed = scene.guest.says("apt-get", "update", "--print-uris")
    index = listed.split("'")[1]
    assert index.endswith("/InRelease")
    if scene.guest.python(PROXY, "HEAD", index, timeout=90) == "502":
        pytest.skip("this machine reaches no package mirror")
    assert scene.guest.python(PROXY, "GET", index, timeout=90) == "200"
