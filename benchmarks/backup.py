#!/usr/bin/env python3
"""What a backup costs clients, and how long it and a restore take beside the usual tools.

    benchmarks/backup.py --yes [--mib 2048] [--log-minutes 10] [--backups 3] [--only backup]

Fills a table of its own on the standing fleet, then, on one replica each:

backup    fab backup.run's tool, while clients post entries, several times, for a disk that others
          share is slow now and then; then `tar | zstd -3` of the same data, under the same load
          and at the same priority
restore   the tool, beside the data in use: base and ten minutes of logs; and `mysql < dump` of the
          same data into a server of its own: with the host's own settings, as who has lost the data
          loads it, and once as fast as it goes, which writes no binary log and waits for no disk

Prints a table on stderr and one JSON object on stdout; exits 1 when a bar was missed. The table is
dropped afterwards; the backup stays.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from flotilla import config
from flotilla.aws import edge
from flotilla.backup import operate
from flotilla.hosts.mysql import Server
from flotilla.mysql import store
from flotilla.mysql.session import Session, session
from flotilla.settings import Settings
from flotilla.traffic import Background
from flotilla.wait import until

SCHEMA = "backup_bench"
# Against the write latency before, tar and zstd, and a dump; and resident memory of the tool.
LATENCY_BAR, THROUGHPUT_BAR, RESTORE_BAR, MEMORY_BAR_MIB = 1.5, 0.6, 5.0, 256
RATE, CALM_SECONDS = 50, 20.0
LONG = 3600.0
# A mebibyte of text that compresses to a half, as much data does.
ROWS = 1000
_FILL = f"""
INSERT INTO {SCHEMA}.t (body)
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
SELECT HEX(RANDOM_BYTES(524)) FROM n
"""
# What the tool takes too: neither logs nor what a server writes anew. A file that changes meanwhile
# is an error for tar, exit 1, and none for who measures it.
_TAR = """
set -o pipefail; export LC_ALL=C
renice -n 19 $$ >/dev/null; ionice -c 3 -p $$; echo 19 >/proc/self/autogroup
without="--exclude=./binlog.* --exclude=./*-relay-bin.* --exclude=./#innodb_*"
(tar -C /var/lib/mysql --totals $without -cf - . || test $? = 1) 2>/tmp/bench-tar |
  zstd -3 -q >/dev/null
sed -n "s/^Total bytes written: \\([0-9]*\\).*/\\1/p" /tmp/bench-tar; rm -f /tmp/bench-tar
"""
_LOAD = f"""
set -e
work=/var/lib/mysql-files/bench; rm -rf $work; mkdir -p $work; cd $work
mysqldump --single-transaction --set-gtid-purged=OFF --databases {SCHEMA} > dump.sql
seconds=""
for options in "" "--disable-log-bin --innodb-flush-log-at-trx-commit=0"; do
  mkdir $work/server; chown -R mysql:mysql $work
  options="--datadir=$work/server/data --socket=$work/server/s --pid-file=$work/server/pid
    --log-error=$work/server/log --skip-networking --user=mysql --super-read-only=OFF
    --read-only=OFF $options"
  mysqld $options --initialize-insecure
  mysqld $options & pid=$!
  until mysqladmin --socket=$work/server/s ping >/dev/null 2>&1; do sleep 0.2; done
  begun=$(date +%s.%N)
  mysql --socket=$work/server/s < dump.sql
  ended=$(date +%s.%N)
  mysqladmin --socket=$work/server/s shutdown; wait $pid
  rm -rf $work/server
  seconds="$seconds $(python3 -c "print($ended - $begun)")"
done
cd /; rm -rf $work
echo $seconds
"""


def main() -> int:
    """Measure, and print."""
    options = parsed()
    if not options.yes:
        say("It fills a table on the fleet and takes a backup. Next: add --yes")
        return 3
    settings = config.load()
    with session(settings, fresh=True) as opened, filled(opened, settings, options.mib) as primary:
        replicas = [name for name in sorted(opened.cluster.seats) if name != primary]
        for name in replicas:
            opened.runner.run(name, "apt-get -qq install -y zstd", sudo=True, seconds=300)
        told: dict[str, Any] = {"mib": options.mib}
        told["backup"] = backup(opened, settings, replicas[0], options.backups)
        say(json.dumps(told["backup"]))
        if options.only != "backup":
            logged(settings, options.log_minutes)
            told["restore"] = restore(opened, replicas[1])
            say(json.dumps(told["restore"]))
    told["missed"] = missed(told)
    say(f"missed: {', '.join(told['missed']) or 'nothing'}")
    print(json.dumps(told))
    return 1 if told["missed"] else 0


@contextmanager
def filled(opened: Session, settings: Settings, mib: int) -> Iterator[str]:
    """The primary, which has a schema of so much data for as long as the block lasts."""
    record = store.records(settings).read()
    seats = opened.cluster.seats.values()
    primary = next(seat for seat in seats if record and seat.instance_id == record.instance_id)
    primary.server.batch(
        [
            f"DROP DATABASE IF EXISTS {SCHEMA}",
            f"CREATE DATABASE {SCHEMA}",
            f"CREATE TABLE {SCHEMA}.t (id BIGINT AUTO_INCREMENT PRIMARY KEY, body TEXT)",
        ],
        seconds=60,
    )
    try:
        begun = time.monotonic()
        for number in range(mib):
            primary.server.query(_FILL, seconds=120)
            if number % 256 == 255:
                say(f"{number + 1} of {mib} MiB, {time.monotonic() - begun:.0f} s")
        settled(opened)
        yield primary.name
    finally:
        primary.server.query(f"DROP DATABASE IF EXISTS {SCHEMA}", seconds=120)


def settled(opened: Session) -> None:
    """Have all members bring it to the disk: what is measured is not what is left of the filling
    (writes took 431 ms then, and 40 ms a minute later).
    """
    begun = time.monotonic()
    most = "SET GLOBAL innodb_max_dirty_pages_pct"
    for name, seat in opened.cluster.seats.items():
        before = seat.server.query("SELECT @@GLOBAL.innodb_max_dirty_pages_pct AS percent")
        seat.server.query(f"{most} = 0")
        try:
            until(partial(is_clean, seat.server), seconds=LONG, every=1.0)
        finally:
            seat.server.query(f"{most} = {before[0]['percent']}")
        opened.runner.run(name, "sync", sudo=True, seconds=LONG)
    say(f"all of it is on the disks, {time.monotonic() - begun:.0f} s")


def is_clean(server: Server) -> bool:
    """Whether less than a mebibyte waits in its memory to be written, where a page is 16 KiB."""
    status = "SHOW GLOBAL STATUS LIKE 'Innodb_buffer_pool_pages_dirty'"
    return int(server.query(status)[0]["Value"]) < 64


def backup(opened: Session, settings: Settings, replica: str, backups: int) -> dict[str, Any]:
    """Full backups under writes, and tar of the same."""
    url = edge.url(settings)
    each: list[dict[str, Any]] = []
    made: dict[str, Any] = {}
    with Background("--url", url, "--rate", str(RATE), "--mix", "post=1") as traffic:
        time.sleep(4)
        for turn in range(backups):
            traffic.mark(f"before {turn}")
            time.sleep(CALM_SECONDS)
            traffic.mark(f"during {turn}")
            made = operate.on_host(opened, replica, "run", as_server=True)
            each.append(made)
            say(f"backup {turn + 1} of {backups}: {made['took']}")
        traffic.mark("tar")
        # Under the same load, and as polite.
        begun = time.monotonic()
        size = int(opened.runner.run(replica, f"bash -c '{_TAR}'", sudo=True, seconds=LONG).stdout)
        tar = time.monotonic() - begun
        seen = traffic.stop()
    # Both in bytes of data a second: tar pads, and reads what is there by now.
    speed = statistics.median(one["bytes"] / sum(one["took"].values()) for one in each)
    p99 = {name: phase["p99_ms"] for name, phase in seen["phases"].items()}
    ratios = [p99[f"during {turn}"] / p99[f"before {turn}"] for turn in range(backups)]
    return {
        "bytes": made["bytes"],
        "stored_bytes": made["stored_bytes"],
        "took": [one["took"] for one in each],
        "tar_bytes": size,
        "tar_seconds": round(tar, 1),
        "to_tar": round(speed / (size / tar), 2),
        "p99_ms": p99,
        "p99_ratio": round(statistics.median(ratios), 2),
        "worst_p99_ratio": round(max(ratios), 2),
        "failed": seen["failed"],
        "peak_mib": max(one["peak_mib"] for one in each),
    }


def logged(settings: Settings, minutes: float) -> None:
    """Have clients write for so long."""
    if minutes:
        say(f"clients write for {minutes:g} minutes")
        with Background("--url", edge.url(settings), "--rate", str(RATE), "--mix", "post=1") as one:
            time.sleep(60 * minutes)
            one.stop()


def restore(opened: Session, replica: str) -> dict[str, Any]:
    """A restore beside the data in use, and a dump of the same that is loaded."""
    made = operate.on_host(opened, replica, "rehearse")
    loaded = opened.runner.run(replica, f"bash -c '{_LOAD}'", sudo=True, seconds=LONG).stdout
    seconds, fastest = map(float, loaded.splitlines()[-1].split())
    return {
        "seconds": made["seconds"],
        "replayed": made["replayed"],
        "peak_mib": made["peak_mib"],
        "load_seconds": round(seconds, 1),
        "fastest_load_seconds": round(fastest, 1),
        "times_faster": round(seconds / made["seconds"], 2),
    }


def missed(told: dict[str, Any]) -> list[str]:
    """The bars that were, as words."""
    one, other = told["backup"], told.get("restore", {})
    peak = max(one["peak_mib"], other.get("peak_mib", 0))
    return [
        *["write latency"] * (one["p99_ratio"] > LATENCY_BAR),
        *["backup / tar"] * (one["to_tar"] < THROUGHPUT_BAR),
        *["restore / load"] * (other.get("times_faster", RESTORE_BAR) < RESTORE_BAR),
        *["memory"] * (peak > MEMORY_BAR_MIB),
    ]


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=2048)
    parser.add_argument("--log-minutes", type=float, default=10.0, help="of writes to replay")
    parser.add_argument("--backups", type=int, default=3, help="how often one is made")
    parser.add_argument("--only", choices=["backup"], help="leave the restore out")
    parser.add_argument("--yes", action="store_true")
    return parser.parse_args()


def say(text: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
