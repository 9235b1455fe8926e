"""What moto's S3 does otherwise than S3."""

from __future__ import annotations

from typing import Any

from werkzeug.datastructures import Headers


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


def put(original: Any, self: Any, *args: Any) -> Any:
    """A PUT. moto asks for a client's checksum also where a locked bucket gets a copy, which S3
    makes the checksum of by itself.
    """
    if "x-amz-copy-source" in self.headers:
        self.headers = Headers(self.headers.items())
        self.headers.setdefault("x-amz-sdk-checksum-algorithm", "SHA256")
    return replicate(original, self, *args)


def replicate(original: Any, self: Any, *args: Any) -> Any:
    """Whatever adds an object (a PUT, or the end of a multipart upload): what S3 then does with
    it, by the bucket's replication rules. moto keeps the rules and copies nothing.
    """
    held = self.backend.get_bucket(self.bucket_name).keys
    name = args[-1]
    before = held.get(name)
    answer = original(self, *args)
    added = held.get(name)
    if added is not None and added is not before:
        for rule in (self.backend.get_bucket_replication(self.bucket_name) or {}).get("Rule", ()):
            if rule["Status"] == "Enabled":
                bucket = rule["Destination"]["Bucket"].rpartition(":")[2]
                self.backend.copy_object(added, bucket, name)
    return answer
