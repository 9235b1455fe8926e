#!/usr/bin/env python3
"""What is gone when all database hosts vanish at once under writes, and comes back from S3.

    benchmarks/lost_cluster.py --yes [--runs 3] [--writers 4]

Writers on every application host keep a ledger; EC2 terminates every database host; `fab
backup.recover` builds them anew. Whatever a client was told OK for and is not there afterwards is
counted, and how long before the last acknowledged write it was acknowledged: the recovery point.

Prints a line a run on stderr and one JSON object on stdout; exits 1 when the bar was missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from flotilla import config
from flotilla.aws.session import client, described
from flotilla.backup import operate, recover
from flotilla.ledger import new_run, over_ssh
from flotilla.mysql import store
from flotilla.mysql.ledger import Ledger, forget, order, rows
from flotilla.mysql.session import session
from flotilla.rules.drill import spread
from flotilla.rules.ledger import Entry, Fate
from flotilla.settings import Settings

# Acknowledged writes of at most so many seconds before the end may be missing.
POINT_BAR = 5.0
WRITE_SECONDS, LIMIT_SECONDS = 30.0, 120.0
# The last answers come after the hosts are gone, or never.
DEAD_SECONDS = 5.0


def main() -> int:
    """Measure, and print."""
    options = parsed()
    if not options.yes:
        say("It terminates every database host and builds them from S3. Next: add --yes")
        return 3
    settings = config.load()
    if not operate.listed(settings)["backups"]:
        operate.run(settings, None, confirmed=lambda _: None, said=say)
    each = []
    for number in range(options.runs):
        each.append(run(settings, options.writers))
        say(f"[{number + 1}/{options.runs}] {json.dumps(each[-1])}")
    told = {
        "point_seconds": spread([one["point_seconds"] for one in each]),
        "recover_seconds": spread([one["recover_seconds"] for one in each]),
        "acked": sum(one["acked"] for one in each),
        "missing": sum(one["missing"] for one in each),
        "each": each,
    }
    worst = max(one["point_seconds"] for one in each)
    told["missed"] = ["recovery point"] if worst > POINT_BAR else []
    print(json.dumps(told))
    return 1 if told["missed"] else 0


def run(settings: Settings, writers: int) -> dict[str, Any]:
    """One loss of everything; its figures."""
    known, name = store.secrets(settings), new_run()
    with session(settings, fresh=True) as opened, ExitStack() as stack:
        hosts = opened.snapshot.by_role("mysql")
        ledgers = [
            Ledger(
                host.name,
                over_ssh(opened.runner, host),
                order(
                    settings, known, writers=writers, run=name, label=host.name,
                    limit_seconds=LIMIT_SECONDS,
                ),
            )
            for host in opened.snapshot.by_role("app")
        ]  # fmt: skip
        for ledger in ledgers:
            stack.enter_context(ledger)
        time.sleep(WRITE_SECONDS)
        with described(settings, "terminate every database host"):
            client(settings, "ec2").terminate_instances(
                InstanceIds=[host.instance_id for host in hosts]
            )
        time.sleep(DEAD_SECONDS)
        entries = [entry for ledger in ledgers for entry in ledger.stop()]
    begun = time.monotonic()
    recover.recover(settings, to="latest", gtid="", confirmed=lambda _: None, said=lambda _: None)
    took = time.monotonic() - begun
    with session(settings, fresh=True) as opened:
        record = store.records(settings).read()
        seats = opened.cluster.seats.values()
        primary = next(seat for seat in seats if record and seat.instance_id == record.instance_id)
        wanted = order(settings, known, run=name)
        found = rows(primary.server, wanted)
        forget(primary.server, wanted)
    return {**point(entries, set(found)), "recover_seconds": round(took, 1)}


def point(entries: list[Entry], found: set[str]) -> dict[str, Any]:
    """How many acknowledged writes are missing, and how old the oldest was at the last one's."""
    acked = [entry for entry in entries if entry.fate is Fate.ACKED]
    missing = [entry.ended for entry in acked if entry.id not in found]
    last = max(entry.ended for entry in acked)
    return {
        "acked": len(acked),
        "missing": len(missing),
        "point_seconds": round(last - min(missing, default=last), 3),
    }


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--writers", type=int, default=4, help="on every application host")
    parser.add_argument("--yes", action="store_true")
    return parser.parse_args()


def say(text: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
