#!/usr/bin/env python3
"""What hardening costs a run of site.yml that changes nothing: seconds of that run.

    benchmarks/hardening_cost.py --yes [--repeats 3]

Configures the standing fleet `--repeats` times, once more before if something has to change, and
adds up what Ansible's own profile says of each task. Counted are the tasks that are there for
hardening alone: roles hardening and firewall, the plays of the firewalls, and of role base the
certificates of hosts and users and what puts SSH settings on trial.

Prints a line a run on stderr and one JSON object on stdout. Exit 0 within the bar, 1 missed, 3
nothing done.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from flotilla import config, environment

BAR = 10.0
_OURS = re.compile(
    r"(?:hardening|firewall) : |(?:Firewalls|Firewalls that are in force|Certificates) \| "
    r"|base : (?:Pack|Settings|Certificate|Sshd|Login) \| "
    r"|base : Main \| (?:Have a certificate|Put the SSH settings)"
)
_TIMED = re.compile(r"^(?P<task>\S.*?) -+ +(?P<seconds>[0-9.]+)s$")
_PROFILE = {
    "ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.profile_tasks",
    "PROFILE_TASKS_TASK_OUTPUT_LIMIT": "all",
    "PROFILE_TASKS_SORT_ORDER": "none",
}


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--yes", action="store_true")
    options = parser.parse_args()
    if not options.yes:
        sys.stderr.write("It configures every host of the fleet. Next: add --yes\n")
        return 3
    each: list[dict[str, float]] = []
    more = options.repeats + 1
    while len(each) < options.repeats and more:
        more -= 1
        changed, timed = configured()
        if changed:
            sys.stderr.write("it changed something: not counted\n")
            continue
        ours = sum(seconds for task, seconds in timed if _OURS.match(task))
        whole = sum(seconds for _, seconds in timed)
        each.append({"hardening": round(ours, 2), "whole": round(whole, 2)})
        sys.stderr.write(f"[{len(each)}/{options.repeats}] {json.dumps(each[-1])}\n")
    if not each:
        raise SystemExit("every run changed something. Next: fab fleet.configure --check")
    figures = [one["hardening"] for one in each]
    told = {"median": statistics.median(figures), "worst": max(figures)}
    missed = told["median"] > BAR
    json.dump({"seconds": told, "bar": BAR, "missed": missed, "each": each}, sys.stdout)
    sys.stdout.write("\n")
    return 1 if missed else 0


def configured() -> tuple[int, list[tuple[str, float]]]:
    """How many tasks changed something, and what each took, in seconds."""
    fab = [str(Path(sys.executable).parent / "fab"), "fleet.configure", "--yes", "--json"]
    root, variables = environment.root(), os.environ | _PROFILE
    done = subprocess.run(fab, cwd=root, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    logs = (config.load().scratch / "log").glob("configure-*.log")
    return json.loads(done.stdout)["changed"], profile(max(logs).read_text().splitlines())


def profile(lines: Iterable[str]) -> list[tuple[str, float]]:
    """(task, seconds) of what profile_tasks has printed."""
    found = (_TIMED.match(line) for line in lines)
    return [(one["task"], float(one["seconds"])) for one in found if one]


if __name__ == "__main__":
    sys.exit(main())
