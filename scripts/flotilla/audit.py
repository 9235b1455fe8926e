"""Who changed what, and how it ended: a line in ``var/<env>/audit.jsonl`` and an object in S3.

The bucket is versioned and nothing of ours may delete from it; the local file is for reading.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from flotilla.aws.errors import code, described
from flotilla.aws.session import client
from flotilla.errors import FlotillaError
from flotilla.lock import holder
from flotilla.settings import Settings


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
    text = json.dumps(line) + "\n"
    path = settings.scratch / "audit.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise FlotillaError(
            f"the audit line could not be written to {path}: {error.strerror}",
            untouched="What was done before it stands",
            next=f"df -h {path.parent}",
        ) from error
    _keep(settings, f"{now:%Y/%m/%d/%H%M%S.%f}-{line['by']}.json", text)
    return line


def _keep(settings: Settings, key: str, text: str) -> None:
    s3 = client(settings, "s3")
    with described(settings, "keep the audit line"):
        try:
            s3.put_object(Bucket=settings.name_of("audit"), Key=key, Body=text.encode())
        except s3.exceptions.ClientError as error:
            if code(error) != "NoSuchBucket":
                raise
