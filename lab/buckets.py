"""What moto's S3 does otherwise than S3."""

from __future__ import annotations

from typing import Any


def lock(original: Any, self: Any, name: str, *args: Any) -> Any:
    """PutObjectLockConfiguration: S3 locks buckets that hold objects, since November 2023; moto
    refuses as S3 did before.
    """
    bucket = self.get_bucket(name)
    held, bucket.keys = bucket.keys, type(bucket.keys)()
    try:
        return original(self, name, *args)
    finally:
        bucket.keys = held
