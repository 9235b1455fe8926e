"""Who changed what, and how it ended: a line in ``var/<env>/audit.jsonl`` and an object in S3.

Each line carries the hash of the one before it, so that the file cannot be changed unnoticed
(``faults``). The bucket is versioned and nothing of ours may delete from it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flotilla.aws.errors import code, described
from flotilla.aws.session import client
from flotilla.errors import FlotillaError
from flotilla.rules import audit as rules
from flotilla.settings import Settings
from flotilla.who import holder


def record(
    settings: Settings,
    command: str,
    result: str,
    *,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    **details: Any,
) -> Mapping[str, Any]:
    """Write one line: ``command`` as typed, ``result`` in a few words, details as JSON types.

    A fleet without its audit bucket (just destroyed, with its data) has the local line only. Raises
    FlotillaError when the line cannot be kept; what was done stands.
    """
    now = clock()
    line = {"at": now.isoformat(), "by": holder(), "command": command, "result": result, **details}
    path = _path(settings)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = _append(path, line)
    except OSError as error:
        raise FlotillaError(
            f"the audit line could not be written to {path}: {error.strerror}",
            untouched="What was done before it stands",
            next=f"df -h {path.parent}",
        ) from error
    _keep(settings, f"{now:%Y/%m/%d/%H%M%S.%f}-{line['by']}.json", text)
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


def _path(settings: Settings) -> Path:
    return settings.scratch / "audit.jsonl"


def _append(path: Path, entry: Mapping[str, Any]) -> str:
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
    return text


def _keep(settings: Settings, key: str, text: str) -> None:
    s3 = client(settings, "s3")
    with described(settings, "keep the audit line"):
        try:
            s3.put_object(Bucket=settings.name_of("audit"), Key=key, Body=text.encode())
        except s3.exceptions.ClientError as error:
            if code(error) != "NoSuchBucket":
                raise
