"""Prove that backups restore: to what a replica holds now, table by table, and to a random moment.

Restores are built beside a replica's own data and dropped again. What came out of it is kept in the
bucket, so that a drill nobody made can be told of.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from flotilla.aws import dynamo
from flotilla.backup import operate, shared, stored
from flotilla.errors import HostFailed, Refused
from flotilla.mysql.recorded import Confirmed, Said, recorded
from flotilla.mysql.session import session
from flotilla.rules import archive as rules
from flotilla.rules.gtid import GtidSet
from flotilla.settings import Settings
from flotilla.wait import DeadlineError, until

FOLDER = "mysql/drill/"
ARCHIVED_SECONDS = 60.0


def drill(
    settings: Settings,
    *,
    confirmed: Confirmed,
    said: Said,
    draw: Callable[[float, float], float] = random.uniform,
) -> dict[str, Any]:
    """{target, exact, differ, restore_seconds, gap_seconds, moment, moment_seconds, host}.

    ``exact`` says that every table of the restored server has the replica's checksum at the same
    GTID set; ``gap_seconds`` how long that set took to be in the archive. ``moment`` is a random
    one since the newest full backup, restored to exactly the set that the archive has for it.
    Raises Refused without a backup, HostFailed when a restore failed.
    """
    store, keys = operate.bucket(settings), operate.ring(settings)
    manifests = stored.manifests(store, keys)
    if not manifests:
        raise Refused(
            "there is no full backup", untouched="Nothing was changed", next="fab backup.run"
        )
    with session(settings, fresh=True) as opened:
        host = operate.nearest(opened)
        confirmed(
            f"{settings.prefix}: restore the newest backup twice beside {host}'s own data, compare,"
            " and drop it again"
        )
        with recorded(settings, "fab backup.drill", said) as steps:
            with steps.step(f"read {host}"):
                holds = operate.on_host(opened, host, "contents")
            begun = time.monotonic()
            with steps.step("wait for the archive"):
                _archived(settings, GtidSet.parse(holds["gtids"]))
            gap = time.monotonic() - begun
            with steps.step("restore to what it held"):
                made = operate.on_host(opened, host, "rehearse", "--gtid", holds["gtids"])
            differ = sorted(
                name
                for name in {*holds["sums"], *made["sums"]}
                if holds["sums"].get(name) != made["sums"].get(name)
            )
            taken = datetime.fromisoformat(manifests[-1].taken).timestamp()
            # Until a second ago: later than that, the archive may not say yet.
            moment = int(draw(taken + 1.0, max(taken + 1.0, time.time() - 1.0)) * 1e6)
            with steps.step(f"restore to {rules.when(moment)}"):
                other = operate.on_host(opened, host, "rehearse", "--to", str(moment))
            steps.result = {
                "target": holds["gtids"],
                "exact": not differ,
                "differ": differ,
                "restore_seconds": made["seconds"],
                "gap_seconds": round(gap, 2),
                "moment": rules.when(moment),
                "moment_seconds": other["seconds"],
                "base": made["base"],
                "host": host,
            }
            at = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
            store.add(f"{FOLDER}{at}.json", json.dumps(steps.result).encode())
        return steps.result


def _archived(settings: Settings, gtids: GtidSet) -> None:
    table = dynamo.clusters(settings)

    def there() -> bool:
        progress = shared.read(table)[1]
        return progress is not None and gtids <= GtidSet.parse(progress.gtids)

    try:
        until(there, seconds=ARCHIVED_SECONDS, every=0.5)
    except DeadlineError:
        raise HostFailed(
            f"what a replica held is not in the archive after {ARCHIVED_SECONDS:.0f} s",
            "a restore would lack it",
            "Nothing was changed",
            "fab backup.list",
        ) from None
