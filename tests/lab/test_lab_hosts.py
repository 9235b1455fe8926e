"""Instances are real hosts: what an operator sees of their life through SSH and the EC2 API."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from guests import ZONES, Place, base_image, control, needs_lab, permission, place, state, until

pytestmark = needs_lab

KEY_NAME = "test-lab-hosts"


@dataclass
class Bench:
    """A VPC whose first subnet gives public addresses, a key pair, and a group that lets SSH in."""

    where: Place
    ec2: Any
    key: Path
    group: str

    def launch(self, *, image: str | None = None, **options: Any) -> str:
        """A new instance that answers SSH."""
        answer = self.ec2.run_instances(
            ImageId=image or base_image(self.ec2),
            InstanceType="t3.micro",
            MinCount=1,
            MaxCount=1,
            KeyName=KEY_NAME,
            SecurityGroupIds=[self.group],
            SubnetId=self.where.subnets[ZONES[0]],
            **options,
        )
        instance_id: str = answer["Instances"][0]["InstanceId"]
        assert answer["Instances"][0]["State"]["Name"] == "pending"
        until(lambda: state(self.ec2, instance_id) == "running", 30, f"{instance_id} runs")
        self.answers(instance_id)
        return instance_id

    def seen(self, instance_id: str) -> dict[str, Any]:
        """The instance as DescribeInstances has it."""
        said = self.ec2.describe_instances(InstanceIds=[instance_id])
        found: dict[str, Any] = said["Reservations"][0]["Instances"][0]
        return found

    def address(self, instance_id: str) -> str:
        """Its public address."""
        public: str = self.seen(instance_id)["PublicIpAddress"]
        return public

    def ssh(self, address: str, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as an operator does, by public address."""
        options = ("BatchMode=yes", "ConnectTimeout=1", "StrictHostKeyChecking=no")
        quiet = ("UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
        flags = [word for option in (*options, *quiet) for word in ("-o", option)]
        argv = ["ssh", "-F", "none", *flags, "-i", str(self.key), f"admin@{address}", command]
        return subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)

    def says(self, instance_id: str, command: str) -> str:
        """Output of a command on the host, over SSH."""
        done = self.ssh(self.address(instance_id), command)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def answers(self, instance_id: str) -> None:
        """Wait until the host lets an operator in."""
        address = self.address(instance_id)
        until(lambda: self.ssh(address, "true").returncode == 0, 30, f"{instance_id} answers SSH")

    def identity(self, instance_id: str) -> tuple[str, str, str]:
        """Machine id, SSH host key and host name."""
        read = "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub; hostname"
        machine, key, name = self.says(instance_id, read).splitlines()
        return machine, key, name


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    key = tmp_path_factory.mktemp("ssh") / "id"
    subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", str(key)], check=True)
    with place() as where:
        ec2 = where.ec2
        ec2.delete_key_pair(KeyName=KEY_NAME)
        ec2.import_key_pair(
            KeyName=KEY_NAME, PublicKeyMaterial=key.with_suffix(".pub").read_bytes()
        )
        public = where.subnets[ZONES[0]]
        ec2.modify_subnet_attribute(SubnetId=public, MapPublicIpOnLaunch={"Value": True})
        group = where.group()
        ec2.authorize_security_group_ingress(
            GroupId=group, IpPermissions=permission("tcp", (22, 22), cidr="198.18.0.0/15")
        )
        yield Bench(where, ec2, key, group)
        ec2.delete_key_pair(KeyName=KEY_NAME)


def test_a_new_host_boots_healthy_and_does_what_its_user_data_says(bench: Bench) -> None:
    host = bench.launch(UserData="#!/bin/sh\necho done > /root/user-data-ran\n")
    assert bench.says(host, "systemctl is-system-running --wait") == "running"
    assert bench.says(host, "cloud-init status --wait") == "status: done"
    assert bench.says(host, "sudo cat /root/user-data-ran") == "done"
    assert bench.says(host, ". /etc/os-release; echo $VERSION_CODENAME") == "trixie"


def test_the_console_shows_the_host_keys_that_ssh_then_meets(bench: Bench) -> None:
    host = bench.launch()
    text = bench.ec2.get_console_output(InstanceId=host)["Output"]
    block = text.split("-----BEGIN SSH HOST KEY KEYS-----")[1].split("-----END")[0].split("\n")
    scanned = subprocess.run(
        ["ssh-keyscan", "-t", "ed25519", bench.address(host)],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    ).stdout.split()
    assert scanned[2] in " ".join(block)


def test_a_disk_outlives_stop_and_start(bench: Bench) -> None:
    host = bench.launch()
    before = bench.identity(host)
    bench.says(host, "echo kept | sudo tee /srv/file")
    bench.ec2.stop_instances(InstanceIds=[host])
    assert state(bench.ec2, host) in ("stopping", "stopped")
    until(lambda: state(bench.ec2, host) == "stopped", 60, "it is stopped")
    assert "PublicIpAddress" not in bench.seen(host)
    bench.ec2.start_instances(InstanceIds=[host])
    until(lambda: state(bench.ec2, host) == "running", 30, "it runs again")
    bench.answers(host)
    assert bench.says(host, "cat /srv/file") == "kept"
    assert bench.identity(host) == before


def test_an_image_boots_as_a_new_host_with_the_old_ones_files_only(bench: Bench) -> None:
    source = bench.launch()
    bench.says(source, "echo baked | sudo tee /srv/file")
    image = bench.ec2.create_image(InstanceId=source, Name=f"test-{time.time_ns()}")["ImageId"]
    try:
        until(lambda: _image_state(bench, image) == "available", 60, "the image is available")
        copy = bench.launch(image=image)
        assert bench.says(copy, "cat /srv/file") == "baked"
        ours, theirs = bench.identity(copy), bench.identity(source)
        assert all(mine != other for mine, other in zip(ours, theirs, strict=True))
    finally:
        bench.ec2.deregister_image(ImageId=image)


def _image_state(bench: Bench, image: str) -> str:
    found: str = bench.ec2.describe_images(ImageIds=[image])["Images"][0]["State"]
    return found


def test_an_elastic_ip_leads_to_its_new_host_within_a_second(bench: Bench) -> None:
    old, new = bench.launch(), bench.launch()
    names = {host: bench.says(host, "hostname") for host in (old, new)}
    allocated = bench.ec2.allocate_address(Domain="vpc")
    address, allocation = allocated["PublicIp"], allocated["AllocationId"]
    try:
        bench.ec2.associate_address(AllocationId=allocation, InstanceId=old)
        assert bench.ssh(address, "hostname").stdout.strip() == names[old]
        with pytest.raises(ClientError, match="already associated"):
            bench.ec2.associate_address(AllocationId=allocation, InstanceId=new)
        began = time.monotonic()
        bench.ec2.associate_address(
            AllocationId=allocation, InstanceId=new, AllowReassociation=True
        )
        answer = until(lambda: _name_at(bench, address), 5, "somebody answers")
        assert time.monotonic() - began < 1
        assert answer == names[new]
        assert bench.address(new) == address
        assert bench.address(old) != address
        bench.ec2.terminate_instances(InstanceIds=[new])
        (left,) = bench.ec2.describe_addresses(AllocationIds=[allocation])["Addresses"]
        assert "AssociationId" not in left, "the address is free again"
        assert bench.ssh(address, "true").returncode == 255
    finally:
        bench.ec2.release_address(AllocationId=allocation)


def _name_at(bench: Bench, address: str) -> str:
    return bench.ssh(address, "hostname").stdout.strip()


def test_a_private_address_is_not_reached_from_outside_the_vpc(bench: Bench) -> None:
    host = bench.launch()
    assert bench.ssh(bench.seen(host)["PrivateIpAddress"], "true").returncode == 255


def test_a_host_may_reboot_and_power_itself_off(bench: Bench) -> None:
    host = bench.launch()
    address = bench.address(host)
    pid = _row(host)["pid"]
    bench.ssh(address, "sudo hostnamectl set-hostname renamed; sudo systemctl reboot")
    until(lambda: _row(host)["pid"] not in {None, pid}, 30, "it booted again")
    bench.answers(host)
    assert bench.address(host) == address
    assert bench.ssh(address, "cat /etc/hostname").stdout == "renamed\n"
    bench.ssh(address, "sudo systemctl poweroff")
    until(lambda: state(bench.ec2, host) == "stopped", 30, "the API says stopped")


def _row(instance_id: str) -> dict[str, Any]:
    (found,) = [row for row in control("status")["instances"] if row["id"] == instance_id]
    return dict(found)


def test_a_terminated_instance_leaves_neither_process_nor_interface(bench: Bench) -> None:
    host = bench.launch()
    pid = _row(host)["pid"]
    bench.ec2.terminate_instances(InstanceIds=[host])
    assert state(bench.ec2, host) in ("shutting-down", "terminated")
    until(lambda: state(bench.ec2, host) == "terminated", 60, "it is terminated")
    assert not Path(f"/proc/{pid}").exists()
    links = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True)
    assert f"fl{host.removeprefix('i-')[:13]}" not in links.stdout


@pytest.mark.parametrize(
    ("cidr", "why"),
    [("192.168.0.0/16", "not inside"), ("8.0.0.0/16", "not inside")],
)
def test_a_vpc_in_a_range_the_lab_cannot_give_is_refused(bench: Bench, cidr: str, why: str) -> None:
    with pytest.raises(ClientError, match=why):
        bench.ec2.create_vpc(CidrBlock=cidr)


def test_an_unknown_image_is_refused_as_on_aws(bench: Bench) -> None:
    with pytest.raises(ClientError) as refused:
        bench.launch(image="ami-00000000000000000")
    assert refused.value.response["Error"]["Code"] == "InvalidAMIID.NotFound"


def test_every_call_is_on_record(bench: Bench) -> None:
    subnet = bench.where.subnets[ZONES[0]]
    bench.ec2.describe_subnets(SubnetIds=[subnet])
    log = Path(control("status")["repo"], "var/lab/log/api.jsonl")
    recent = log.read_text().splitlines()[-50:]
    wanted = r'"service": "ec2", "action": "DescribeSubnets", "access_key": "operator"'
    assert any(re.search(wanted, line) for line in recent)
