"""Says to HAProxy whether this server is the primary of its replication group.

The counterpart of our own health endpoint, for Group Replication, which brings none: the same port,
the same paths, an answer as fresh. 200 on /primary only while this member is ONLINE and PRIMARY,
takes writes, and sees a majority of its group; on /replica while it is ONLINE and SECONDARY. Runs
on a database host with nothing but Python and PyMySQL.

    python3 group_health.py PORT
"""

from __future__ import annotations

import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pymysql

SOCKET = "/run/mysqld/mysqld.sock"
PROBE_SECONDS = 0.4
CACHE_SECONDS = 0.05
LOOK = """
SELECT me.MEMBER_ROLE, me.MEMBER_STATE, @@GLOBAL.super_read_only,
  (SELECT COUNT(*) FROM performance_schema.replication_group_members),
  (SELECT COUNT(*) FROM performance_schema.replication_group_members
    WHERE MEMBER_STATE <> 'UNREACHABLE')
FROM performance_schema.replication_group_members me WHERE me.MEMBER_ID = @@GLOBAL.server_uuid
"""


def objection(path: str, row: tuple[Any, ...] | None) -> str:
    """Why this member is not what the path asks for; "" when it is."""
    if row is None:
        return "in no group"
    role, state, read_only, members, reached = row
    wanted = {"/primary": "PRIMARY", "/replica": "SECONDARY"}.get(path)
    if wanted is None:
        return "there are /primary and /replica"
    if (role, state) != (wanted, "ONLINE"):
        return f"{state} {role}"
    if wanted == "PRIMARY" and read_only:
        return "read-only"
    if 2 * reached <= members:
        return f"{reached} of {members} members reached"
    return ""


class Probe:
    """The newest look, shared by all who ask at the same moment."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: Any = None
        self._taken = 0.0
        self._row: tuple[Any, ...] | None = None

    def row(self) -> tuple[Any, ...] | None:
        """The member's own line. Raises what PyMySQL raises, OSError, TimeoutError."""
        if not self._lock.acquire(timeout=PROBE_SECONDS):
            raise TimeoutError("a look hangs")
        try:
            if time.monotonic() - self._taken > CACHE_SECONDS:
                self._row = self._look()
                self._taken = time.monotonic()
            return self._row
        finally:
            self._lock.release()

    def _look(self) -> tuple[Any, ...] | None:
        try:
            if self._connection is None:
                self._connection = pymysql.connect(
                    unix_socket=SOCKET,
                    user="root",
                    autocommit=True,
                    connect_timeout=1,
                    read_timeout=PROBE_SECONDS,
                )
            with self._connection.cursor() as cursor:
                cursor.execute(LOOK)
                return cursor.fetchone()
        except BaseException:
            if self._connection is not None:
                self._connection._force_close()  # noqa: SLF001  close() would ask a frozen server
            self._connection = None
            raise


def handler(probe: Probe) -> type[BaseHTTPRequestHandler]:
    """A handler class that asks this probe."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Answer one question."""
            try:
                why = objection(self.path, probe.row())
            except (pymysql.err.MySQLError, OSError, EOFError) as error:
                why = str(error)
            body = f"{why or 'yes'}\n".encode()
            self.send_response(503 if why else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Asked several times a second: not worth a line each."""

    return Handler


def main() -> None:
    """Serve for ever."""
    ThreadingHTTPServer(("", int(sys.argv[1])), handler(Probe())).serve_forever()


if __name__ == "__main__":
    main()
