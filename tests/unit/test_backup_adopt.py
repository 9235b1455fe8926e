"""To go on from another fleet's backups: what is copied, and what is left alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fleets import maker
from moto import mock_aws

from flotilla.aws.session import client
from flotilla.backup import operate
from flotilla.backup.adopt import adopt
from flotilla.errors import FlotillaError, Refused
from flotilla.provision import copies, storage
from flotilla.provision.change import carry_out
from flotilla.settings import Settings

LOST, KEYS = "lost-lab-backups-copy", "/lost/lab/mysql/backup_keys"
OBJECTS = {
    "mysql/full/20261121T030000Z-76426ba5/volume-1": b"v" * 1000,
    "mysql/full/20261121T030000Z-76426ba5/manifest.json": b"{}",
    "mysql/binlog/000007/76426ba5-e614-11f1-8277-02fc0a4d8004/b.000001/000000000000-000000000010": (
        b"0123456789"
    ),
}


@pytest.fixture
def fleets(tmp_path) -> Iterator[tuple[Settings, Settings]]:
    """A fleet that is new, and one that was lost but for the copy of its backups."""
    make = maker(tmp_path)
    with mock_aws():
        for name in ("fresh", "lost"):
            world = make(name=name)
            # Without the lock: moto asks for a checksum of a copy, too, which S3 makes itself.
            carry_out(storage.stages(world)[:2])
            carry_out(copies.stages(world))
        yield make(name="fresh").settings, make(name="lost").settings.elsewhere("eu-west-1")


def fill(lost: Settings, objects: dict[str, bytes] = OBJECTS) -> None:
    for key, body in objects.items():
        client(lost, "s3").put_object(Bucket=LOST, Key=key, Body=body, Metadata={"part": key[-5:]})


def taken(fresh: Settings, **more: Any) -> dict[str, Any]:
    wanted = {"source": LOST, "region": "eu-west-1", "parameter": KEYS} | more
    return adopt(fresh, confirmed=lambda _: None, said=lambda _: None, **wanted)


def held(fresh: Settings) -> dict[str, tuple[bytes, dict[str, str]]]:
    bucket = operate.bucket(fresh)
    found = {}
    for key in OBJECTS:
        entry = bucket.find(key)
        if entry:
            found[key] = (bucket.read(key), dict(entry.metadata))
    return found


def test_everything_is_copied_with_the_keys_behind_our_own(fleets):
    fresh, lost = fleets
    fill(lost)
    own = operate.ring(fresh).keys
    told = taken(fresh)
    assert (told["objects"], told["backups"], told["keys"]) == (3, 1, 1)
    assert held(fresh) == {key: (body, {"part": key[-5:]}) for key, body in OBJECTS.items()}
    keys = operate.ring(fresh).keys
    assert keys[: len(own)] == own
    assert keys[len(own) :] == operate.ring(lost).keys
    assert operate.ring(fresh.elsewhere("eu-west-1")).keys == keys


def test_a_run_that_was_cut_off_goes_on_and_a_third_one_does_nothing(fleets, monkeypatch):
    fresh, lost = fleets
    fill(lost)
    real = operate.Bucket.take

    def breaks(self, other, key):
        if key.endswith("volume-1"):
            raise FlotillaError("the line was cut")
        real(self, other, key)

    monkeypatch.setattr(operate.Bucket, "take", breaks)
    with pytest.raises(FlotillaError, match="cut"):
        taken(fresh)
    assert not any(key.endswith("manifest.json") for key in held(fresh)), "no half backup"
    monkeypatch.setattr(operate.Bucket, "take", real)
    assert 0 < taken(fresh)["objects"] <= len(OBJECTS)
    assert set(held(fresh)) == set(OBJECTS)

    def asked(_: str) -> None:
        raise AssertionError("there is nothing to agree to")

    again = adopt(
        fresh, source=LOST, region="eu-west-1", parameter=KEYS, confirmed=asked, said=lambda _: None
    )
    assert (again["objects"], again["keys"]) == (0, 0)


def test_nothing_is_mixed_with_backups_of_our_own(fleets):
    fresh, lost = fleets
    fill(lost)
    operate.bucket(fresh).add("mysql/full/20261122T030000Z-00000000/manifest.json", b"ours")
    before = operate.ring(fresh).keys
    with pytest.raises(Refused, match="backups of its own"):
        taken(fresh)
    assert operate.ring(fresh).keys == before
    assert held(fresh) == {}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({}, "no full backup"),
        ({"parameter": "/lost/lab/mysql/nothing"}, "no parameter"),
    ],
)
def test_where_there_is_nothing_to_adopt_nothing_is_changed(fleets, more, says):
    fresh, _ = fleets
    before = operate.ring(fresh).keys
    with pytest.raises(Refused, match=says):
        taken(fresh, **more)
    assert operate.ring(fresh).keys == before


def test_a_bucket_that_does_not_exist_is_named(fleets):
    fresh, _ = fleets
    with pytest.raises(FlotillaError, match="s3://nobodys-bucket"):
        taken(fresh, source="nobodys-bucket")
