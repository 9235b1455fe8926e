#!/usr/bin/env python3
"""Failover of MySQL under writing clients: ours, and Group Replication with HAProxy.

    benchmarks/mysql_failover.py --yes [--faults kill,freeze,partition] [--runs 5]

The same lab, hosts, packages, durability, HAProxy configuration, faults and clients (those of
`fab drill.mysql`). `group` is Group Replication in single-primary mode as it comes, `tuned` is it
with member_expel_timeout 0, which gives a silent member up soonest. Replaces the fleet's cluster by
a group for a while, data aside, and brings it back.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from group_replication import Group

from fabfile.drill import _outside
from flotilla import config
from flotilla.drill.mysql import Drill, Subject
from flotilla.drill.mysql_cluster import Watched
from flotilla.drill.writes import line, summed
from flotilla.mysql import store
from flotilla.mysql.session import Session, session
from flotilla.rules.drill_mysql import FAULTS
from flotilla.settings import Settings

WAYS: Mapping[str, Mapping[str, object] | None] = {
    "ours": None,
    "group": {},
    "tuned": {"member_expel_timeout": 0},
}
DEFAULT = "kill,freeze,partition,partition-replicas-only,stop-instance"


def main() -> int:
    """Measure every way under every fault, and print."""
    options = parsed()
    if not options.yes:
        say("This replaces the fleet's MySQL cluster for a while. Next: add --yes")
        return 3
    settings = config.load()
    told: dict[str, Any] = {"runs": options.runs, "writers": options.writers, "faults": {}}
    with session(settings, fresh=True) as opened:
        for way in options.ways.split(","):
            with subject(settings, opened, way) as chosen:
                drill = Drill(settings, opened, chosen, _outside(settings), say)
                for fault in options.faults.split(","):
                    told["faults"].setdefault(fault, {})[way] = measured(drill, fault, way, options)
    told["missed"] = [
        f"{fault}: {why}"
        for fault, ways in told["faults"].items()
        for why in ways.get("ours", {}).get("broken", [])
    ]
    table(told)
    print(json.dumps(told))
    return 1 if told["missed"] else 0


@contextmanager
def subject(settings: Settings, opened: Session, way: str) -> Iterator[Subject]:
    """What is drilled, in place."""
    extra = WAYS[way]
    if extra is None:
        yield Watched(settings, opened)
        return
    group = Group(settings, opened, store.secrets(settings), extra)
    with group.standing():
        yield group


def measured(drill: Drill, fault: str, way: str, options: argparse.Namespace) -> dict[str, Any]:
    """All runs of one fault."""
    each = []
    for number in range(options.runs):
        each.append(drill.run(FAULTS[fault], options.writers))
        say(f"{way} {fault} {line(number, options.runs, each[-1])}")
        if each[-1]["not_mended"]:
            break
    return summed(each, FAULTS[fault])


def table(told: Mapping[str, Any]) -> None:
    """For people."""
    say(f"{told['runs']} runs each")
    say("fault                    way     gap s   worst  writer s   acked  lost  two at once s")
    for fault, ways in told["faults"].items():
        for way, one in ways.items():
            gap, alone = one["write_gap_seconds"], one["writer_gap_seconds"]
            say(
                f"{fault:25}{way:7}{gap['median']:6.2f}{gap['worst']:8.2f}{alone['worst']:10.2f}"
                f"{one['acked']:8}{one['lost']:6}{one['dual_writable_seconds']['worst']:15.2f}"
            )
    say(f"missed by ours: {'; '.join(told['missed']) or 'nothing'}")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", default=DEFAULT, help=f"of: {', '.join(FAULTS)}")
    parser.add_argument("--ways", default="ours,group,tuned")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--writers", type=int, default=2, help="on every application host")
    parser.add_argument("--yes", action="store_true", help="agree that the cluster is replaced")
    options = parser.parse_args()
    for name, known in (("faults", FAULTS), ("ways", WAYS)):
        wrong = sorted(set(getattr(options, name).split(",")) - set(known))
        if wrong:
            parser.error(f"--{name}: there is no {', '.join(wrong)}; choose: {', '.join(known)}")
    return options


def say(text: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
