#!/usr/bin/env python3
"""Ansible's inventory of one Molecule scenario: the instances it launched through the EC2 API.

A scenario is a small fleet of its own: the settings of the environment in FLOTILLA_ENV under
another environment name, so that its instances and SSH files never meet the real fleet's, and with
the addresses of the default VPC, where its hosts are. Which hosts it wants is in its
``vars/hosts.yml``: role to number. Reading the inventory also writes the scenario's ``ssh_config``
and ``known_hosts``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from ipaddress import IPv4Network
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import yaml  # noqa: E402

from flotilla import config  # noqa: E402
from flotilla.aws.session import client  # noqa: E402
from flotilla.errors import FlotillaError, Refused  # noqa: E402
from flotilla.hosts import access, keys  # noqa: E402
from flotilla.inventory.collect import collect  # noqa: E402
from flotilla.inventory.groups import document  # noqa: E402
from flotilla.settings import Settings  # noqa: E402


def scenario_settings(scenario: str) -> Settings:
    """The environment's settings, as a fleet called after the scenario."""
    settings = config.load()
    keys.ensure(settings)  # made for the environment itself: a scenario may only use it
    # Authorities vouch for addresses of the VPC alone.
    network = default_network(settings)
    return settings.model_copy(update={"env": f"molecule-{scenario}", "vpc_cidr": network})


def default_network(settings: Settings) -> IPv4Network:
    """The addresses of the VPC that the account has from the start. Raises Refused without one."""
    only = [{"Name": "is-default", "Values": ["true"]}]
    found = client(settings, "ec2").describe_vpcs(Filters=only)["Vpcs"]
    if not found:
        raise Refused(
            "the account has no default VPC",
            "the hosts of a scenario are launched there",
            "Nothing was launched",
            "aws ec2 create-default-vpc",
        )
    return IPv4Network(found[0]["CidrBlock"])


def wanted(scenario: str) -> Path:
    """The file that says how many hosts of each role a scenario has."""
    return ROOT / "molecule" / scenario / "vars" / "hosts.yml"


def listing(scenario: str) -> dict[str, object]:
    """The ``--list`` document, with what the shared playbooks need besides."""
    settings = scenario_settings(scenario)
    snapshot = collect(settings, now=time.time())
    access.prepare(settings, snapshot)
    found = document(settings, snapshot)
    fleet_file = ROOT / "inventory" / config.environment.current() / config.environment.FLEET_FILE
    fleet = yaml.safe_load(fleet_file.read_text())["fleet"]
    counts = yaml.safe_load(wanted(scenario).read_text())
    found["all"]["vars"] |= {
        "fleet": {**fleet, "env": settings.env, "vpc_cidr": str(settings.vpc_cidr)},
        "scenario_hosts": [
            {"name": f"{role}-{number}", "role": role}
            for role, count in counts.items()
            for number in range(1, count + 1)
        ],
        "scenario_tags": {"Fleet": settings.name, "Env": settings.env, "ManagedBy": "flotilla"},
        "scenario_key": keys.public(settings),
        "scenario_prefix": settings.prefix,
        "scenario_python": sys.executable,
    }
    return found


def main() -> int:
    """Print the document; any argument but ``--host`` means all of it."""
    scenario = os.environ.get("MOLECULE_SCENARIO_NAME", "")
    if not wanted(scenario).is_file():
        sys.stderr.write(f"MOLECULE_SCENARIO_NAME is {scenario!r}: there is no such scenario\n")
        return 5
    try:
        json.dump({} if "--host" in sys.argv else listing(scenario), sys.stdout)
    except (FlotillaError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"{error}\n")
        return getattr(error, "exit_code", 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
