"""Reports of changes of primary, kept in the cluster itself: ops.report, one row a term.

They are written on the new primary after it took its first write, so every member has them, and a
report is there exactly when the term that it tells of took effect.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from flotilla.hosts.mysql import MISSING, Server, SqlError
from flotilla.mysql.failover_parts import Done
from flotilla.rules.mysql_failover import Opening
from flotilla.rules.mysql_report import Loss, Report, loss
from flotilla.rules.mysql_verdict import Verdict

TABLE = (
    "CREATE TABLE IF NOT EXISTS ops.report (term BIGINT UNSIGNED PRIMARY KEY, body JSON NOT NULL)"
)
# The event under which a failover's journal has the report that the cluster could not take yet.
LINE = "report"
_KEEP = "REPLACE INTO ops.report (term, body) VALUES (%s, %s)"
# A write waits for an acknowledgement, which may need another moment after a failover.
KEEP_SECONDS = 10.0


def of(
    done: Done, opened: Opening, verdict: Verdict, *, by: str, at: float, wait_for: int = 1
) -> Report:
    """The report of a failover that took effect; ``at`` is when it was decided (epoch s)."""
    proofs = dict.fromkeys(part for part in (done.proof, done.fenced) if part)
    return Report(
        kind="failover",
        term=done.term,
        at=datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"),
        by=by,
        old=done.old,
        new=done.new,
        verdict=f"{done.old} was {verdict.kind}",
        evidence=opened.evidence,
        proofs=tuple(proofs),
        seconds=done.seconds,
        loss=loss(
            ackers=len(opened.ackers),
            wait_for=wait_for,
            revoked=[name for name in done.revoked if name in opened.ackers],
            missing=done.given_up,
        ),
        write_gap_seconds=done.gap_seconds,
        fate=done.left_out.get(done.old, "") or done.fenced or f"{done.old} is not closed yet",
    )


def resumed(done: Done, lines: Sequence[Mapping[str, Any]], *, by: str, at: float) -> Report | None:
    """The report of a failover that was cut off after the record was changed, from its journal.

    None where no failover of this term was begun with that journal. What was revoked is not known
    any more, so neither is whether anything was lost: the old primary tells when it is back.
    """
    written = [line["body"] for line in lines if line["event"] == LINE]
    if written:
        return Report.from_dict(written[-1])
    begun = next((line for line in lines if line["event"] == "begin"), None)
    if begun is None:
        return None
    return Report(
        kind="failover",
        term=done.term,
        at=datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"),
        by=by,
        old=begun["old"]["name"],
        new=done.new,
        verdict="completed after it was cut off",
        evidence=tuple(begun["evidence"]),
        proofs=(),
        seconds=done.seconds,
        loss=Loss(None, "whoever decided it was cut off before it could tell"),
    )


def keep(primary: Server, report: Report) -> None:
    """Write a report, or write it anew. Raises what ``Server.batch`` raises."""
    body = json.dumps(report.as_dict())
    primary.batch([TABLE, (_KEEP, (report.term, body))], seconds=KEEP_SECONDS)


def read(server: Server, *, newest: int = 20) -> list[Report]:
    """The newest reports that any member has, newest first; none where there never was one."""
    try:
        rows = server.query("SELECT body FROM ops.report ORDER BY term DESC LIMIT %s", (newest,))
    except SqlError as error:
        if error.code in MISSING:
            return []
        raise
    return [Report.from_dict(json.loads(row["body"])) for row in rows]


def complete(primary: Server, host: str, change: Callable[[Report], Report]) -> bool:
    """Change the newest report whose old primary is ``host``; whether there is one."""
    found = next((one for one in read(primary) if one.old == host), None)
    if found is None:
        return False
    keep(primary, change(found))
    return True
