"""Every host to every other one, from outside, and to anywhere: what is open is the table.

What packets show is what security groups and host firewalls let through together. A rule too many
in one of them that the other one stops is seen in the second and third test.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from guests import client, needs_lab, until
from security import reach
from security.wire import TCP, Dial

from flotilla import inventory
from flotilla.hosts.ssh import Runner, prepare
from flotilla.provision.world import data
from flotilla.rules import firewall, reachability
from flotilla.rules.reachability import ANYWHERE, Group
from flotilla.settings import ROLES, Settings
from flotilla.snapshot import Snapshot

pytestmark = needs_lab

WIRE = (Path(__file__).parents[1] / "security" / "wire.py").read_text()
# SSH to 12 hosts and the start of Python there; then longer than the second SYN, after 1 s, takes.
LEAD_SECONDS, LOOK_SECONDS = 8.0, 4.0
LIMIT_SECONDS = 60.0
# Connections from before the first filter are let in for two minutes.
SETTLED_SECONDS = 150.0
# Dialled from 127.0.0.N, the operator is 198.18.0.N, which fleet.yml allows; from 127.0.9.9 not.
FRIEND, STRANGER = "127.0.0.9", "127.0.9.9"
SEEN_AS = {FRIEND: "198.18.0.9", STRANGER: "198.18.9.9"}
LISTENING = "ss -Hltn | awk '{print $4}'"


class Fleet:
    """The hosts, SSH to them, and what the table says of them."""

    def __init__(self, settings: Settings, snapshot: Snapshot, runner: Runner) -> None:
        self.settings, self.runner = settings, runner
        self.active = [host for host in snapshot.hosts if host.is_active]
        self.hosts = [
            reach.Host(one.name, one.role, one.private_ip or "", one.public_ip or "")
            for one in self.active
        ]
        outside = {
            "operator": settings.ssh.allow_from,
            "clients": settings.lb.allow_from,
            "internet": (ANYWHERE,),
        }
        table = reachability.rows(data("reachability.yml"))
        self.groups: dict[str, Group] = reachability.groups(table, roles=ROLES, outside=outside)


@pytest.fixture(scope="module")
def fleet(standing_fleet: Settings) -> Iterator[Fleet]:
    snapshot = inventory.load(standing_fleet, refresh=True)
    prepare(standing_fleet, snapshot)
    with Runner(standing_fleet, snapshot) as runner:
        yield Fleet(standing_fleet, snapshot, runner)


def test_what_goes_through_is_what_the_table_says(fleet: Fleet) -> None:
    began = time.monotonic()
    listed = fleet.runner.run_on(fleet.active, LISTENING)
    listed.raise_errors()
    lines = [line for one in listed.results.values() for line in one.stdout.split()]
    ports = reach.tcp_ports(fleet.groups, {int(line.rpartition(":")[2]) for line in lines})
    spoken = reach.spoken(fleet.groups)
    common = {
        "at": time.time() + LEAD_SECONDS,
        "seconds": LOOK_SECONDS,
        "mark": f"flotilla-{uuid.uuid4().hex}",
        "hear": sorted({protocol for protocol, _ in spoken}),
        "outside": reach.NOBODY,
    }

    def order(name: str) -> str:
        others = [one.address for one in fleet.hosts if one.name != name] + [reach.NOBODY]
        say = [[address, *what] for address in others for what in spoken]
        return json.dumps(common | {"dial": dict.fromkeys(others, ports), "say": say})

    # The program is text of ours, which anybody may read; the order too.
    command = "python3 -c 'import sys; n = int(sys.stdin.readline()); exec(sys.stdin.read(n))'"
    done = fleet.runner.each(
        fleet.active,
        lambda host: fleet.runner.run(
            host, command, sudo=True, stdin=f"{len(WIRE)}\n{WIRE}{order(host.name)}"
        ),
    )
    done.raise_errors()
    answers = {name: json.loads(one.stdout) for name, one in done.results.items()}
    wanted = reach.permitted(fleet.groups, fleet.hosts)
    problems = reach.differences(wanted, reach.seen(fleet.hosts, answers))
    for host in fleet.hosts:
        left = {(host.name, protocol, port) for protocol, port in answers[host.name]["left"]}
        may = {(host.name, *what) for what in reach.released(fleet.groups[host.role])}
        problems += [f"to anywhere: {one}" for one in reach.differences(may, left)]
    problems += _from_outside(fleet, ports)
    assert problems == []
    assert time.monotonic() - began < LIMIT_SECONDS


def _from_outside(fleet: Fleet, ports: list[int]) -> list[str]:
    problems = []
    public = {host.public: host for host in fleet.hosts if host.public}
    for source, address in SEEN_AS.items():
        dial = Dial(dict.fromkeys(public, ports), source)
        end = time.monotonic() + LOOK_SECONDS
        while time.monotonic() < end:
            dial.look()
            time.sleep(0.05)
        dial.close()
        for where, host in public.items():
            may = reach.admitted(fleet.groups[host.role], address)
            wanted = {(address, host.name, *what) for what in may}
            found = {(address, host.name, TCP, port) for port in dial.through[where]}
            problems += [f"from outside: {one}" for one in reach.differences(wanted, found)]
    return problems


def test_security_groups_have_the_tables_rules_and_no_other(fleet: Fleet) -> None:
    mine = [{"Name": "group-name", "Values": [fleet.settings.name_of(role) for role in ROLES]}]
    found = client("ec2").describe_security_groups(Filters=mine)["SecurityGroups"]
    names = {fleet.settings.name_of(role): role for role in ROLES}
    have = reach.declared(found, {one["GroupId"]: names[one["GroupName"]] for one in found})
    assert have == reach.wished(fleet.groups)


def test_the_filter_in_every_kernel_is_the_tables(fleet: Fleet) -> None:
    """Loaded once more, by the host's own nft, where nothing else is: an empty network."""
    live = "nft -s list table inet flotilla"
    fresh = f"unshare -n sh -c 'nft -f - && {live}'"

    def differs() -> list[str]:
        wrong = []
        for host in fleet.active:
            text = firewall.ruleset(
                firewall.Host(fleet.groups[host.role], ROLES, str(fleet.settings.vpc_cidr), ())
            )
            told = fleet.runner.run(host, live, sudo=True).stdout
            wanted = fleet.runner.run(host, fresh, sudo=True, stdin=text).stdout
            wrong += [host.name] if reach.bare(told) != reach.bare(wanted) else []
        return wrong

    until(lambda: not differs(), SETTLED_SECONDS, "every filter is the table")
