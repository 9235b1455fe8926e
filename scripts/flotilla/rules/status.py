"""What is wrong with a fleet, one sentence each, with the command to type next.

Invariants: one cause is told once (a host that is silent is not also a database, a server and a
replica that is missing), and what clients notice comes before what only weakens the fleet.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from flotilla.rules import status_certificates, status_data, status_traffic
from flotilla.rules.status_finding import (
    FAILED_OVER,
    STATUS,
    Finding,
    Severity,
    listed,
    note,
    risk,
)
from flotilla.rules.status_world import Host, World

DISK_PERCENT = 90.0
DISK_FULL_PERCENT = 98.0
# Leases allow for clocks that differ by 5 s; half of it is the time to act.
CLOCK_SECONDS = 2.5

SILENT, NO_SSH, DISK = "host-does-not-answer", "ssh-does-not-connect", "disk-is-full"
API, LOCKED = "aws-api-does-not-answer", "lock-is-held"
REPLACED = "replace-an-app-host"


def findings(world: World) -> list[Finding]:
    """Everything that is wrong, worst first; within a severity in the order a request travels."""
    parts: Sequence[Callable[[World], Iterator[Finding]]] = (
        _inventory,
        _hosts,
        status_traffic.edge,
        status_traffic.balancers,
        status_traffic.maintenance,
        status_traffic.certificates,
        status_traffic.following,
        status_traffic.servers,
        status_traffic.apps,
        status_traffic.releases,
        status_data.mysql,
        status_data.backups,
        status_data.redis,
        status_data.redis_backups,
        status_certificates.certificates,
        _machines,
        _images,
        _agents,
    )
    found = [finding for part in parts for finding in part(world)]
    return sorted(found, key=lambda finding: finding.severity)


def is_well(found: Sequence[Finding]) -> bool:
    """Whether nobody has to act."""
    return all(finding.severity is Severity.NOTE for finding in found)


def _inventory(world: World) -> Iterator[Finding]:
    if world.api_error:
        yield risk("aws", f"AWS could not be asked: {world.api_error}", STATUS, API)
    if world.inventory_warning:
        yield risk("inventory", world.inventory_warning, STATUS, API)
    for problem in world.inventory_problems:
        yield risk("inventory", problem, "correct the tags Name and Role of the instances")
    if world.lock:
        yield note("lock", f"somebody is changing the fleet: {world.lock}", STATUS, LOCKED)


def _hosts(world: World) -> Iterator[Finding]:
    for role, wanted in world.wanted.items():
        there = len(world.by_role(role))
        # Those that are stopped are told of one by one, and not launched again.
        stopped = sum(host.role == role and not host.is_active for host in world.hosts)
        if there < wanted and (not there or there + stopped < wanted):
            severity = Severity.RISK if there else Severity.DOWN
            what = f"{there} of {wanted} {role} hosts run"
            yield Finding(severity, role, what, "fab fleet.provision")
        elif there > wanted:
            what = f"{there} {role} hosts run, fleet.yml wants {wanted}"
            yield note(role, what, "fab fleet.provision")
    for host in world.hosts:
        if not host.is_active:
            what = f"{host.name} is {host.state}"
            if host.role == "mysql":
                # Not just started: a primary that was replaced has been stopped to fence it.
                yield risk(host.name, what, f"fab mysql.rejoin {host.name}", FAILED_OVER)
            elif host.role == "app":
                # Its group ends a stopped member within seconds; one that is started is lost too.
                what += "; Auto Scaling launches another in its place"
                yield risk(host.name, what, STATUS, REPLACED)
            else:
                start = f"aws ec2 start-instances --instance-ids {host.instance_id}"
                yield risk(host.name, what, start, SILENT)
    yield from _silent(world)


def _silent(world: World) -> Iterator[Finding]:
    quiet = [host for host in world.hosts if host.silent]
    gateways = [host for host in quiet if host.role == "bastion"]
    active = [host for host in world.hosts if host.is_active]
    if len(quiet) == len(active) > 1 and (gateways or not world.by_role("bastion")):
        who = gateways[0].name if gateways else "the bastion"
        why = gateways[0].silent if gateways else "there is none"
        what = f"{who} does not let us through ({why}), so none of {len(active)} hosts was asked"
        after = _console(gateways[0]) if gateways else "fab fleet.provision"
        yield risk(who, what, after, NO_SSH)
        return
    for host in quiet:
        what = f"{host.name} does not answer: {host.silent}"
        yield risk(host.name, what, _console(host), SILENT)


def _console(host: Host) -> str:
    return f"fab fleet.console {host.name}"


def _machines(world: World) -> Iterator[Finding]:
    for host in world.hosts:
        report = host.report
        if report is None:
            continue
        for unit, state in report.units.items():
            if state != "active":
                what = f"{unit} is {state} on {host.name}"
                yield risk(host.name, what, f"fab fleet.logs {host.name} --unit {unit}")
        for unit in report.failed_units:
            if unit.removesuffix(".service") not in report.units:
                what = f"{unit} has failed on {host.name}"
                yield risk(host.name, what, f"fab fleet.logs {host.name} --unit {unit}")
        yield from _disks(host)
        offset = report.clock_offset_seconds
        if abs(offset) > CLOCK_SECONDS:
            way = "ahead of" if offset > 0 else "behind"
            what = f"the clock of {host.name} is {abs(offset):.1f} s {way} this machine's"
            yield risk(host.name, what, f"fab fleet.logs {host.name} --unit chrony")


def _disks(host: Host) -> Iterator[Finding]:
    for disk in host.report.disks if host.report else ():
        used = max(disk.used_percent, disk.inodes_percent)
        if used < DISK_PERCENT:
            continue
        of = "inodes" if disk.inodes_percent > disk.used_percent else "space"
        what = f"{used:.0f} % of the {of} of {disk.path} on {host.name} is used"
        severity = Severity.DOWN if used >= DISK_FULL_PERCENT else Severity.RISK
        after = f"fab fleet.run --on {host.name} --sudo 'du -xh -d 3 {disk.path} | sort -h | tail'"
        yield Finding(severity, host.name, what, after, DISK)


def _images(world: World) -> Iterator[Finding]:
    old: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for host in world.hosts:
        image = host.image
        if not world.api_error and image is None and host.image_id:
            what = f"the image of {host.name} ({host.image_id}) is not one of the fleet's any more"
            yield note(host.name, what, "fab images.list")
        elif image is not None and not image.is_tested:
            what = f"{host.name} runs {image.name}, which never passed its test"
            yield risk(host.name, what, f"fab images.test --image {image.image_id}")
        if image is not None and host.newer is not None:
            old[host.role, image.name, host.newer.name].append(host.name)
    for (role, name, newer), hosts in old.items():
        verb = "runs" if len(hosts) == 1 else "run"
        what = f"{listed(hosts)} {verb} {name}; {newer} is newer and tested"
        yield note(role, what, "fab images.status")


def _agents(world: World) -> Iterator[Finding]:
    reasons: dict[str, list[str]] = defaultdict(list)
    for host in world.hosts:
        if host.report and host.report.agent_missing:
            reasons[host.report.agent_missing].append(host.name)
    for reason, hosts in reasons.items():
        who = f"{len(hosts)} hosts" if len(hosts) > 3 else listed(hosts)
        what = f"the CloudWatch agent is left out on {who}: {reason}"
        yield note("cloudwatch", what, "fab fleet.configure")
