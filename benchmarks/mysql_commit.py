#!/usr/bin/env python3
"""What it costs a commit that another host has it before the client is told.

    benchmarks/mysql_commit.py --yes [--seconds 10] [--repeats 5]

Clients write one row after the other through an application host's HAProxy, in turns with commits
that wait for a replica (as configured), that wait for one which does not sync its relay log, and
that wait for nobody. sync_binlog and innodb_flush_log_at_trx_commit are 1 everywhere. While nobody
is waited for, an acknowledged write could be lost: the cluster is paused and put back afterwards.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flotilla import config
from flotilla.drill.commands import told
from flotilla.mysql import store
from flotilla.mysql.session import Session, session
from flotilla.rules.drill import spread

BAR = 3.0
WAITS = "SET GLOBAL rpl_semi_sync_source_enabled"
RELAY = "SET GLOBAL sync_relay_log"
# As it is, without the relay log's sync on replicas, without waiting.
MODES: Mapping[str, tuple[str, str]] = {
    "semi-sync": (f"{WAITS} = ON", f"{RELAY} = 1"),
    "relay log not synced": (f"{WAITS} = ON", f"{RELAY} = 10000"),
    "async": (f"{WAITS} = OFF", f"{RELAY} = 1"),
}


def main() -> int:
    """Measure every mode in turns, and print."""
    options = parsed()
    if not options.yes:
        say("Acknowledged writes are not safe for a while. Next: add --yes")
        return 3
    settings = config.load()
    runs: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    with session(settings, fresh=True) as opened, paused(opened) as primary:
        for number in range(options.repeats):
            for mode in MODES:
                runs[mode].append(measured(opened, primary, mode, options))
                one = runs[mode][-1]
                say(f"{number + 1}/{options.repeats} {mode}: p50 {one['p50_ms']:.2f} ms")
    report = compared(runs, options)
    say("mode                    p50 ms   worst   p99 ms   commits/s")
    for mode, one in report["modes"].items():
        p50, p99 = one["p50_ms"], one["p99_ms"]
        say(
            f"{mode:22}{p50['median']:8.2f}{p50['worst']:8.2f}{p99['median']:9.2f}"
            f"{one['commits_per_second']['median']:12.0f}"
        )
    say(f"semi-sync to async {report['ratio']}; missed: {', '.join(report['missed']) or 'nothing'}")
    print(json.dumps(report))
    return 1 if report["missed"] else 0


@contextmanager
def paused(opened: Session) -> Iterator[str]:
    """The primary's name; nobody repairs what is measured, until all is as it was."""
    settings = opened.settings
    record = store.records(settings).read()
    assert record is not None, "the fleet has no MySQL cluster: fab mysql.ensure"
    seats = opened.cluster.seats.items()
    primary = next(name for name, seat in seats if seat.instance_id == record.instance_id)
    reason = "benchmarks/mysql_commit.py"
    told(settings, "mysql.pause", "--reason", reason, "--minutes", "60", "--yes")
    try:
        yield primary
    finally:
        switch(opened, primary, "semi-sync")
        told(settings, "mysql.unpause", "--yes")


def switch(opened: Session, primary: str, mode: str) -> None:
    """Have commits wait as this mode says."""
    waits, relay = MODES[mode]
    for name, seat in opened.cluster.seats.items():
        seat.server.query(waits if name == primary else relay)


def measured(
    opened: Session, primary: str, mode: str, options: argparse.Namespace
) -> dict[str, float]:
    """One turn of one mode."""
    switch(opened, primary, mode)
    with opened.ledger(writers=options.writers) as ledger:
        time.sleep(options.seconds)
        summary = ledger.close_against(opened.cluster.server(primary))
    return {
        "p50_ms": summary.p50_ms,
        "p99_ms": summary.p99_ms,
        "commits_per_second": summary.acked / options.seconds,
    }


def compared(
    runs: Mapping[str, list[dict[str, float]]], options: argparse.Namespace
) -> dict[str, Any]:
    """Medians and worst, and whether the bar was met."""
    modes = {
        mode: {key: spread(one[key] for one in each) for key in each[0]}
        for mode, each in runs.items()
    }
    p50 = {mode: statistics.median(one["p50_ms"] for one in each) for mode, each in runs.items()}
    ratio = round(p50["semi-sync"] / p50["async"], 2)
    return {
        "repeats": options.repeats,
        "writers": options.writers,
        "modes": modes,
        "ratio": ratio,
        "relay_log_sync_ms": round(p50["semi-sync"] - p50["relay log not synced"], 3),
        "missed": [f"semi-sync to async {ratio}, at most {BAR:g}"] * (ratio > BAR),
    }


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each turn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--yes", action="store_true", help="agree that writes are not safe")
    return parser.parse_args()


def say(text: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
