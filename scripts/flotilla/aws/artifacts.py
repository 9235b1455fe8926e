"""Releases in S3: one object a version, its SHA-256 in the metadata, never written twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from flotilla.aws.errors import code
from flotilla.aws.session import client, described
from flotilla.errors import FlotillaError, Refused
from flotilla.rules import release as rules
from flotilla.settings import Settings

_ABSENT = {"404", "NoSuchKey", "NotFound"}
_TAKEN = {"PreconditionFailed", "ConditionalRequestConflict", "412"}
_THREADS = 8


@dataclass(frozen=True, slots=True)
class Release:
    """One version as it is kept."""

    version: str
    sha256: str
    size_bytes: int
    released_at: datetime
    released_by: str
    etag: str = ""  # S3's own name for the content: another one, other bytes

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return values | {"released_at": self.released_at.isoformat()}


class Artifacts:
    """The fleet's bucket of releases, ``<fleet>-<env>-artifacts``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._s3 = client(settings, "s3")
        self.bucket = settings.name_of("artifacts")

    def find(self, version: str) -> Release | None:
        """A release by its version; None when there is none."""
        with described(self._settings, f"look for release {version}"):
            try:
                head = self._s3.head_object(Bucket=self.bucket, Key=rules.key(version))
            except ClientError as error:
                self._demand_bucket(error)
                if code(error) in _ABSENT:
                    return None
                raise
        return Release(
            version=version,
            sha256=head["Metadata"].get("sha256", ""),
            size_bytes=head["ContentLength"],
            released_at=head["LastModified"],
            released_by=head["Metadata"].get("released-by", ""),
            etag=head["ETag"].strip('"'),
        )

    def checksum(self, version: str) -> str:
        """The SHA-256 of what is kept, byte for byte: all of it is read."""
        digest = hashlib.sha256()
        with described(self._settings, f"read release {version}"):
            body = self._s3.get_object(Bucket=self.bucket, Key=rules.key(version))["Body"]
            for chunk in body.iter_chunks(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()

    def deleted_at(self, version: str) -> datetime | None:
        """When a release that is not there any more was deleted; None when it never was there."""
        key = rules.key(version)
        with described(self._settings, f"look for versions of release {version}"):
            found = self._s3.list_object_versions(Bucket=self.bucket, Prefix=key)
        marks = [one for one in found.get("DeleteMarkers", ()) if one["Key"] == key]
        return max((one["LastModified"] for one in marks), default=None)

    def list(self, *, newest: int = 50) -> list[Release]:
        """The newest releases, newest first."""
        with described(self._settings, "list the releases"):
            objects = sorted(self._objects(), key=lambda one: one["LastModified"], reverse=True)
        versions = [version for one in objects if (version := rules.version_of(one["Key"]))]
        with ThreadPoolExecutor(max_workers=_THREADS) as pool:
            found = pool.map(self.find, versions[:newest])
        return [release for release in found if release]

    def put(self, version: str, path: Path, *, sha256: str, released_by: str) -> bool:
        """Keep the file as ``version``; False when somebody else has just taken that version."""
        with described(self._settings, f"release {version}"), path.open("rb") as body:
            try:
                self._s3.put_object(
                    Bucket=self.bucket,
                    Key=rules.key(version),
                    Body=body,
                    ContentType="application/gzip",
                    Metadata={"sha256": sha256, "version": version, "released-by": released_by},
                    IfNoneMatch="*",
                )
            except ClientError as error:
                self._demand_bucket(error)
                if code(error) in _TAKEN:
                    return False
                raise
        return True

    def fetch(self, uri: str, target: Path) -> None:
        """Download ``s3://bucket/key`` to a file. Raises Refused when there is no such object."""
        bucket, _, object_key = uri.removeprefix("s3://").partition("/")
        with described(self._settings, f"download {uri}"):
            try:
                self._s3.download_file(bucket, object_key, str(target))
            except ClientError as error:
                if code(error) not in _ABSENT | {"NoSuchBucket"}:
                    raise
                raise Refused(
                    f"there is no object {uri}",
                    untouched="Nothing was released",
                    next="fab app.release --artifact PATH",
                ) from error

    def _objects(self) -> Iterator[dict[str, Any]]:
        pages = self._s3.get_paginator("list_objects_v2")
        try:
            for page in pages.paginate(Bucket=self.bucket, Prefix=rules.FOLDER):
                yield from page.get("Contents", ())
        except ClientError as error:
            self._demand_bucket(error)
            raise

    def _demand_bucket(self, error: ClientError) -> None:
        """HeadObject says 404 for a missing bucket as well: tell the two apart before going on."""
        if code(error) not in _ABSENT | {"NoSuchBucket"}:
            return
        try:
            self._s3.head_bucket(Bucket=self.bucket)
        except ClientError as absent:
            if code(absent) in _ABSENT | {"NoSuchBucket"}:
                raise FlotillaError(
                    f"the bucket {self.bucket} does not exist",
                    why="provisioning makes it",
                    untouched="Nothing was released",
                    next="fab fleet.provision",
                ) from error
            raise
