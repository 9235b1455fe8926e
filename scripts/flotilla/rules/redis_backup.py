"""What a backup of Redis is made of, when one is due, and where one may be restored.

    redis/full/<id>/manifest.json    written last: without it there is no backup
    redis/full/<id>/chunk-<n>        CHUNK bytes of the snapshot (an RDB file), sealed

Invariant of a restore: it begins on the one host that a majority of the Sentinels names, so that
what is restored is what everybody copies.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flotilla.rules.backup import MANIFEST, Proven
from flotilla.rules.redis import Member

FULL = "redis/full/"
FORMAT = 1
CHUNK = 8 << 20
# A scheduled backup is due when the newest one is this old.
DUE_SECONDS = 20 * 3600.0
LATEST = "latest"
_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot that Redis saved: ``keys`` in it, those with a time to live included.

    ``taken`` is ISO 8601 in UTC: all that was written before is in it. ``replid`` and ``offset``
    are where in its history the replica was just before.
    """

    host: str
    version: str
    replid: str
    offset: int
    keys: int
    taken: str


@dataclass(frozen=True, slots=True)
class Manifest(Proven):
    """A whole backup. ``size`` and ``sha256`` are the snapshot's, ``chunks`` the SHA-256 of each
    stored object by its number. ``mac`` proves that whoever wrote this had the key.
    """

    id: str
    cluster: str
    host: str
    version: str
    replid: str
    offset: int
    keys: int
    taken: str
    ended: str
    tool: str
    key: str
    size: int
    stored_bytes: int
    sha256: str
    chunks: tuple[str, ...]
    format: int = FORMAT
    mac: str = ""

    @classmethod
    def parse(cls, text: bytes) -> Manifest:
        """Raises ValueError for what is none, or of a format that a newer release made."""
        found: Any = json.loads(text)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f"not of format {FORMAT}, which this release reads")
        try:
            made = cls(**{**found, "chunks": tuple(found["chunks"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"a field is missing or unknown ({error})") from error
        if len(made.chunks) != len(list(pieces(made.size))):
            raise ValueError(f"{len(made.chunks)} chunks do not make {made.size} bytes")
        return made

    @property
    def at(self) -> float:
        """``taken`` in seconds since the epoch."""
        return datetime.fromisoformat(self.taken).timestamp()


def id_of(key: str) -> str | None:
    """The backup whose manifest this object is; None for any other object."""
    name = key.removeprefix(FULL).removesuffix(MANIFEST)
    return name if key == manifest_key(name) and _ID.fullmatch(name) else None


def is_id(text: str) -> bool:
    """Whether a backup may be called so."""
    return _ID.fullmatch(text) is not None


def manifest_key(backup: str) -> str:
    """Where a backup's manifest is."""
    return f"{FULL}{backup}{MANIFEST}"


def chunk_key(backup: str, number: int) -> str:
    """Where a chunk is, and what it is sealed under: it fits nowhere else."""
    return f"{FULL}{backup}/chunk-{number}"


def pieces(size: int) -> Iterator[tuple[int, int]]:
    """Offset and length of each chunk of ``size`` bytes."""
    for offset in range(0, size, CHUNK):
        yield offset, min(CHUNK, size - offset)


def not_due(newest: str | None, now: float) -> str:
    """Why a scheduled run has nothing to do; "" when it has. ``newest`` is a backup's id, ``now``
    seconds since the epoch.
    """
    if newest and now - begun(newest) < DUE_SECONDS:
        return f"the newest backup is {newest}"
    return ""


def begun(backup: str) -> float:
    """When a backup was begun, by its id, in seconds since the epoch."""
    return datetime.strptime(f"{backup[:15]}+0000", "%Y%m%dT%H%M%S%z").timestamp()


def age(seconds: float) -> str:
    """For people: "40 min", "7 h", "3 days"."""
    if seconds < 2 * 3600:
        return f"{max(0.0, seconds) / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def summary(manifests: Iterable[Manifest], now: float) -> list[dict[str, Any]]:
    """For people and --json: newest first."""
    return [
        {
            "id": one.id,
            "host": one.host,
            "taken": one.taken,
            "age_seconds": round(max(0.0, now - one.at)),
            "keys": one.keys,
            "version": one.version,
            "bytes": one.size,
            "stored_bytes": one.stored_bytes,
        }
        for one in sorted(manifests, key=lambda one: one.id, reverse=True)
    ]


def saver(members: Sequence[Member], primary: Member | None) -> Member | str:
    """The replica that a backup is taken from, the one that lacks least; or why there is none."""
    if primary is None:
        return "no host is the primary, so nobody knows whose data is right"
    fit = [
        one
        for one in members
        if one.role == "replica"
        and one.primary_address == primary.address
        and one.is_linked
        and not one.is_syncing
    ]
    if not fit:
        return f"no replica follows {primary.name}; a backup is taken from one, for it costs memory"
    return max(fit, key=lambda one: (one.offset or 0, one.name))


@dataclass(frozen=True, slots=True)
class Restore:
    """A restore that may begin: on ``host``, whom the others copy. ``keys`` are what it has now,
    None where its Redis does not say; ``missing`` are hosts that cannot be asked.
    """

    host: str
    keys: int | None
    missing: tuple[str, ...]


def restore_on(members: Sequence[Member], silent: Mapping[str, str]) -> Restore | str:
    """Where to restore, or why nowhere now."""
    words = {name: said for member in members for name, said in member.names.items() if said}
    all_of_them = {name for member in members for name in member.names}
    counted = Counter(words.values())
    address, votes = counted.most_common(1)[0] if counted else ("", 0)
    if votes <= len(all_of_them) // 2:
        why = "; ".join(f"{name}: {why}" for name, why in sorted(silent.items()))
        return "no majority of the Sentinels names a primary" + (f" ({why})" if why else "")
    named = next((one for one in members if one.address == address), None)
    if named is None:
        return f"the Sentinels name {address}, and that host cannot be asked"
    if named.role == "replica":
        return f"the Sentinels name {named.name}, and it is a replica"
    return Restore(named.name, named.keys, tuple(sorted(silent)))
