"""Tell the journal whom this host's MySQL server refused.

The server itself writes no line, at any verbosity, of a connection that it refuses because it is
without TLS (MySQL 9.7), and counts it by account and address.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterable

from flotilla.errors import FlotillaError
from flotilla.hosts.mysql import Row, Server
from flotilla.rules.refusals import Known, Refused, looked

LOOK_SECONDS = 10.0
QUERY_SECONDS = 2.0
# By an index; the other one is read through, so only when there is something to find.
_ALL = """
SELECT ERROR_NUMBER AS number, SUM_ERROR_RAISED AS times
FROM performance_schema.events_errors_summary_global_by_error WHERE ERROR_NUMBER IN (1045, 3159)
"""
_BY_ACCOUNT = """
SELECT ERROR_NUMBER AS number, SUM_ERROR_RAISED AS times, USER AS account, HOST AS address
FROM performance_schema.events_errors_summary_by_account_by_error
WHERE ERROR_NUMBER IN (1045, 3159) AND SUM_ERROR_RAISED > 0
"""

log = logging.getLogger("flotilla.refusals")


class Refusals:
    """Looks at one server now and then; ``server`` gives a session on it, None for not yet."""

    def __init__(self, server: Callable[[], Server | None]) -> None:
        self._server = server
        self._known: Known | None = None

    def run(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Look for ever. A server that does not answer is other people's news."""
        while True:
            with contextlib.suppress(FlotillaError):
                self.look()
            sleep(LOOK_SECONDS)

    def look(self) -> None:
        """Tell what was refused since the last look; what was before the first one is not told.

        Raises FlotillaError.
        """
        session = self._server()
        if session is None:
            return
        try:
            now = _counts(session.query(_ALL, seconds=QUERY_SECONDS))
            lines, self._known = looked(
                self._known, now, lambda: _counts(session.query(_BY_ACCOUNT, seconds=QUERY_SECONDS))
            )
        finally:
            session.close()
        for line in lines:
            log.warning("%s", json.dumps(line))


def _counts(rows: Iterable[Row]) -> dict[Refused, int]:
    return {
        Refused(row["number"], row.get("account") or "", row.get("address") or ""): row["times"]
        for row in rows
    }
