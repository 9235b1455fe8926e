"""Records of who was let in, and what hosts are told to trust, in S3.

Records are in the audit bucket below ``access/``, each written on condition that it is not there:
nobody is given a serial twice, and nothing of ours may delete one. What hosts read is one object in
the bucket of releases.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from flotilla.aws.errors import code
from flotilla.aws.session import client, described
from flotilla.rules.access import Grant
from flotilla.settings import Settings

TRUST = "access/trust.json"
_GRANTS, _REVOKED = "access/grants/", "access/revoked/"
_TAKEN = {"PreconditionFailed", "ConditionalRequestConflict"}
_ABSENT = {"404", "NoSuchKey", "NotFound"}
_THREADS = 16


def granted(settings: Settings) -> list[Grant]:
    """Every grant ever, by serial. Raises Unreachable."""
    bucket = settings.name_of("audit")
    with described(settings, "read who was let in"):
        names = list(_names(settings, _GRANTS))

        def read(name: str) -> Grant:
            body = client(settings, "s3").get_object(Bucket=bucket, Key=name)["Body"].read()
            return Grant.from_dict(json.loads(body))

        with ThreadPoolExecutor(max_workers=_THREADS) as pool:
            return sorted(pool.map(read, names), key=lambda one: one.serial)


def revoked(settings: Settings) -> set[int]:
    """Every serial that was ever revoked. Raises Unreachable."""
    with described(settings, "read what was revoked"):
        return {int(Path(name).stem) for name in _names(settings, _REVOKED)}


def grant(settings: Settings, made: Callable[[int], Grant]) -> Grant:
    """Record ``made(serial)`` under the first serial that nobody has."""
    with described(settings, "read who was let in"):
        last = max((int(Path(name).stem) for name in _names(settings, _GRANTS)), default=0)
    while True:
        last += 1
        one = made(last)
        if _put(settings, f"{_GRANTS}{last:012d}.json", one.as_dict()):
            return one


def revoke(settings: Settings, serial: int, by: str) -> None:
    """Record that a serial is no longer good. No effect where it is recorded already."""
    _put(settings, f"{_REVOKED}{serial:012d}.json", {"serial": serial, "by": by})


def publish(settings: Settings, body: bytes, *, over: str) -> bool:
    """Tell hosts what to trust, in place of the document with the ETag ``over`` ("" for none).

    Whether that was done: not when they were told something else meanwhile.
    """
    only: dict[str, Any] = {"IfMatch": over} if over else {"IfNoneMatch": "*"}
    with described(settings, f"publish {TRUST}"):
        return _accepted(settings, "artifacts", TRUST, body, ContentType="application/json", **only)


def published(settings: Settings) -> tuple[bytes, str]:
    """What hosts are told now, and its ETag; both empty when they were never told anything."""
    with described(settings, f"read {TRUST}"):
        try:
            answer = client(settings, "s3").get_object(
                Bucket=settings.name_of("artifacts"), Key=TRUST
            )
        except ClientError as error:
            if code(error) in _ABSENT:
                return b"", ""
            raise
        return answer["Body"].read(), str(answer["ETag"])


def _names(settings: Settings, prefix: str) -> Iterator[str]:
    pages = client(settings, "s3").get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=settings.name_of("audit"), Prefix=prefix):
        yield from (one["Key"] for one in page.get("Contents", ()))


def _put(settings: Settings, key: str, values: Mapping[str, Any]) -> bool:
    """Whether it is there now by our hand."""
    body = json.dumps(values, sort_keys=True).encode()
    with described(settings, f"record {key}"):
        return _accepted(settings, "audit", key, body, IfNoneMatch="*")


def _accepted(settings: Settings, bucket: str, key: str, body: bytes, **only: Any) -> bool:
    """Write an object on a condition; whether that held."""
    try:
        client(settings, "s3").put_object(
            Bucket=settings.name_of(bucket), Key=key, Body=body, **only
        )
    except ClientError as error:
        if code(error) in _TAKEN:
            return False
        raise
    return True
