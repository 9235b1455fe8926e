"""Tell apart, in a GTID set, what was written under which server's UUID.

Sets are compared by the servers' own functions only; this splits the text at its top level, which
no tag changes: "uuid:1-5:9:tag:1-3,uuid:...".
"""

from __future__ import annotations

from flotilla.rules.mysql_topology import Member


def foreign(gtids: str, uuid: str) -> str:
    """The part of a set that was not written under ``uuid``."""
    return ",".join(
        part
        for part in "".join(gtids.split()).split(",")
        if part and part.partition(":")[0].lower() != uuid.lower()
    )


def missing(gtids: str, source: Member) -> str:
    """What of the GTIDs that others hold, and ``source`` has not executed, is really lost to it.

    A source that has waited for acknowledgements since it started has transactions of its own in
    its log which others hold and it has not committed. After a restart they are committed.
    """
    return foreign(gtids, source.uuid) if source.semi_sync.source else gtids
