#!/usr/bin/env python3
"""Flotilla's inventory beside amazon.aws.aws_ec2: the same hosts, the same groups, the same run.

Both read one local EC2 endpoint with ready-made answers. Its time to answer is taken out, so what
is compared is what each tool does with the answers. Prints one JSON object; exits 1 when a bar of
ours is missed.

    benchmarks/inventory.py --hosts 10000 --repeats 3
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fake_ec2 import FakeEc2, fleet

ROOT = Path(__file__).resolve().parents[1]

# Seconds that 10,000 hosts may take with a snapshot that is fresh.
SCRIPT_BAR = 0.3
ANSIBLE_BAR = 3.5

PLUGIN = """\
plugin: amazon.aws.aws_ec2
regions: [eu-central-1]
hostnames: [tag:Name]
filters: {tag:Fleet: flotilla, tag:Env: lab, instance-state-name: [pending, running]}
keyed_groups:
  - {key: tags.Role, separator: ""}
  - {key: placement.availability_zone, prefix: zone}
compose: {ansible_host: private_ip_address}
use_contrib_script_compatible_sanitization: false
"""


@dataclass
class Case:
    """One way to list the hosts, and what its runs took."""

    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)  # wall time less the API's
    api_seconds: list[float] = field(default_factory=list)
    api_calls: list[int] = field(default_factory=list)
    output: str = ""

    def report(self) -> dict[str, object]:
        """Median and worst over the runs, and every run."""
        return {
            "median": round(statistics.median(self.seconds), 3),
            "worst": round(max(self.seconds), 3),
            "each": [round(one, 3) for one in self.seconds],
            "api_seconds": round(statistics.median(self.api_seconds), 3),
            "api_calls": statistics.median(self.api_calls),
        }


def main() -> int:
    """Run every case in turn, as often as asked for."""
    options = parsed()
    with tempfile.TemporaryDirectory() as folder, FakeEc2(fleet(options.hosts)) as endpoint:
        repo = prepared(Path(folder), endpoint.url)
        cases = all_cases(repo)
        base = environment(repo, endpoint.url)
        for number in range(options.repeats + 1):
            for name, case in cases.items():
                measured(case, base, endpoint, repo, keep=number > 0)
                say(f"{number}/{options.repeats} {name}")
        report = summary(cases, options.hosts, options.repeats)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 0 if report["met"] else 1


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hosts", type=int, default=10_000, help="instances (default 10000)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs of each, after one that is not counted"
    )
    return parser.parse_args()


def prepared(repo: Path, url: str) -> Path:
    """A repository whose environment is at the endpoint, and the plugin's files beside it."""
    (repo / "inventory").mkdir()
    shutil.copytree(ROOT / "inventory/lab", repo / "inventory/lab", symlinks=True)
    shutil.copy(ROOT / "inventory/ec2.py", repo / "inventory/ec2.py")
    (repo / "scripts").symlink_to(ROOT / "scripts")
    (repo / ".venv").symlink_to(Path(sys.executable).parents[1])
    fleet_file = repo / "inventory/lab/group_vars/all/fleet.yml"
    fleet_file.write_text(re.sub(r"http://127\.0\.0\.1:\d+", url, fleet_file.read_text()))
    credentials = repo / "var/lab/aws/credentials"
    credentials.parent.mkdir(parents=True)
    credentials.write_text("[lab]\naws_access_key_id = x\naws_secret_access_key = x\n")
    for name, cache in (("uncached", "no"), ("cached", "yes")):
        text = f"{PLUGIN}cache: {cache}\ncache_plugin: jsonfile\ncache_connection: {repo}/cache\n"
        (repo / f"{name}.aws_ec2.yml").write_text(text)
    (repo / "ansible.cfg").write_text(
        "[inventory]\nenable_plugins = script, amazon.aws.aws_ec2\nany_unparsed_is_failed = true\n"
    )
    return repo


def environment(repo: Path, url: str) -> dict[str, str]:
    """What every run sees: the endpoint's account, and nothing of the caller's."""
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(repo),
        "LC_ALL": "C.UTF-8", "AWS_ENDPOINT_URL": url, "AWS_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
        "FLOTILLA_INVENTORY_FRESH": "3600", "ANSIBLE_CONFIG": str(repo / "ansible.cfg"),
    }  # fmt: skip


def all_cases(repo: Path) -> dict[str, Case]:
    """Ours and the plugin's, each with and without what it keeps between runs."""

    def graph(source: str) -> list[str]:
        return ["ansible-inventory", "-i", source, "--graph"]

    return {
        "script_hit": Case([f"{repo}/inventory/lab/ec2.py", "--list"]),
        "ansible_hit": Case(graph("inventory/lab")),
        "ansible_miss": Case(graph("inventory/lab"), {"FLOTILLA_INVENTORY_FRESH": "0"}),
        "aws_ec2_hit": Case(graph("cached.aws_ec2.yml")),
        "aws_ec2_miss": Case(graph("uncached.aws_ec2.yml")),
    }


def measured(
    case: Case, base: Mapping[str, str], endpoint: FakeEc2, repo: Path, *, keep: bool
) -> None:
    """Run a case once; the first run fills caches and is not counted."""
    busy, calls = endpoint.busy_seconds, sum(endpoint.calls.values())
    start = time.perf_counter()
    done = subprocess.run(
        case.command, cwd=repo, env={**base, **case.environment}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    wall = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(case.command)} exited {done.returncode}:\n{done.stderr}")
    case.output = done.stdout
    if keep:
        spent = endpoint.busy_seconds - busy
        case.seconds.append(wall - spent)
        case.api_seconds.append(spent)
        case.api_calls.append(sum(endpoint.calls.values()) - calls)


def groups(graph: str) -> dict[str, set[str]]:
    """The hosts of each group in what ``ansible-inventory --graph`` drew."""
    found: dict[str, set[str]] = {}
    group = ""
    for line in graph.splitlines():
        name = line.lstrip(" |-")
        if name.startswith("@"):
            group = name[1:].rstrip(":")
        elif name and group:
            found.setdefault(group, set()).add(name)
    return found


def summary(cases: Mapping[str, Case], hosts: int, repeats: int) -> dict[str, object]:
    """What was measured, how the two compare, and whether our bars are met."""
    ours, theirs = groups(cases["ansible_hit"].output), groups(cases["aws_ec2_hit"].output)
    # The plugin makes a group of its own that holds every host.
    theirs.pop("aws_ec2", None)
    reports = {name: case.report() for name, case in cases.items()}
    ratio: Callable[[str, str], float] = lambda slow, fast: round(  # noqa: E731
        statistics.median(cases[slow].seconds) / statistics.median(cases[fast].seconds), 1
    )
    bars = {
        "script_hit_seconds": max(cases["script_hit"].seconds) <= SCRIPT_BAR,
        "ansible_hit_seconds": max(cases["ansible_hit"].seconds) <= ANSIBLE_BAR,
        "no_api_call_on_a_hit": not any(
            cases["script_hit"].api_calls + cases["ansible_hit"].api_calls
        ),
        "same_groups_as_aws_ec2": ours == theirs and sum(map(len, ours.values())) == 2 * hosts,
    }
    return {
        "hosts": hosts,
        "repeats": repeats,
        "groups": len(ours),
        "seconds": reports,
        "ratio": {
            "hit": ratio("aws_ec2_hit", "ansible_hit"),
            "miss": ratio("aws_ec2_miss", "ansible_miss"),
        },
        "bars": bars,
        "met": all(bars.values()),
    }


def say(line: str) -> None:
    """Progress goes to stderr: stdout is for programs."""
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
