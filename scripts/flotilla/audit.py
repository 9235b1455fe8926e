"""Who changed what, and how it ended: a line in ``var/<env>/audit.jsonl`` and an object in S3.

Each line carries the hash of the one before it, so that the file cannot be changed unnoticed
(``faults``). A file is one chain: a lock on it keeps writers apart, and every machine has its own.
In the bucket line N of a chain is the object ``<chain>/<N>.json``, written on condition that it is
not there yet: two machines never meet, and nobody replaces a line. What S3 did not take is sent
with the next line. The bucket is versioned and nothing of ours may delete from it.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flotilla import files
from flotilla.aws.errors import code, described
from flotilla.aws.session import client
from flotilla.errors import FlotillaError, Refused, Unreachable
from flotilla.rules import audit as rules
from flotilla.settings import Settings
from flotilla.who import holder

_THREADS = 8


def record(
    settings: Settings,
    command: str,
    result: str,
    *,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    **details: Any,
) -> Mapping[str, Any]:
    """Write one line: ``command`` as typed, ``result`` in a few words, details as JSON types.

    A fleet without its audit bucket (just destroyed, with its data) has the local line only. When
    S3 is away or refuses it (credentials that ran out meanwhile), that is told on stderr: whoever
    has moved the primary must not be told that nothing was changed, or to do it again. Raises
    FlotillaError when the line cannot be kept; what was done stands.
    """
    now = clock()
    line = {"at": now.isoformat(), "by": holder(), "command": command, "result": result, **details}
    path = _path(settings)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _append(path, line)
    except OSError as error:
        raise FlotillaError(
            f"the audit line could not be written to {path}: {error.strerror}",
            untouched="What was done before it stands",
            next=f"df -h {path.parent}",
        ) from error
    try:
        _send(settings)
    except (Unreachable, Refused) as error:
        sys.stderr.write(
            f"The audit line is in {path}, and goes to S3 with the next one: {error.what}\n"
        )
    return line


def lines(settings: Settings) -> list[bytes]:
    """Every line kept on this machine, oldest first; empty when nothing was recorded yet."""
    try:
        return _path(settings).read_bytes().splitlines()
    except FileNotFoundError:
        return []


def faults(settings: Settings) -> list[str]:
    """Where the local file was changed or cut off, as sentences; empty when it is whole."""
    return rules.faults(lines(settings))


def differences(settings: Settings) -> list[str]:
    """Where the local file and its copy in the bucket differ, as sentences. Raises Unreachable.

    Lines at the beginning that the bucket does not have are older than the bucket.
    """
    mine = lines(settings)
    if not mine:
        return []
    chain, bucket = rules.name(mine), settings.name_of("audit")
    s3 = client(settings, "s3")
    kept: dict[int, bytes] = {}
    with described(settings, f"read the audit lines of s3://{bucket}/{chain}/"):
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{chain}/"):
            for one in page.get("Contents", ()):
                body = s3.get_object(Bucket=bucket, Key=one["Key"])["Body"].read()
                kept[int(Path(one["Key"]).stem)] = body
    return rules.differences(mine, kept)


def _path(settings: Settings) -> Path:
    return settings.scratch / "audit.jsonl"


def _sent(settings: Settings) -> Path:
    return settings.scratch / "audit.sent"


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    """Link ``entry`` to the last line and write it; one process at a time, on the disk at once."""
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        before = file.read()
        last = before.splitlines()[-1] if before else None
        text = rules.linked(last, entry) + "\n"
        # After a line that a crash cut off, a new one begins.
        gap = b"" if not before or before.endswith(b"\n") else b"\n"
        file.write(gap + text.encode())
        file.flush()
        os.fsync(file.fileno())


def _send(settings: Settings) -> None:
    """Send every line that S3 does not have yet. Several at once send the same lines once."""
    mine = lines(settings)
    chain = rules.name(mine)
    missing = range(_known(settings, chain) + 1, len(mine) + 1)

    def send(number: int) -> bool:
        return _kept(settings, f"{chain}/{number:08d}.json", mine[number - 1])

    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        if not all(pool.map(send, missing)):
            return
    files.replace(_sent(settings), f"{chain} {len(mine)}\n")


def _known(settings: Settings, chain: str) -> int:
    """How many lines of the chain are surely in the bucket."""
    try:
        name, _, count = _sent(settings).read_text().partition(" ")
        return int(count) if name == chain else 0
    except (OSError, ValueError):
        return 0


def _kept(settings: Settings, key: str, line: bytes) -> bool:
    """Whether the bucket has the line now; not when there is no bucket."""
    s3, bucket = client(settings, "s3"), settings.name_of("audit")
    with described(settings, "keep the audit line"):
        try:
            s3.put_object(Bucket=bucket, Key=key, Body=line, IfNoneMatch="*")
        except s3.exceptions.ClientError as error:
            if code(error) == "NoSuchBucket":
                return False
            if code(error) not in {"PreconditionFailed", "ConditionalRequestConflict"}:
                raise
            if s3.get_object(Bucket=bucket, Key=key)["Body"].read() != line:
                raise FlotillaError(
                    f"s3://{bucket}/{key} holds another audit line than this machine's file",
                    why="somebody changed the file, or put a line into the bucket",
                    next="fab audit.verify",
                ) from error
    return True
