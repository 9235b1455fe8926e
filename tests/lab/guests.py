"""Hosts for the tests of the lab itself: launched through the EC2 API, looked at from inside."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest

REPO = Path(__file__).resolve().parents[2]
ENDPOINT = "http://127.0.0.1:4566"
REGION = "eu-central-1"
ZONES = tuple(f"{REGION}{letter}" for letter in "abc")


# conftest.py brings the lab up, or skips with the reason.
needs_lab = pytest.mark.lab


def client(service: str) -> Any:
    return boto3.client(
        service,
        region_name=REGION,
        endpoint_url=ENDPOINT,
        aws_access_key_id="operator",
        aws_secret_access_key="lab",
    )


class RefusedError(AssertionError):
    """The lab refused; the message is the status and what it said."""


def control(verb: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """One of the lab's own control paths: GET without a body, POST with one.

    Raises RefusedError.
    """
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(f"{ENDPOINT}/_lab/{verb}", data=data, timeout=300) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise RefusedError(f"{error.code} {error.read().decode()}") from error


def until(what: Callable[[], Any], seconds: float, why: str) -> Any:
    """The first true answer of `what`; fails the test when there is none in time."""
    end = time.monotonic() + seconds
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < end, f"not within {seconds} s: {why}"
        time.sleep(0.02)


@dataclass(frozen=True)
class Guest:
    """One running host."""

    id: str
    address: str
    pid: int

    def argv(self, *argv: str) -> list[str]:
        inside = ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "-C", "--"]
        return [*inside, *argv]

    def run(self, *argv: str, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*argv), capture_output=True, text=True, timeout=timeout, check=False
        )

    def says(self, *argv: str, timeout: float = 30.0) -> str:
        done = self.run(*argv, timeout=timeout)
        assert done.returncode == 0, f"{argv}: {done.stderr or done.stdout}"
        return done.stdout.strip()

    def python(self, code: str, *args: str, timeout: float = 30.0) -> str:
        return self.says("python3", "-c", code, *args, timeout=timeout)

    def listens(self, port: int) -> None:
        """Echo every line on this TCP port for as long as the host lives."""
        self.says("systemd-run", "--quiet", "python3", "-c", _ECHO, str(port))
        until(lambda: f":{port} " in self.says("ss", "-Hltn") + " ", 10, f"port {port} listens")

    def reaches(self, other: Guest, port: int, seconds: float = 0.4) -> bool:
        dial = "import socket,sys;socket.create_connection(sys.argv[1:3],float(sys.argv[3]))"
        return (
            self.run("python3", "-c", dial, other.address, str(port), str(seconds)).returncode == 0
        )


class Conversation:
    """One TCP connection from a host, kept open, on which lines are sent and echoed."""

    def __init__(self, guest: Guest, other: Guest, port: int) -> None:
        self._process = subprocess.Popen(
            guest.argv("python3", "-uc", _TALK, other.address, str(port)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout.readline() == "open\n"

    def answers(self) -> bool:
        """Whether a line comes back within a second."""
        self._process.stdin.write("ping\n")
        self._process.stdin.flush()
        return self._process.stdout.readline() == "ping\n"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


_ECHO = """
import socketserver, sys
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(("", int(sys.argv[1])), Echo).serve_forever()
"""
_TALK = """
import socket, sys
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)
peer.settimeout(1)
print("open")
late = 0
for line in sys.stdin:
    try:
        peer.sendall(line.encode())
        print(peer.recv(64).decode().strip())
    except OSError as error:
        print("lost", error)
"""


@dataclass
class Place:
    """A VPC of its own with a public and a private subnet in every zone, removed afterwards."""

    vpc: str
    subnets: dict[str, str]
    ec2: Any
    launched: list[str] = field(default_factory=list)

    def group(self, name: str = "", *, egress: bool = True) -> str:
        """A new security group; without `egress`, one that lets nothing out."""
        made = self.ec2.create_security_group(
            GroupName=name or f"t-{uuid.uuid4().hex[:8]}", Description="test", VpcId=self.vpc
        )["GroupId"]
        if not egress:
            everything = [{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
            self.ec2.revoke_security_group_egress(GroupId=made, IpPermissions=everything)
        return made

    def launch(self, count: int = 1, *, zone: str = ZONES[0], **options: Any) -> list[Guest]:
        answer = self.ec2.run_instances(
            ImageId=base_image(self.ec2),
            InstanceType="t3.micro",
            MinCount=count,
            MaxCount=count,
            SubnetId=self.subnets[zone],
            **options,
        )
        ids = [instance["InstanceId"] for instance in answer["Instances"]]
        self.launched += ids
        return [self.guest(instance_id) for instance_id in ids]

    def guest(self, instance_id: str) -> Guest:
        """The host of an instance, once it runs and systemd in it answers."""
        return until(lambda: running(instance_id), 60, f"{instance_id} runs")


def running(instance_id: str) -> Guest | None:
    (row,) = [row for row in control("status")["instances"] if row["id"] == instance_id]
    assert row["state"] not in ("terminated", "shutting-down"), f"{instance_id} was not launched"
    if row["state"] != "running" or not row["pid"]:
        return None
    found = Guest(instance_id, row["private_ip"], row["pid"])
    try:
        up = found.run("systemctl", "is-system-running").stdout.strip()
    except subprocess.TimeoutExpired:
        return None  # it was on its way down, and its systemd answers nobody any more
    return found if up in ("running", "degraded", "starting") else None


def base_image(ec2: Any) -> str:
    images = ec2.describe_images(Filters=[{"Name": "name", "Values": ["debian-13-amd64-*"]}])
    return max(images["Images"], key=lambda image: image["CreationDate"])["ImageId"]


def state(ec2: Any, instance_id: str) -> str:
    said = ec2.describe_instances(InstanceIds=[instance_id])
    return said["Reservations"][0]["Instances"][0]["State"]["Name"]


def permission(
    protocol: str, ports: Sequence[int], *, cidr: str = "", group: str = ""
) -> list[Any]:
    rule: dict[str, Any] = {"IpProtocol": protocol, "FromPort": ports[0], "ToPort": ports[1]}
    if cidr:
        rule["IpRanges"] = [{"CidrIp": cidr}]
    if group:
        rule["UserIdGroupPairs"] = [{"GroupId": group}]
    return [rule]


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """A VPC for one test module, in a range no other VPC of the lab has."""
    ec2 = client("ec2")
    taken = {ipaddress.ip_network(vpc["CidrBlock"]) for vpc in ec2.describe_vpcs()["Vpcs"]}
    free = (ipaddress.ip_network(f"10.{number}.0.0/16") for number in range(200, 250))
    cidr = next(net for net in free if not any(net.overlaps(other) for other in taken))
    vpc = ec2.create_vpc(CidrBlock=str(cidr))["Vpc"]["VpcId"]
    parts = list(cidr.subnets(new_prefix=24))
    made = Place(vpc, {}, ec2)
    try:
        for zone, part in zip(ZONES, parts, strict=False):
            subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=str(part), AvailabilityZone=zone)
            made.subnets[zone] = subnet["Subnet"]["SubnetId"]
        yield made
    finally:
        _remove(made)


def _remove(made: Place) -> None:
    ec2, inside = made.ec2, [{"Name": "vpc-id", "Values": [made.vpc]}]
    here = ec2.describe_instances(Filters=inside)
    ids = [i["InstanceId"] for r in here["Reservations"] for i in r["Instances"]]
    if ids:
        ec2.terminate_instances(InstanceIds=ids)
        until(lambda: all(state(ec2, i) == "terminated" for i in ids), 60, "all are terminated")
    for acl in ec2.describe_network_acls(Filters=inside)["NetworkAcls"]:
        if not acl["IsDefault"]:
            ec2.delete_network_acl(NetworkAclId=acl["NetworkAclId"])
    for subnet in made.subnets.values():
        ec2.delete_subnet(SubnetId=subnet)
    _remove_groups(ec2, ec2.describe_security_groups(Filters=inside)["SecurityGroups"])
    ec2.delete_vpc(VpcId=made.vpc)


def _remove_groups(ec2: Any, groups: list[dict[str, Any]]) -> None:
    for group in groups:  # they may name each other, so all rules go before the first group
        if group["IpPermissions"]:
            ec2.revoke_security_group_ingress(
                GroupId=group["GroupId"], IpPermissions=group["IpPermissions"]
            )
    for group in groups:
        if group["GroupName"] != "default":
            ec2.delete_security_group(GroupId=group["GroupId"])
