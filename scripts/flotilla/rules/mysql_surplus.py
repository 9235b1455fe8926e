"""Read what ``mysqlbinlog -vv`` prints: which transactions are in it, and which rows they touch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# Decoded rows are comments, one block a row; a value cannot begin a line, so nothing in it is read.
_ROW = re.compile(r"^### (INSERT INTO|UPDATE|DELETE FROM) `(.+)`\.`(.+)`$")
_GTID = re.compile(r"^SET @@SESSION\.GTID_NEXT= '([^']+:\d+)'")
_KINDS = {"INSERT INTO": "insert", "UPDATE": "update", "DELETE FROM": "delete"}


@dataclass(frozen=True, slots=True)
class Contents:
    """``gtids`` in order; ``rows`` is {"schema.table": {"insert" | "update" | "delete": rows}}.

    A transaction without rows is a statement: a change of a table's definition, or of an account.
    """

    gtids: tuple[str, ...]
    rows: Mapping[str, Mapping[str, int]]


def contents(lines: Iterable[str]) -> Contents:
    """What is in the output of ``mysqlbinlog -vv``, read once from its beginning to its end."""
    gtids: list[str] = []
    rows: dict[str, Counter[str]] = {}
    for line in lines:
        if line.startswith("### "):
            if found := _ROW.match(line.rstrip("\n")):
                table = f"{found[2]}.{found[3]}"
                rows.setdefault(table, Counter())[_KINDS[found[1]]] += 1
        elif found := _GTID.match(line):
            gtids.append(found[1])
    return Contents(tuple(gtids), {table: dict(kinds) for table, kinds in rows.items()})
