"""Load balancers follow the application hosts by themselves: judged by clients of the edge address,
on the standing fleet (make demo brings it up).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from guests import REPO, Guest, client, control, needs_lab, running, until

from flotilla import inventory
from flotilla.aws import edge
from flotilla.deploy import World, connect
from flotilla.settings import Settings
from flotilla.snapshot import Host
from flotilla.traffic import Background

pytestmark = needs_lab

SECONDS = 300
# What is promised: from the moment a host answers its health page, or Auto Scaling lets it go.
PROMISE_SECONDS = 15.0
CONFIG = "/etc/haproxy/haproxy.cfg"
REPORT = "/var/lib/flotilla-discovery/report.json"


@pytest.fixture(scope="module")
def settings(standing_fleet: Settings) -> Settings:
    return standing_fleet


def fab(*arguments: str) -> Any:
    done = subprocess.run(
        [Path(sys.executable).with_name("fab"), *arguments, "--json"],
        cwd=REPO,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout)


def hosts(settings: Settings, role: str) -> list[Host]:
    return [host for host in inventory.load(settings, refresh=True).by_role(role) if host.is_active]


def guests(settings: Settings, role: str) -> dict[str, Guest]:
    """The hosts of a role, to look at and to hurt from inside."""
    found = {host.name: running(host.instance_id) for host in hosts(settings, role)}
    return {name: guest for name, guest in found.items() if guest}


def statuses(guest: Guest) -> dict[str, str]:
    """By server, what the HAProxy of this host says; empty while it does not answer."""
    said = guest.run("sh", "-c", "echo 'show stat app 4 -1' | socat - /run/haproxy/admin.sock")
    rows = [line.split(",") for line in said.stdout.splitlines() if line.startswith("app,")]
    return {row[1]: row[17] for row in rows}


def followed(guest: Guest) -> Mapping[str, Any]:
    return json.loads(guest.says("cat", REPORT))


def configured(guest: Guest) -> list[str]:
    lines = guest.says("cat", CONFIG).splitlines()
    return sorted(line.split()[1] for line in lines if line.startswith("    server app-"))


@contextmanager
def world(settings: Settings) -> Iterator[World]:
    with connect(settings) as (made, _):
        yield made


def whole(settings: Settings) -> bool:
    """Every load balancer has every application host, UP."""
    wanted = {host.name: "UP" for host in hosts(settings, "app")}
    return all(statuses(lb) == wanted for lb in guests(settings, "lb").values())


@pytest.fixture
def balancers(settings: Settings) -> Iterator[dict[str, Guest]]:
    until(lambda: whole(settings), 60, "every server is UP on every load balancer")
    yield guests(settings, "lb")
    control("heal", {})
    until(lambda: whole(settings), 120, "every server is UP again")


class Clock:
    """When each load balancer first had a server in one of the wanted states, by name."""

    def __init__(self, balancers: Mapping[str, Guest]) -> None:
        self._balancers = dict(balancers)
        self.seen: dict[str, float] = {}

    def all_say(self, server: str, *wanted: str | None) -> bool:
        for name, guest in self._balancers.items():
            if name not in self.seen and statuses(guest).get(server) in wanted:
                self.seen[name] = time.monotonic()
        return len(self.seen) == len(self._balancers)


def answers(guest: Guest, path: str) -> bool:
    ask = "curl -fsS -o /dev/null -m 1 --cacert /etc/app/authority.pem"
    own = '"https://$(hostname -I | cut -d" " -f1)'
    return guest.run("sh", "-c", f'{ask} {own}{path}"').returncode == 0


def capacity(settings: Settings) -> int:
    name = settings.name_of("app")
    asked = client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[name])
    return int(asked["AutoScalingGroups"][0]["DesiredCapacity"])


def want(settings: Settings, desired: int) -> None:
    client("autoscaling").set_desired_capacity(
        AutoScalingGroupName=settings.name_of("app"), DesiredCapacity=desired
    )


def test_a_host_that_auto_scaling_adds_and_one_that_it_takes_are_followed_in_time(
    settings, balancers, record_property
) -> None:
    """Nobody types a command: the new host configures itself, the load balancers find it."""
    before = {host.name: host for host in hosts(settings, "app")}
    desired = capacity(settings)
    with Background("--url", edge.url(settings), "--rate", "60", "--verify") as clients:
        want(settings, desired + 1)
        new = until(
            lambda: [h for h in hosts(settings, "app") if h.name not in before and h.number],
            120,
            "the new host has a name",
        )[0]
        guest = until(lambda: running(new.instance_id), 60, "the new host runs")
        until(lambda: answers(guest, settings.application.health_path), 180, "it answers")
        begun, clock = time.monotonic(), Clock(balancers)
        until(lambda: clock.all_say(new.name, "UP"), 60, f"{new.name} is UP everywhere")
        added = {name: at - begun for name, at in clock.seen.items()}
        gone = begin_to_take_away(settings, desired)
        begun, clock = time.monotonic(), Clock(balancers)
        until(lambda: clock.all_say(gone, "DRAIN", "MAINT", None), 60, f"{gone} is drained")
        drained = {name: at - begun for name, at in clock.seen.items()}
        clock = Clock(balancers)
        until(lambda: clock.all_say(gone, None), 90, f"{gone} is forgotten")
        seen = clients.stop()
    record_property("added_seconds", added)
    record_property("drained_seconds", drained)
    assert seen["failed"] == 0, seen["failures"]
    assert seen["lost"] == 0
    assert max(added.values()) <= PROMISE_SECONDS, added
    assert max(drained.values()) <= PROMISE_SECONDS, drained
    now = sorted(host.name for host in hosts(settings, "app"))
    assert {name: configured(lb) for name, lb in balancers.items()} == dict.fromkeys(balancers, now)


def begin_to_take_away(settings: Settings, desired: int) -> str:
    """Want one host fewer; the name of the one that Auto Scaling chose, once it has."""
    names = {host.instance_id: host.name for host in hosts(settings, "app")}
    want(settings, desired)
    group = settings.name_of("app")

    def chosen() -> list[str]:
        said = client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[group])
        members = said["AutoScalingGroups"][0]["Instances"]
        there = {member["InstanceId"]: member["LifecycleState"] for member in members}
        return [
            name
            for instance, name in names.items()
            if there.get(instance, "Terminating").startswith("Terminating")
        ]

    return until(chosen, 20, "Auto Scaling chose a host")[0]


@pytest.mark.parametrize(
    "option",
    [
        pytest.param("mode=503", marks=pytest.mark.drill),
        pytest.param("mode=hangup", marks=pytest.mark.drill),
        "action=DescribeAutoScalingGroups",
    ],
)
def test_an_api_that_does_not_answer_moves_nobody(settings, balancers, option: str) -> None:
    with Background("--url", edge.url(settings), "--rate", "30") as clients:
        fab("lab.fault", "api", "api-outage", "--option", option)
        until(
            lambda: all(
                "EC2 gave no answer" in followed(lb)["trouble"] for lb in balancers.values()
            ),
            40,
            "every load balancer says that EC2 does not answer",
        )
        assert {name: set(statuses(lb).values()) for name, lb in balancers.items()} == {
            name: {"UP"} for name in balancers
        }
        control("heal", {})
        until(
            lambda: not any(followed(lb)["trouble"] for lb in balancers.values()),
            40,
            "every load balancer follows again",
        )
        seen = clients.stop()
    assert seen["failed"] == 0, seen["failures"]


@pytest.mark.drill
def test_hosts_that_lose_their_tags_all_at_once_are_kept(settings, balancers) -> None:
    """As in an answer that is cut short: they still pass their checks."""
    ec2, members = client("ec2"), hosts(settings, "app")[1:]
    ids, tag = [host.instance_id for host in members], {"Key": "Role", "Value": "app"}
    assert len(ids) > 1
    ec2.delete_tags(Resources=ids, Tags=[tag])
    try:
        until(
            lambda: all("not believed" in str(followed(lb)["notes"]) for lb in balancers.values()),
            20,
            "every load balancer doubts the answer",
        )
        time.sleep(10)  # four more answers of the same kind
        for guest in balancers.values():
            assert {statuses(guest)[host.name] for host in members} == {"UP"}
    finally:
        ec2.create_tags(Resources=ids, Tags=[tag])


def test_a_service_that_is_killed_follows_again(settings, balancers) -> None:
    first = next(iter(balancers.values()))
    pid = first.says("systemctl", "show", "-P", "MainPID", "flotilla-discovery")
    first.says("kill", "-9", pid)

    def back() -> bool:
        now = first.says("systemctl", "show", "-P", "MainPID", "flotilla-discovery")
        return now not in {"0", pid} and time.time() - followed(first)["answered_at"] < 2

    until(back, 20, "a new process follows EC2")
    assert set(statuses(first).values()) == {"UP"}


def saved(guest: Guest, server: str) -> bool:
    """Whether a crash would find this server in forced maintenance."""
    rows = guest.says("cat", "/var/lib/flotilla/haproxy.states").splitlines()
    return any(row.split()[3:7:3] == [server, "1"] for row in rows if row.count(" ") > 20)


@pytest.fixture
def held(settings: Settings, balancers: Mapping[str, Guest]) -> Iterator[str]:
    """A host that an operator has put into maintenance."""
    name = max(statuses(next(iter(balancers.values()))))
    with world(settings) as made:
        made.balancers.order(name, "state maint")
    for lb in balancers.values():
        until(lambda lb=lb: saved(lb, name), 5, f"{lb.id} has saved that {name} is in maintenance")
    yield name
    with world(settings) as made:
        made.balancers.order(name, "state drain", "health down")
        made.balancers.order(name, "state ready")


@pytest.mark.parametrize("way", ["reload", "restart", "kill"])
def test_maintenance_outlives_the_process_and_clients_do_not_notice(
    settings, balancers, held, way: str
) -> None:
    """On the passive load balancer for what would cut clients, on both for a reload."""
    owner = client("ec2").describe_addresses(
        Filters=[{"Name": "tag:Name", "Values": [settings.name_of("edge")]}]
    )["Addresses"][0]["InstanceId"]
    touched = [lb for lb in balancers.values() if way == "reload" or lb.id != owner]
    before = {lb.id: statuses(lb) for lb in touched}
    assert all(found[held] == "MAINT" for found in before.values())
    with Background("--url", edge.url(settings), "--rate", "60") as clients:
        for lb in touched:
            if way == "kill":
                lb.says("sh", "-c", "kill -9 $(systemctl show -P MainPID haproxy)")
            else:
                lb.says("systemctl", way, "haproxy", timeout=60)
        for lb in touched:
            until(lambda lb=lb: statuses(lb) == before[lb.id], 20, f"{lb.id} is as before")
        seen = clients.stop()
    assert seen["failed"] == 0, seen["failures"]


def test_a_reboot_keeps_maintenance_and_the_set_of_servers(settings, balancers, held) -> None:
    owner = client("ec2").describe_addresses(
        Filters=[{"Name": "tag:Name", "Values": [settings.name_of("edge")]}]
    )["Addresses"][0]["InstanceId"]
    passive = next(lb for lb in balancers.values() if lb.id != owner)
    before = statuses(passive)
    client("ec2").reboot_instances(InstanceIds=[passive.id])

    def back() -> bool:
        again = running(passive.id)
        return bool(again and again.pid != passive.pid and statuses(again) == before)

    until(back, 90, "the load balancer is as before")


def reload(lb: Guest) -> None:
    """It waits until the old process has ended, at most 12 s."""
    lb.says("systemctl", "reload", "haproxy", timeout=90)


def test_idle_keep_alive_clients_survive_ten_reloads(settings, balancers) -> None:
    """Each client rests longer between two requests than a reload takes."""
    mix = ("--mix", "keep-alive=1", "--rate", "40")
    with world(settings) as made, Background("--url", edge.url(settings), *mix) as clients:

        def met(least: int = 30) -> bool:
            """Whether the new processes, which count from zero, have met their clients."""
            return sum(c.requests for c in made.balancers.counters().values()) >= least

        for _ in range(10):
            with ThreadPoolExecutor() as pool:
                list(pool.map(reload, balancers.values()))
            until(met, 20, "clients are served by the processes that the reload started")
        seen = clients.stop()
    assert seen["failed"] == 0, seen["failures"]
    assert seen["served"] >= 300


@pytest.mark.drill
def test_the_role_finds_nothing_to_change_after_hosts_came_and_went(settings, balancers) -> None:
    """Ansible keeps the servers that the discovery wrote: check mode is silent."""
    done = subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"),
            *("-i", f"inventory/{settings.env}", "playbooks/site.yml"),
            *("--check", "--diff", "--limit", "lb,localhost"),
        ],
        cwd=REPO,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    recap = [line for line in done.stdout.splitlines() if line.startswith("lb-")]
    assert len(recap) == len(balancers)
    assert all("changed=0" in line for line in recap), done.stdout[-5000:]
