"""The lab itself starts, stops, survives a crash and leaves nothing, on a machine of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from guests import until
from nested import Nested, nested

from lab.layout import layout

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="the lab needs root"),
    pytest.mark.skipif(
        any(shutil.which(tool) is None for tool in ("podman", "runc", "mmdebstrap", "nft")),
        reason="podman, runc, mmdebstrap or nftables is not installed",
    ),
]

_EC2 = """
import boto3, json, sys, time
ec2 = boto3.client("ec2", region_name="eu-central-1", endpoint_url="http://127.0.0.1:4566",
                   aws_access_key_id="operator", aws_secret_access_key="lab")
def launch(image):
    answer = ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1)
    instance = answer["Instances"][0]["InstanceId"]
    ec2.get_waiter("instance_running").wait(InstanceIds=[instance], WaiterConfig={"Delay": 1})
    return instance
def base():
    return ec2.describe_images(Owners=["136693071363"])["Images"][0]["ImageId"]
"""


def drilled(moment: object) -> object:
    """One more moment of the same promise: `make drills` looks at it, `make test` at another."""
    return pytest.param(moment, marks=pytest.mark.drill)


@pytest.fixture(scope="module")
def machine() -> Iterator[Nested]:
    with nested() as made:
        yield made


@pytest.fixture(autouse=True)
def clean(machine: Nested) -> Iterator[None]:
    """Every test starts and ends without a lab."""
    assert machine.traces() == []
    yield
    machine.fab("lab.down")
    assert machine.traces() == [], "lab.down leaves nothing"


def up(machine: Nested) -> dict[str, object]:
    done = machine.fab("lab.up", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_up_twice_is_up_once(machine: Nested) -> None:
    first, second = up(machine), up(machine)
    assert (first["already"], second["already"]) == (False, True)
    assert first["pid"] == second["pid"]


def test_down_takes_running_hosts_along(machine: Nested) -> None:
    up(machine)
    machine.python(_EC2 + "print(json.dumps(launch(base())))")
    assert any("/sbin/init" in line for line in machine.traces())
    assert machine.fab("lab.down").returncode == 0
    assert machine.traces() == []


def test_down_without_a_lab_is_fine(machine: Nested) -> None:
    assert machine.fab("lab.down").returncode == 0


def test_after_a_crash_up_cleans_up_and_starts_again(machine: Nested) -> None:
    pid = up(machine)["pid"]
    machine.python(_EC2 + "print(json.dumps([launch(base()), launch(base())]))")
    machine.says("kill", "-KILL", str(pid))
    again = up(machine)
    assert again["instances"] == []
    running = [line for line in machine.traces() if "/sbin/init" in line or "conmon" in line]
    assert running == [], "the hosts of the lab before are gone"
    machine.python(_EC2 + "print(json.dumps(launch(base())))")


def test_an_interrupted_start_leaves_nothing(machine: Nested) -> None:
    fab = machine.start(sys.executable, "-m", "fabric", "lab.up")
    until(lambda: any("flab" in line for line in machine.traces()), 30, "the network is there")
    for pid in machine.says("pgrep", "-f", "fabric lab.up").split():
        machine.says("kill", f"-{signal.SIGINT.value}", pid)
    fab.communicate(timeout=60)
    assert fab.returncode != 0
    until(lambda: machine.traces() == [], 30, "all of it is gone")


def _starting(machine: Nested, moment: str) -> subprocess.Popen[str]:
    """A `lab.up` that has come so far."""
    fab = machine.start(sys.executable, "-m", "fabric", "lab.up")
    reached = {
        "process": lambda: any("lab.server" in line for line in machine.traces()),
        "network": lambda: any("link fl" in line for line in machine.traces()),
        "api": lambda: ":4566" in machine.says("ss", "-Hltn"),
    }
    until(reached[moment], 30, f"it has come to its {moment}")
    return fab


def _killed(machine: Nested, fab: subprocess.Popen[str], task: str) -> None:
    machine.run("pkill", "-KILL", "-f", f"fabric {task}")
    fab.communicate(timeout=60)


@pytest.mark.parametrize("moment", [drilled("process"), "network", drilled("api")])
def test_after_a_start_that_was_killed_down_leaves_nothing_and_nothing_comes(
    machine: Nested, moment: str
) -> None:
    _killed(machine, _starting(machine, moment), "lab.up")
    done = machine.fab("lab.down")
    assert done.returncode == 0, done.stderr
    for _ in range(20):
        assert machine.traces() == []
        time.sleep(0.1)


@pytest.mark.parametrize("moment", [drilled("process"), drilled("network"), "api"])
def test_after_a_start_that_was_killed_up_starts(machine: Nested, moment: str) -> None:
    _killed(machine, _starting(machine, moment), "lab.up")
    up(machine)


def test_down_ends_a_lab_that_is_starting(machine: Nested) -> None:
    fab = _starting(machine, "network")
    done = machine.fab("lab.down")
    assert done.returncode == 0, done.stderr
    _, said = fab.communicate(timeout=60)
    assert fab.returncode
    assert "Traceback" not in said
    assert machine.traces() == []


def test_two_who_start_it_at_once_have_the_same_lab(machine: Nested) -> None:
    other = machine.start(sys.executable, "-m", "fabric", "lab.up", "--json")
    mine = up(machine)
    out, said = other.communicate(timeout=120)
    assert other.returncode == 0, said
    assert json.loads(out)["pid"] == mine["pid"]


@pytest.mark.parametrize("seconds", [drilled(0.2), 0.6, drilled(1.0)])
def test_a_down_that_was_killed_can_be_repeated(machine: Nested, seconds: float) -> None:
    up(machine)
    machine.python(_EC2 + "print(json.dumps(launch(base())))")
    down = machine.start(sys.executable, "-m", "fabric", "lab.down")
    with contextlib.suppress(subprocess.TimeoutExpired):
        down.communicate(timeout=seconds)
    _killed(machine, down, "lab.down")
    done = machine.fab("lab.down")
    assert done.returncode == 0, done.stderr
    assert machine.traces() == []


def test_files_that_were_damaged_are_put_right(machine: Nested) -> None:
    first = up(machine)
    where = layout()
    machine.says("truncate", "-s", "0", str(where.state), str(where.credentials))
    again = up(machine)
    assert (again["already"], again["pid"]) == (True, first["pid"])
    assert "aws_access_key_id" in machine.says("cat", str(where.credentials))
    assert machine.fab("lab.down").returncode == 0
    assert machine.traces() == []


def test_a_full_disk_is_named_and_nothing_is_changed(machine: Nested) -> None:
    var = str(layout().var.parent)
    machine.says("mount", "-o", "remount,size=64m", var)
    try:
        done = machine.fab("lab.up")
        assert done.returncode == 3, done.stderr
        assert f"{var}" in done.stderr
        assert "0.1 GB free and the lab wants 0.2 GB" in done.stderr
        assert f"du -sh {var}" in done.stderr
        assert machine.traces() == []
    finally:
        machine.says("mount", "-o", "remount,size=1g", var)
    up(machine)


_SQUATTER = """
import socket, sys, time
taken = socket.socket()
taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
taken.bind((sys.argv[1], int(sys.argv[2])))
taken.listen()
open(sys.argv[3], "w").close()
time.sleep(60)
"""


@pytest.mark.parametrize(
    "address", ["127.0.0.1:4566", drilled("0.0.0.0:80"), drilled("0.0.0.0:3142")]
)
def test_a_taken_port_is_named_and_nothing_is_changed(
    machine: Nested, address: str, tmp_path: Path
) -> None:
    host, _, port = address.partition(":")
    # Somebody listens there is not enough: it may be a lab that is about to end.
    taken = tmp_path / "taken"
    squatter = machine.start(sys.executable, "-c", _SQUATTER, host, port, str(taken))
    try:
        until(taken.exists, 10, "the port is taken")
        done = machine.fab("lab.up")
        assert done.returncode == 3, done.stderr
        assert f"port {port} on " in done.stderr
        assert f"ss -ltnp 'sport = :{port}'" in done.stderr
    finally:
        machine.says("pkill", "-f", "taken.listen")  # sees the processes of that machine only
        squatter.wait(10)


def test_status_without_a_lab_says_what_to_type(machine: Nested) -> None:
    done = machine.fab("lab.status")
    assert done.returncode == 4
    assert "fab lab.up" in done.stderr


def test_images_and_their_tags_are_there_in_the_next_lab(machine: Nested) -> None:
    up(machine)
    image = machine.python(
        _EC2
        + """
image = ec2.create_image(InstanceId=launch(base()), Name="kept", TagSpecifications=[
    {"ResourceType": kind, "Tags": [{"Key": "Role", "Value": kind}]}
    for kind in ("image", "snapshot")])["ImageId"]
ec2.get_waiter("image_available").wait(ImageIds=[image], WaiterConfig={"Delay": 1})
ec2.create_tags(Resources=[image], Tags=[{"Key": "Status", "Value": "tested"}])
print(json.dumps(image))"""
    )
    before = machine.python(_EC2 + _DESCRIBE.format(image=image))
    machine.fab("lab.down")
    up(machine)
    assert machine.python(_EC2 + _DESCRIBE.format(image=image)) == before
    assert {"Key": "Status", "Value": "tested"} in before[0]["Tags"]
    machine.python(_EC2 + f"print(json.dumps(launch('{image}')))")
    machine.python(_EC2 + f"ec2.deregister_image(ImageId='{image}'); print(0)")


_DESCRIBE = """
image = ec2.describe_images(ImageIds=["{image}"])["Images"][0]
snapshot = image["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
tags = ec2.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"][0]["Tags"]
print(json.dumps([image, tags], sort_keys=True))
"""


def test_up_is_quick_when_the_base_image_is_there(machine: Nested) -> None:
    up(machine)
    machine.fab("lab.down")
    began = time.monotonic()
    up(machine)
    assert time.monotonic() - began < 15  # 3 s on two idle cores
