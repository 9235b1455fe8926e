"""Bring the schema up to date: `python -m guestbook.migrate`.

Safe to run again, and by two hosts at once.

Only steps that the previous release can live with: a rolling deploy runs both releases side by
side.
"""

from __future__ import annotations

import os
import sys

import pymysql

from guestbook.database import encryption
from guestbook.settings import Settings, SettingsError, read

LOCK_SECONDS = 30
STEPS: tuple[tuple[int, str], ...] = (
    (
        1,
        """
        CREATE TABLE IF NOT EXISTS entries (
            entry_no BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
            client_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL UNIQUE,
            author VARCHAR(64) NOT NULL,
            body VARCHAR(1000) NOT NULL,
            server_uuid CHAR(36) CHARACTER SET ascii NOT NULL,
            created_at DATETIME(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6)
        ) CHARACTER SET utf8mb4
        """,
    ),
)
BOOKKEEPING = """
    CREATE TABLE IF NOT EXISTS schema_steps (
        step INT NOT NULL PRIMARY KEY,
        applied_at DATETIME(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6)
    )
"""


def migrate(settings: Settings) -> list[int]:
    """Apply the steps that are missing and return their numbers. Raises pymysql.err.MySQLError."""
    applied: list[int] = []
    connection = pymysql.connect(
        host=settings.writer.host,
        port=settings.writer.port,
        user=settings.database_user,
        password=settings.database_password,
        database=settings.database,
        charset="utf8mb4",
        autocommit=True,
        connect_timeout=5,
        ssl=encryption(settings.database_ca),
    )
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT GET_LOCK('guestbook.migrate', %s)", (LOCK_SECONDS,))
        if cursor.fetchone() != (1,):
            raise pymysql.err.OperationalError(
                0, f"another migration has held the lock for {LOCK_SECONDS} s; nothing was changed"
            )
        cursor.execute(BOOKKEEPING)
        cursor.execute("SELECT step FROM schema_steps")
        done = {row[0] for row in cursor.fetchall()}
        for number, sql in STEPS:
            if number not in done:
                cursor.execute(sql)
                cursor.execute("INSERT INTO schema_steps (step) VALUES (%s)", (number,))
                applied.append(number)
    return applied


def main() -> int:
    """Exit 0 when the schema is up to date, 1 with one line on stderr when it is not."""
    try:
        applied = migrate(read(os.environ))
    except (SettingsError, pymysql.err.MySQLError) as error:
        sys.stderr.write(f"migrate: {error}\n")
        return 1
    sys.stdout.write(f"schema up to date; applied {applied or 'nothing'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
