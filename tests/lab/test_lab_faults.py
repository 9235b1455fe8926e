"""Faults on real hosts: what stops, what goes on, and that everything comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from guests import (
    ENDPOINT,
    REGION,
    ZONES,
    Conversation,
    Guest,
    Place,
    RefusedError,
    control,
    needs_lab,
    permission,
    place,
    running,
    state,
    until,
)

pytestmark = needs_lab

PORT = 7000


@dataclass
class Trio:
    place: Place
    one: Guest
    two: Guest
    three: Guest
    struck: set[str] = field(default_factory=set)

    def strike(self, kind: str, target: str | None = None, **args: object) -> dict:
        target = target or self.one.id
        self.struck.add(target)
        return control("fault", {"kind": kind, "target": target, "args": args})

    def heal(self, target: str) -> dict:
        return control("heal", {"target": target})


@pytest.fixture(scope="module")
def hosts() -> Iterator[Trio]:
    with place() as where:
        group = where.group()
        where.ec2.authorize_security_group_ingress(
            GroupId=group, IpPermissions=permission("-1", (-1, -1), group=group)
        )
        one, two = where.launch(2, SecurityGroupIds=[group], zone=ZONES[2])
        (three,) = where.launch(SecurityGroupIds=[group], zone=ZONES[1])
        for guest in (one, two, three):
            guest.listens(PORT)
        yield Trio(where, one, two, three)


@pytest.fixture
def trio(hosts: Trio) -> Iterator[Trio]:
    yield hosts
    # Only what was struck here: others may be at work in the same lab.
    healed = [hosts.heal(target) for target in hosts.struck]
    assert not any(answer["failed"] for answer in healed)
    assert not hosts.struck & {fault["target"] for fault in control("status")["faults"]}
    hosts.struck.clear()


def reaches_api(guest: Guest) -> bool:
    dial = "import socket;socket.create_connection(('169.254.169.250',4566),.5)"
    return guest.run("python3", "-c", dial).returncode == 0


def test_a_cut_from_one_host_leaves_the_others_and_ends_what_was_established(trio: Trio) -> None:
    talk = Conversation(trio.two, trio.one, PORT)
    try:
        assert talk.answers()
        trio.strike("cut", **{"from": trio.two.id})
        assert not talk.answers()
        assert not trio.two.reaches(trio.one, PORT)
        assert not trio.one.reaches(trio.two, PORT)
        assert trio.three.reaches(trio.one, PORT)
        assert reaches_api(trio.one)
        trio.heal(trio.one.id)
        assert trio.two.reaches(trio.one, PORT)
    finally:
        talk.close()


def test_a_cut_one_way_hears_but_is_not_heard(trio: Trio) -> None:
    send = "import socket,sys;s=socket.socket(2,2);s.settimeout(1);s.sendto(b'x',(sys.argv[1],9))"
    trio.strike("cut", direction="out", **{"from": trio.two.id})
    before = received(trio.one)
    trio.two.python(send, trio.one.address)
    until(lambda: received(trio.one) > before, 2, "the datagram arrives")
    assert not trio.two.reaches(trio.one, PORT), "no answer comes back"


def received(guest: Guest) -> int:
    """Datagrams for ports nobody listens on: they came through every filter."""
    lines = [line.split() for line in guest.says("cat", "/proc/net/snmp").splitlines()]
    names, values = [line for line in lines if line[0] == "Udp:"]
    return int(values[names.index("NoPorts")])


def test_a_host_cut_from_all_reaches_not_even_the_api(trio: Trio) -> None:
    trio.strike("cut")
    assert not reaches_api(trio.one)
    assert not trio.one.reaches(trio.two, PORT)
    assert trio.one.says("hostname"), "the host itself goes on"


def test_a_zone_that_is_cut_goes_on_inside(trio: Trio) -> None:
    trio.strike("zone", ZONES[2])
    assert trio.one.reaches(trio.two, PORT)
    assert not trio.three.reaches(trio.one, PORT)
    assert not reaches_api(trio.one)
    assert reaches_api(trio.three)
    (late,) = trio.place.launch(zone=ZONES[2])
    until(lambda: not reaches_api(late), 2, "a host launched into the zone is cut off too")


def test_a_frozen_host_is_silent_and_goes_on_where_it_was(trio: Trio) -> None:
    talk = Conversation(trio.two, trio.one, PORT)
    try:
        trio.strike("freeze")
        assert not talk.answers()
        assert trio.two.reaches(trio.one, PORT), "its kernel still accepts connections"
        trio.strike("thaw")
        until(talk.answers, 5, "the old connection goes on")
    finally:
        talk.close()


def test_a_killed_host_stops_as_without_power_and_heals_with_its_disk(trio: Trio) -> None:
    trio.one.says("sh", "-c", "echo kept > /var/tmp/kept && sync")
    trio.strike("kill")
    until(lambda: state(trio.place.ec2, trio.one.id) == "stopped", 10, "the API knows")
    assert not trio.two.reaches(trio.one, PORT)
    trio.heal(trio.one.id)
    back = until(lambda: running(trio.one.id), 30, "it boots again")
    assert back.says("cat", "/var/tmp/kept") == "kept"
    trio.one = back
    back.listens(PORT)


def test_a_killed_process_is_really_killed_and_its_unit_is_started_again(trio: Trio) -> None:
    unit(trio.two, "prey")
    fault = trio.strike("kill-process", trio.two.id, unit="prey")
    until(lambda: is_active(trio.two, "prey") == "failed", 5, "systemd sees it die")
    assert trio.two.says("systemctl", "show", "-P", "Result", "prey") == "signal"
    assert fault["units"] == ["prey.service"]
    trio.heal(trio.two.id)
    until(lambda: is_active(trio.two, "prey") == "active", 5, "it is started again")


def test_a_frozen_process_is_stopped_alone(trio: Trio) -> None:
    unit(trio.two, "statue")
    trio.strike("freeze-process", trio.two.id, pattern=r"sleep 86400$")
    pid = trio.two.says("systemctl", "show", "-P", "MainPID", "statue")
    until(lambda: "T (" in trio.two.says("grep", "State", f"/proc/{pid}/status"), 2, "it stops")
    assert trio.three.reaches(trio.two, PORT)
    trio.heal(trio.two.id)
    until(lambda: "S (" in trio.two.says("grep", "State", f"/proc/{pid}/status"), 5, "it goes on")


def test_a_full_disk_refuses_writes_and_keeps_what_was_there(trio: Trio) -> None:
    trio.two.says("sh", "-c", "mkdir -p /srv/data && echo before > /srv/data/before")
    trio.strike("fill-disk", trio.two.id, path="/srv/data")
    full = trio.two.run("sh", "-c", "head -c 100000 /dev/zero > /srv/data/more")
    assert "No space left on device" in full.stderr
    assert trio.two.says("cat", "/srv/data/before") == "before"
    assert trio.two.run("sh", "-c", "head -c 100000 /dev/zero > /srv/other").returncode == 0
    with pytest.raises(RefusedError, match="would lose"):
        trio.strike("kill", trio.two.id)
    trio.heal(trio.two.id)
    trio.two.says("sh", "-c", "head -c 100000 /dev/zero > /srv/data/more")
    assert trio.two.says("cat", "/srv/data/before") == "before"


def test_a_disk_cannot_fill_behind_the_back_of_who_has_files_open_there(trio: Trio) -> None:
    unit(trio.two, "writer", "sh", "-c", "mkdir -p /srv/w; exec sleep 86400 > /srv/w/log")
    until(lambda: trio.two.run("test", "-e", "/srv/w/log").returncode == 0, 5, "it writes")
    with pytest.raises(RefusedError, match=r"writer\.service"):
        trio.strike("fill-disk", trio.two.id, path="/srv/w")
    trio.strike("fill-disk", trio.two.id, path="/srv/w", free=65536, unit="writer")
    until(lambda: is_active(trio.two, "writer") == "active", 5, "it runs on the full disk")


def test_a_slow_api_is_slow_for_the_named_action_alone(trio: Trio) -> None:
    trio.strike("slow-api", "api", action="DescribeVpcs", seconds=1.5)
    began = time.monotonic()
    trio.place.ec2.describe_subnets()
    assert time.monotonic() - began < 1
    trio.place.ec2.describe_vpcs()
    assert time.monotonic() - began >= 1.5


def test_a_slow_stop_leaves_the_host_running_for_a_while_and_is_answered_at_once(
    trio: Trio,
) -> None:
    trio.strike("slow-stop", "api", seconds=3)
    began = time.monotonic()
    trio.place.ec2.stop_instances(InstanceIds=[trio.three.id], Force=True)
    assert time.monotonic() - began < 1
    assert state(trio.place.ec2, trio.three.id) == "stopping"
    assert trio.two.reaches(trio.three, PORT), "it goes on as if nothing had been asked for"
    until(lambda: state(trio.place.ec2, trio.three.id) == "stopped", 15, "it stops in the end")
    assert time.monotonic() - began >= 3
    trio.heal("api")
    trio.place.ec2.start_instances(InstanceIds=[trio.three.id])
    trio.three = until(lambda: running(trio.three.id), 30, "it boots again")
    trio.three.listens(PORT)


@pytest.mark.parametrize("mode", ["503", pytest.param("hangup", marks=pytest.mark.drill)])
def test_an_api_outage_is_an_error_to_its_callers_and_ends(trio: Trio, mode: str) -> None:
    once = boto3.client(
        "ec2",
        region_name=REGION,
        endpoint_url=ENDPOINT,
        aws_access_key_id="operator",
        aws_secret_access_key="lab",
        config=Config(retries={"total_max_attempts": 1}),
    )
    trio.strike("api-outage", "api", mode=mode, action="DescribeRegions")
    with pytest.raises((ClientError, BotoCoreError), match=r"ServiceUnavailable|Connection"):
        once.describe_regions()
    once.describe_vpcs()
    trio.heal("api")
    once.describe_regions()


def test_a_fault_that_does_not_exist_is_answered_with_those_that_do(trio: Trio) -> None:
    with pytest.raises(RefusedError, match=r"^400.*kill-process"):
        trio.strike("explode")


def unit(guest: Guest, name: str, *command: str) -> None:
    """A service of this name that does nothing, with an entry systemd can start again."""
    run = " ".join(f"'{part}'" for part in command or ("sleep", "86400"))
    text = f"[Service]\\nType=exec\\nExecStart=/usr/bin/env {run}\\n"
    guest.says("sh", "-c", f'printf "{text}" > /etc/systemd/system/{name}.service')
    guest.says("systemctl", "daemon-reload")
    guest.says("systemctl", "start", name)


def is_active(guest: Guest, name: str) -> str:
    return guest.run("systemctl", "is-active", name).stdout.strip()
