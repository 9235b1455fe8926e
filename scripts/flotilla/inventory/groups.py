"""A snapshot as Ansible's ``--list`` document: groups by role and by zone, few variables a host."""

from __future__ import annotations

import shlex
from typing import Any

from flotilla.aws.session import environment
from flotilla.settings import ROLES, Settings
from flotilla.snapshot import Host, Snapshot


def document(settings: Settings, snapshot: Snapshot) -> dict[str, Any]:
    """What ``ec2.py --list`` prints. Only active hosts with an address are in it.

    Every role has its group even when it is empty, so ``groups['mysql']`` never fails.
    """
    hosts = [host for host in snapshot.hosts if host.is_active and host.private_ip]
    groups: dict[str, list[str]] = {role: [] for role in ROLES}
    groups |= {zone_group(zone): [] for zone in settings.zones}
    for host in hosts:
        groups.setdefault(host.role or "unknown", []).append(host.name)
        groups.setdefault(zone_group(host.zone), []).append(host.name)
    return {
        "_meta": {"hostvars": {host.name: _variables(host) for host in hosts}},
        "all": {"vars": _common(settings)},
        **{name: {"hosts": members} for name, members in groups.items()},
    }


def zone_group(zone: str) -> str:
    """``eu-central-1a`` is the group ``zone_eu_central_1a``."""
    return f"zone_{zone.replace('-', '_')}"


def _variables(host: Host) -> dict[str, Any]:
    return {
        "ansible_host": host.private_ip,
        "ec2_image_id": host.image_id,
        "ec2_instance_id": host.instance_id,
        "ec2_private_ip": host.private_ip,
        "ec2_public_ip": host.public_ip,
        "ec2_type": host.type,
        "ec2_zone": host.zone,
        "fleet_number": host.number,
        "fleet_role": host.role,
    }


def _common(settings: Settings) -> dict[str, Any]:
    return {
        "ansible_python_interpreter": "/usr/bin/python3",
        # Everything about how to get there is in this one file: the way through the bastion, the
        # key, and which host keys are right.
        "ansible_ssh_common_args": f"-F {shlex.quote(str(settings.scratch / 'ssh_config'))}",
        "ansible_ssh_private_key_file": str(settings.path(settings.ssh.key_file)),
        "ansible_user": settings.ssh.user,
        # For tasks that call AWS from the operator's machine: environment: "{{ aws_environment }}"
        "aws_environment": environment(settings),
    }
