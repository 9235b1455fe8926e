"""A local copy of a server: stored with rests between, and dropped piece by piece."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import boto3
import pytest
from moto import mock_aws

from flotilla.backup import full, stored
from flotilla.backup.bucket import Bucket
from flotilla.backup.full import GONE, PIECE, REST_MOST, Copy, Upload
from flotilla.backup.sealed import Ring

RING = Ring.parse("a-key-of-backups-that-is-long-enough")
COPY = Copy("20261123T000000Z-00000000", "uuid", "8.4.0", "", "", "2026-11-23", "2026-11-23")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "copy"
    (made / "data").mkdir(parents=True)
    (made / "copy.json").write_text("{}")
    return made


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        s3 = boto3.client("s3", region_name="us-east-1")
        s3.create_bucket(Bucket="backups")
        yield Bucket(s3, "backups")


class Ended(BaseException):
    """The process was killed."""


def test_a_copy_whose_removal_was_cut_off_is_no_copy_and_goes_with_the_next(folder: Path) -> None:
    (folder / "data" / "ibdata1").write_bytes(b"")
    os.truncate(folder / "data" / "ibdata1", 3 * PIECE)

    def killed(_: float) -> None:
        raise Ended

    with pytest.raises(Ended):
        full.forget(folder, killed)
    assert not folder.exists()
    (left,) = folder.parent.glob(f"{GONE}*")
    assert (left / "data" / "ibdata1").stat().st_size == 2 * PIECE
    folder.mkdir()
    (folder / "new").write_text("begun meanwhile")
    slept: list[float] = []
    full.forget(folder, slept.append)
    assert len(slept) == 1
    assert list(folder.parent.iterdir()) == []


@pytest.mark.parametrize(("took", "rests"), [(0.25, 0.25), (90.0, REST_MOST)])
def test_a_worker_rests_as_long_as_it_works_but_never_long(
    folder: Path, bucket: Bucket, took: float, rests: float
) -> None:
    for number in range(5):
        (folder / "data" / f"t{number}.ibd").write_bytes(os.urandom(8 << 20))
    ticks, slept = count(0.0, took), list[float]()
    manifest = Upload(
        bucket,
        RING,
        folder,
        COPY,
        cluster="mysql",
        host="mysql-2",
        now=lambda: datetime.now(UTC),
        workers=1,
        clock=lambda: next(ticks),
        sleep=slept.append,
    ).run()
    assert slept == [rests] * 5
    assert stored.verify(bucket, RING, manifest) == []
