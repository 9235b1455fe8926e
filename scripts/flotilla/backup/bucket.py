"""The bucket of backups, as hosts and operators use it: objects are added, never written over.

boto3 does the talking (retries, checksums on the way, credentials of the instance's role); what it
raises becomes one sentence with the object's name in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from botocore import exceptions as boto

from flotilla.errors import FlotillaError, Unreachable

WHOLE_BYTES = 5 * 10**9
_ABSENT = {"404", "NoSuchKey", "NotFound", "NoSuchUpload", "InvalidRange"}
_TAKEN = {"PreconditionFailed", "ConditionalRequestConflict", "412"}
_BUSY = {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "ThrottlingException"}


class MissingError(FlotillaError):
    """There is no such object."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object. ``metadata`` is only there when the object itself was asked for."""

    key: str
    size: int
    at: datetime
    metadata: Mapping[str, str] = field(default_factory=dict)


class Bucket:
    """One bucket through one boto3 client. Safe to use from threads."""

    def __init__(self, s3: Any, name: str) -> None:
        self._s3 = s3
        self.name = name

    def add(self, key: str, body: bytes, metadata: Mapping[str, str] | None = None) -> bool:
        """Store an object; False when there is one of this name already, which stays as it is."""
        with self._described("store", key):
            try:
                self._s3.put_object(
                    Bucket=self.name,
                    Key=key,
                    Body=body,
                    Metadata=dict(metadata or {}),
                    IfNoneMatch="*",
                )
            except boto.ClientError as error:
                if _code(error) in _TAKEN:
                    return False
                raise
        return True

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """All of an object, or ``length`` bytes from ``offset``. Raises MissingError."""
        part = {} if length is None else {"Range": f"bytes={offset}-{offset + length - 1}"}
        with self._described("read", key):
            found: bytes = self._s3.get_object(Bucket=self.name, Key=key, **part)["Body"].read()
            return found

    def find(self, key: str) -> Entry | None:
        """An object by its name, with its metadata; None when there is none."""
        try:
            with self._described("look for", key):
                head = self._s3.head_object(Bucket=self.name, Key=key)
        except MissingError:
            return None
        return Entry(key, head["ContentLength"], head["LastModified"], head["Metadata"])

    def list(self, prefix: str, *, after: str = "") -> Iterator[Entry]:
        """Objects by name, those after ``after`` only."""
        pages = self._s3.get_paginator("list_objects_v2")
        start = {"StartAfter": after} if after else {}
        with self._described("list", f"{prefix}*"):
            for page in pages.paginate(Bucket=self.name, Prefix=prefix, **start):
                for one in page.get("Contents", ()):
                    yield Entry(one["Key"], one["Size"], one["LastModified"])

    def take(self, other: Bucket, key: str) -> None:
        """Copy an object of another bucket, wherever that is, with what it says of itself. The
        bytes go from S3 to S3.
        """
        from boto3.s3.transfer import TransferConfig  # noqa: PLC0415  hosts copy nothing

        with self._described("copy here", key):
            self._s3.copy(
                {"Bucket": other.name, "Key": key},
                self.name,
                key,
                # A locked bucket takes nothing without a checksum.
                ExtraArgs={"ChecksumAlgorithm": "SHA256"},
                SourceClient=other._s3,
                # Up to 5 GB in one request: an object that is copied in parts loses its metadata.
                Config=TransferConfig(multipart_threshold=WHOLE_BYTES),
            )

    def begin(self, key: str) -> str:
        """The id of a new multipart upload; nothing is visible until ``complete``."""
        with self._described("begin", key):
            upload: str = self._s3.create_multipart_upload(Bucket=self.name, Key=key)["UploadId"]
            return upload

    def part(self, key: str, upload: str, number: int, body: bytes) -> str:
        """Store one part and return its tag. Raises MissingError when the upload is gone."""
        with self._described(f"store part {number} of", key):
            answer = self._s3.upload_part(
                Bucket=self.name, Key=key, UploadId=upload, PartNumber=number, Body=body
            )
            return str(answer["ETag"])

    def complete(self, key: str, upload: str, tags: Mapping[int, str]) -> None:
        """Make the parts one object."""
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in sorted(tags.items())]
        with self._described("complete", key):
            self._s3.complete_multipart_upload(
                Bucket=self.name, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
            )

    def remove(self, keys: Sequence[str]) -> None:
        """Delete objects; for whoever may, which hosts may not."""
        for start in range(0, len(keys), 1000):
            some = [{"Key": key} for key in keys[start : start + 1000]]
            with self._described("delete", f"{len(some)} objects from {some[0]['Key']} on"):
                answer = self._s3.delete_objects(
                    Bucket=self.name, Delete={"Objects": some, "Quiet": True}
                )
            if answer.get("Errors"):
                first = answer["Errors"][0]
                raise FlotillaError(
                    f"could not delete s3://{self.name}/{first['Key']}: {first.get('Message')}"
                )

    @contextmanager
    def _described(self, doing: str, key: str) -> Iterator[None]:
        where = f"s3://{self.name}/{key}"
        try:
            yield
        except boto.ClientError as error:
            said = error.response.get("Error", {}).get("Message", "")
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            text = f"could not {doing} {where}: {_code(error)} {said}".rstrip()
            if _code(error) in _ABSENT:
                raise MissingError(f"there is no object {where}") from error
            if _code(error) in _BUSY or status >= 500:
                raise Unreachable(text, next="the same command again in a minute") from error
            raise FlotillaError(text) from error
        except (boto.BotoCoreError, OSError) as error:
            raise Unreachable(f"could not {doing} {where}: {error}") from error


def _code(error: boto.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
