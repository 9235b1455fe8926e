"""Nothing outside the lab receives a packet of it: watched from the other end of the machine's only
way out.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator

import pytest
from guests import until
from nested import Nested, nested

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="the lab needs root"),
    pytest.mark.skipif(
        any(shutil.which(tool) is None for tool in ("podman", "runc", "mmdebstrap", "nft")),
        reason="podman, runc, mmdebstrap or nftables is not installed",
    ),
]

GATEWAY = "203.0.113.2"
SEEN = "/run/flotilla-lab/seen"
# Addresses of every packet that arrives, one pair a line.
_WATCH = f"""
import socket
wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
wire.bind(("wire", 0x0800))
with open("{SEEN}", "w", buffering=1) as out:
    while True:
        packet = wire.recv(2048)
        out.write(f"{{socket.inet_ntoa(packet[12:16])}} {{socket.inet_ntoa(packet[16:20])}}\\n")
"""
_DIAL = """
import socket, sys
for target in sys.argv[1:]:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        dial = socket.socket(socket.AF_INET, kind)
        dial.settimeout(0.3)
        try:
            dial.connect((target, 9))
            dial.send(b"x")
        except OSError:
            pass
"""
_LAUNCH = """
import boto3, json
ec2 = boto3.client("ec2", region_name="eu-central-1", endpoint_url="http://127.0.0.1:4566",
                   aws_access_key_id="operator", aws_secret_access_key="lab")
image = ec2.describe_images(Owners=["136693071363"])["Images"][0]["ImageId"]
made = ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]
ec2.get_waiter("instance_running").wait(InstanceIds=[made], WaiterConfig={"Delay": 1})
print(json.dumps(made))
"""


@pytest.fixture
def machine() -> Iterator[Nested]:
    """A machine with a default route, and somebody who watches what comes out of it."""
    with nested() as made:
        made.says("ip", "netns", "add", "outside")
        made.says("ip", "link", "add", "out0", "type", "veth", "peer", "wire", "netns", "outside")
        made.says("ip", "address", "add", "203.0.113.1/24", "dev", "out0")
        made.says("ip", "link", "set", "out0", "up")
        inside = ("ip", "netns", "exec", "outside")
        made.says(*inside, "ip", "address", "add", f"{GATEWAY}/24", "dev", "wire")
        made.says(*inside, "ip", "link", "set", "wire", "up")
        made.says("ip", "route", "add", "default", "via", GATEWAY)
        watcher = made.start(*inside, sys.executable, "-c", _WATCH)
        until(lambda: _is_watched(made), 20, "the watcher sees the machine")
        yield made
        watcher.kill()
        watcher.wait()


def dial(machine: Nested, *targets: str) -> None:
    """Send to these addresses, by TCP and UDP, as the operator."""
    machine.says(sys.executable, "-c", _DIAL, *targets)


def _is_watched(machine: Nested) -> bool:
    dial(machine, GATEWAY)
    return ("203.0.113.1", GATEWAY) in seen(machine)


def seen(machine: Nested) -> set[tuple[str, str]]:
    """Source and destination of every packet that left the machine."""
    lines = machine.run("cat", SEEN).stdout.splitlines()
    return {(line.split()[0], line.split()[-1]) for line in lines}


def test_what_hosts_and_operator_send_in_the_lab_stays_in_it(machine: Nested) -> None:
    before_lab = ("198.51.100.7", "203.0.113.99")
    dial(machine, *before_lab)
    until(lambda: "198.51.100.7" in {to for _, to in seen(machine)}, 10, "others are let out")
    assert machine.fab("lab.up").returncode == 0
    host = machine.python(_LAUNCH)
    (row,) = [
        row
        for row in json.loads(machine.fab("lab.status", "--json").stdout)["instances"]
        if row["id"] == host
    ]
    into = ["nsenter", "-t", str(row["pid"]), "-n", "--"]
    machine.says(*into, sys.executable, "-c", _DIAL, "8.8.4.4", "10.9.9.9", GATEWAY, "127.77.9.9")
    vpc = row["private_ip"].rsplit(".", 2)[0]
    dial(machine, f"{vpc}.200.200", "198.18.0.1", "127.77.200.200", "169.254.169.254")
    machine.says(
        "kill", "-KILL", str(json.loads(machine.fab("lab.status", "--json").stdout)["pid"])
    )
    machine.says(*into, sys.executable, "-c", _DIAL, "8.8.4.5", GATEWAY)
    dial(machine, f"{vpc}.200.201", "169.254.169.253")
    left = seen(machine)
    ours = {("203.0.113.1", to) for to in (*before_lab, GATEWAY)}
    assert left - ours == set()
