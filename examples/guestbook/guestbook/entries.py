"""The rows: what visitors wrote.

Every entry has an id chosen by its client, so a retry writes it once.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Mapping

from guestbook.database import Database, Row, Stamp

ID = re.compile(r"^[A-Za-z0-9._:-]{8,64}$")
TEXT_LIMIT = 1000
AUTHOR_LIMIT = 64
PAGE = 20
IDS_LIMIT = 500
COLUMNS = "client_id AS id, author, body AS text, server_uuid AS server, created_at AS created"


class InvalidError(Exception):
    """What is wrong with an entry, for the person who sent it."""


def new_id() -> str:
    """An id for an entry that a form is about to send."""
    return str(uuid.uuid4())


def clean(fields: Mapping[str, object]) -> tuple[str, str, str]:
    """The id, author and text of an entry as sent. Raises InvalidError."""
    entry_id, author, text = (
        str(fields.get(key) or "").strip() for key in ("id", "author", "text")
    )
    if not ID.match(entry_id):
        raise InvalidError("id must be 8 to 64 letters, digits or any of . _ : -")
    if not text:
        raise InvalidError("text is empty")
    if len(text) > TEXT_LIMIT:
        raise InvalidError(f"text has {len(text)} characters; {TEXT_LIMIT} is the most")
    return entry_id, (author or "anonymous")[:AUTHOR_LIMIT], text


def add(database: Database, entry_id: str, author: str, text: str) -> Stamp:
    """Write an entry to the primary.

    The stamp is the acknowledgement. Raises database.UnavailableError.
    """
    return database.insert(
        "INSERT INTO entries (client_id, author, body, server_uuid) "
        "VALUES (%s, %s, %s, @@server_uuid)",
        (entry_id, author, text),
    )


def latest(database: Database, *, must_include: str | None = None) -> list[Row]:
    """The newest entries first, from a replica that has `must_include`, else from the primary."""
    sql = f"SELECT {COLUMNS} FROM entries ORDER BY entry_no DESC LIMIT {PAGE}"  # noqa: S608  constants only
    rows = database.read(sql)
    if must_include and all(row["id"] != must_include for row in rows):
        return database.read_primary(sql)
    return rows


def by_ids(database: Database, ids: Collection[str]) -> list[Row]:
    """The entries among `ids` that exist; the primary is asked for what a replica lacks."""
    found = _select(database, ids, primary=False)
    missing = set(ids) - {row["id"] for row in found}
    return found + (_select(database, sorted(missing), primary=True) if missing else [])


def _select(database: Database, ids: Collection[str], *, primary: bool) -> list[Row]:
    if not ids:
        return []
    marks = ", ".join(["%s"] * len(ids))
    sql = f"SELECT {COLUMNS} FROM entries WHERE client_id IN ({marks})"  # noqa: S608  only placeholders
    return database.read_primary(sql, ids) if primary else database.read(sql, ids)
