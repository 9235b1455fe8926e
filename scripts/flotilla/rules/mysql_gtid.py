"""Tell apart, in a GTID set, what was written under which server's UUID.

Sets are compared by the servers' own functions only; this splits the text at its top level, which
no tag changes: "uuid:1-5:9:tag:1-3,uuid:...".
"""

from __future__ import annotations


def foreign(gtids: str, uuid: str) -> str:
    """The part of a set that was not written under ``uuid``."""
    return ",".join(
        part
        for part in "".join(gtids.split()).split(",")
        if part and part.partition(":")[0].lower() != uuid.lower()
    )
