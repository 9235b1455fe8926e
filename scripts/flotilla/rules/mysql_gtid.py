"""Tell apart, in a GTID set, what was written under which server's UUID.

Sets are compared by the servers' own functions only; this splits the text at its top level, which
no tag changes: "uuid:1-5:9:tag:1-3,uuid:...".
"""

from __future__ import annotations

from collections.abc import Mapping


def foreign(gtids: str, uuid: str) -> str:
    """The part of a set that was not written under ``uuid``."""
    return ",".join(
        part
        for part in "".join(gtids.split()).split(",")
        if part and part.partition(":")[0].lower() != uuid.lower()
    )


def suspects(surplus: Mapping[tuple[str, str], str], uuid: str) -> dict[str, str]:
    """What each member holds that another lacks, and that the primary ``uuid`` did not write.

    Whatever of it no former primary is known to have written either is errant; that subtraction is
    a server's job. What everybody holds sets nobody apart, whoever wrote it.
    """
    found: dict[str, list[str]] = {}
    for (name, _), gtids in surplus.items():
        if other := foreign(gtids, uuid):
            found.setdefault(name, []).append(other)
    return {name: ",".join(dict.fromkeys(sets)) for name, sets in found.items()}
