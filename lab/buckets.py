"""What moto's S3 does otherwise than S3."""

from __future__ import annotations

from typing import Any

from werkzeug.datastructures import Headers


class Held:
    """What an object holds, in memory: stands where moto has a ``SpooledTemporaryFile``.

    Of S3's disks a host notices nothing; moto's file was on the disk that the lab's hosts share,
    and MySQL's commits waited for it (a backup was written three times: its parts, the object, the
    copy in the other region). It was read whole for each range, too: 0.7 s for 8 MiB of 600. Bytes
    are held by reference, so an object, its copies and what is cut of it are there once.
    """

    def __init__(self, max_size: int = 0) -> None:  # noqa: ARG002  as it is called
        self._data: bytes | None = b""
        self._at = 0

    def seek(self, at: int) -> int:
        """From the beginning, as moto always does."""
        self._at = at
        return at

    def truncate(self) -> int:
        """Drop what comes after."""
        self._data = self._open()[: self._at]
        return self._at

    def write(self, data: bytes) -> int:
        """Put bytes where we are."""
        held, written = self._open(), len(data)
        if not written:
            return 0
        end = self._at + written
        if self._at or end < len(held):
            data = held[: self._at].ljust(self._at, b"\0") + data + held[end:]
        self._data, self._at = bytes(data), end
        return written

    def read(self, size: int = -1) -> bytes:
        """The next bytes, or all that are left."""
        held = self._open()
        end = len(held) if size < 0 else min(len(held), self._at + size)
        begin, self._at = self._at, max(end, self._at)
        return held[begin:end]

    def close(self) -> None:
        """Let go of them."""
        self._data = None

    def _open(self) -> bytes:
        if self._data is None:
            raise ValueError("I/O operation on closed file")
        return self._data


def complete(original: Any, self: Any, *args: Any) -> Any:
    """The end of a multipart upload: moto keeps the parts beside what they became."""
    whole = original(self, *args)
    for part in self.parts.values():
        part.dispose()
    return whole


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
