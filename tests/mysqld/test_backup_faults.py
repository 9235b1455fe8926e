"""Whatever fails while a backup is made or read: nothing is lost, written over, or half trusted."""

from __future__ import annotations

import gzip
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mysqld.backups import (
    RING,
    Archives,
    archived,
    backed_up,
    ids,
    insert,
    launcher,
    micro,
    progress,
    restored,
    utc,
)
from mysqld.trio import Trio

from flotilla.backup import archiver, full, logical, operate, restore, stored
from flotilla.backup.archiver import parts_of, piece, streams
from flotilla.backup.bucket import Bucket
from flotilla.backup.restore import Wanted
from flotilla.backup.sealed import DamagedError, Ring
from flotilla.errors import FlotillaError, HostFailed, Refused, Unreachable
from flotilla.hosts.mysql import Server
from flotilla.rules.gtid import GtidSet
from flotilla.wait import until

DAY = 86_400_000_000


class Failing:
    """A boto3 client that fails from its ``fails_at``-th write on; all else is the real one."""

    WRITES = ("put_object", "upload_part", "complete_multipart_upload", "create_multipart_upload")

    def __init__(self, s3: Any) -> None:
        self._s3 = s3
        self.fails_at: int | None = None
        self.loses_answer = False
        self.writes = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._s3, name)
        return self._counted(real) if name in self.WRITES else real

    def _counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            self.writes += 1
            down = self.fails_at is not None and self.writes >= self.fails_at
            if down and not self.loses_answer:
                raise OSError("connection reset")
            answer = real(**arguments)
            if down:
                raise OSError("the answer was lost")
            return answer

        return call


@pytest.mark.parametrize("loses_answer", [False, True])
def test_a_full_backup_cut_off_anywhere_goes_on_where_it_was(
    trio: Trio, table: str, bucket: Bucket, loses_answer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full, "PART", 5 << 20)  # S3's least: more parts of a small server
    replica = trio["mysql-2"].session()
    folder = trio.folder / "copy"
    copy = full.copy(replica, folder, utc)
    replica.close()
    flaky = Failing(bucket._s3)
    flaky.loses_answer = loses_answer
    store = Bucket(flaky, bucket.name)

    def upload() -> full.Upload:
        return full.Upload(
            store, RING, folder, copy, cluster="mysql", host="mysql-2", now=utc, workers=2
        )

    cuts = 0
    while True:
        flaky.fails_at = flaky.writes + 2 + cuts // 3
        try:
            manifest = upload().run()
        except Unreachable:
            cuts += 1
            assert stored.manifests(bucket, RING) == [] or loses_answer
            assert cuts < 60
            continue
        break
    assert cuts >= 4
    assert stored.verify(bucket, RING, manifest) == []
    assert stored.manifests(bucket, RING) == [manifest]


def test_s3_away_and_the_archiver_killed_lose_nothing(
    trio: Trio, table: str, bucket: Bucket
) -> None:
    backed_up(trio, bucket, "mysql-2")
    flaky = Failing(bucket._s3)
    store = Bucket(flaky, bucket.name)
    with Archives(trio, store):
        insert(trio, "mysql-1", table, 1)
        archived(trio, "mysql-1")
        for loses_answer in (False, True):
            flaky.loses_answer, flaky.fails_at = loses_answer, flaky.writes + 1
            number = 10 + loses_answer
            insert(trio, "mysql-1", table, number)
            trio.rows("mysql-1", "FLUSH BINARY LOGS")
            until(lambda: flaky.writes >= (flaky.fails_at or 0) + 2, seconds=20)
            behind = progress(trio).caught_up_at
            insert(trio, "mysql-1", table, number + 10)
            flaky.fails_at = None
            archived(trio, "mysql-1")
            assert progress(trio).caught_up_at > behind
    insert(trio, "mysql-1", table, 50)
    with Archives(trio, store):  # another process: it knows nothing of the one before
        insert(trio, "mysql-1", table, 51)
        archived(trio, "mysql-1")
    with restored(trio, bucket, Wanted()) as server:
        assert ids(server, table) == [0, 1, 10, 11, 20, 21, 50, 51]


class Counting:
    """A boto3 client that counts what objects are asked: what they say of themselves, and hold."""

    def __init__(self, s3: Any) -> None:
        self._s3 = s3
        self.heads = 0
        self.gets = 0

    def __getattr__(self, name: str) -> Any:
        self.heads += name == "head_object"
        self.gets += name == "get_object"
        return getattr(self._s3, name)


def test_a_restore_does_not_ask_each_part_of_an_open_log(
    trio: Trio, table: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20,000 of them took a restore in the lab 80 seconds, before it read a byte."""
    monkeypatch.setattr(archiver, "LISTED", 4)
    backed_up(trio, bucket, "mysql-2")
    kept = Kept(bucket)
    for first in (1, 11):  # the second one knows nothing of the one before
        with Archives(trio, bucket):
            for number in range(first, first + 7):
                insert(trio, "mysql-1", table, number)
                archived(trio, "mysql-1")
    counting = Counting(bucket._s3)
    parts = list(parts_of(Bucket(counting, bucket.name), RING))
    assert len(parts) > 10
    assert counting.heads < 4
    lists = kept.keys("/parts-")
    with kept.changed(lists[0], b"damaged"), kept.changed(lists[-1], None):
        assert {one.place: one for one in parts_of(bucket, RING)} == {
            one.place: one for one in parts
        }
    with restored(trio, bucket, Wanted()) as server:
        assert ids(server, table) == [0, *range(1, 8), *range(11, 18)]


def test_a_restore_reads_parts_by_the_dozen(
    trio: Trio, table: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,200 of them, one GET each, took two thirds of a restore's time."""
    monkeypatch.setattr(archiver, "LISTED", 4)
    backed_up(trio, bucket, "mysql-2")
    with Archives(trio, bucket):
        for number in range(1, 15):
            insert(trio, "mysql-1", table, number)
            archived(trio, "mysql-1")
    last = max(parts_of(bucket, RING), key=lambda part: (part.place.file, part.place.start)).place
    (stream,) = (one for one in streams(bucket, RING) if one.stream == last.stream)
    merged = [place.merged for place in stream.merged if place.file == last.file]
    kept, counting = Kept(bucket), Counting(bucket._s3)
    assert len(kept.keys(f"/{last.file}/0")) >= 14
    assert len(merged) >= 3

    def read() -> bytes:
        (known,) = (one for one in streams(bucket, RING) if one.stream == last.stream)
        wanted = known.pieces(last.file, known.gtids)
        counting.gets = 0
        store = Bucket(counting, bucket.name)
        return b"".join(piece(store, RING, one) for one in wanted)

    written = read()
    assert counting.gets <= len(merged) + 4
    # They are a quicker way, and nothing else: what is wrong with one is read from its parts.
    for wrong in (None, b"damaged", bucket.read(merged[1])):
        with kept.changed(merged[0], wrong):
            assert read() == written
    with restored(trio, bucket, Wanted()) as server:
        assert ids(server, table) == list(range(15))


@dataclass
class Kept:
    """A bucket with a backup and logs, and what may be done to its objects."""

    bucket: Bucket

    @property
    def s3(self) -> Any:
        return self.bucket._s3

    def keys(self, part: str) -> list[str]:
        return [one.key for one in self.bucket.list("mysql/") if part in one.key]

    @contextmanager
    def changed(self, key: str, content: bytes | None) -> Iterator[None]:
        """The object has other content, or is gone, for as long as the block lasts."""
        before = self.bucket.read(key)
        head = self.s3.head_object(Bucket=self.bucket.name, Key=key)["Metadata"]
        if content is None:
            self.s3.delete_object(Bucket=self.bucket.name, Key=key)
        else:
            self.s3.put_object(Bucket=self.bucket.name, Key=key, Body=content, Metadata=head)
        try:
            yield
        finally:
            self.s3.put_object(Bucket=self.bucket.name, Key=key, Body=before, Metadata=head)


def test_what_is_damaged_missing_or_swapped_is_refused_by_name(
    trio: Trio, table: str, bucket: Bucket
) -> None:
    kept = Kept(bucket)
    with Archives(trio, bucket, ["mysql-1"]):
        backed_up(trio, bucket, "mysql-2")
        for number in range(1, 6):
            insert(trio, "mysql-1", table, number)
            trio.rows("mysql-1", "FLUSH BINARY LOGS")
            archived(trio, "mysql-1")
    volumes = kept.keys("/volume-")
    # The same bytes once more: with them nothing of this is needed.
    bucket.remove(kept.keys("/merged-"))
    logs = [key for key in kept.keys("/binlog.") if "parts" not in key]
    (index,) = kept.keys("/index")
    (manifest,) = kept.keys("/manifest.json")

    def flipped(key: str) -> bytes:
        data = bytearray(bucket.read(key))
        data[len(data) // 2] ^= 1
        return bytes(data)

    cases = [(key, flipped(key)) for key in (volumes[0], logs[1], index, manifest)]
    cases += [(key, bucket.read(key)[:-20]) for key in (volumes[1], logs[2], index)]
    cases += [(key, None) for key in (volumes[0], index)]
    cases += [(volumes[0], bucket.read(volumes[1])), (logs[1], bucket.read(logs[2]))]
    for key, content in cases:
        with kept.changed(key, content):
            refuses(trio, bucket, RING, key)
    written = [part for part in parts_of(bucket, RING) if part.gtids]
    with kept.changed(written[-2].place.key, None):
        refuses(trio, bucket, RING, str(written[-2].gtids))
    with kept.changed(written[-1].place.key, None):
        promised = GtidSet.parse(progress(trio).gtids)
        with pytest.raises(Refused, match=str(written[-1].gtids)):
            restore.find(bucket, RING, Wanted(), now=micro(), promised=promised)
    refuses(trio, bucket, Ring.parse("another-key-that-is-long-enough"), "mysql/full/")
    with restored(trio, bucket, Wanted()) as server:
        assert ids(server, table) == [0, 1, 2, 3, 4, 5]


def refuses(trio: Trio, bucket: Bucket, ring: Ring, named: str) -> None:
    """A restore to the end says what is wrong, and leaves nothing behind."""
    folder = trio.folder / "refused"
    launch = launcher(trio["mysql-1"])

    def attempt() -> None:
        way = restore.find(bucket, ring, Wanted(), now=micro())
        restore.restore(bucket, ring, way, folder, launch, said=lambda _: None)

    with pytest.raises(FlotillaError) as caught:
        attempt()
    assert isinstance(caught.value, DamagedError | Refused), caught.value
    assert named in caught.value.what
    assert caught.value.next
    assert not folder.exists()


def test_a_transaction_that_does_not_fit_the_base_is_told_of(
    trio: Trio, table: str, bucket: Bucket
) -> None:
    session = trio["mysql-2"].session()
    session.batch(
        [
            "SET GLOBAL super_read_only = OFF",
            "SET SESSION sql_log_bin = OFF",
            f"INSERT INTO {table} VALUES (7)",
        ]
    )
    session.close()
    backed_up(trio, bucket, "mysql-2")
    with Archives(trio, bucket, ["mysql-1"]):
        insert(trio, "mysql-1", table, 7)
        archived(trio, "mysql-1")
    way = restore.find(bucket, RING, Wanted(), now=micro())
    folder = trio.folder / "unfit"
    with pytest.raises(HostFailed, match=r"cannot be applied: .*Duplicate entry '7'"):
        restore.restore(bucket, RING, way, folder, launcher(trio["mysql-1"]), said=lambda _: None)
    assert not folder.exists()


def test_a_server_killed_while_it_applies_leaves_nothing_behind(
    trio: Trio, table: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no redo log meanwhile; what it makes of it in the end has one, and stands a crash."""
    backed_up(trio, bucket, "mysql-2")
    with Archives(trio, bucket, ["mysql-1"]):
        for number in range(1, 9):
            insert(trio, "mysql-1", table, number)
        archived(trio, "mysql-1")
    way = restore.find(bucket, RING, Wanted(), now=micro())
    folder, started = trio.folder / "killed", list[subprocess.Popen[bytes]]()

    def launch(where: Path, options: Sequence[str]) -> subprocess.Popen[bytes]:
        started.append(launcher(trio["mysql-1"])(where, options))
        return started[-1]

    def attempt() -> None:
        restore.restore(bucket, RING, way, folder, launch, said=lambda _: None)

    with monkeypatch.context() as patch:
        apply = restore._wait_for

        def killed(server: Server, target: GtidSet) -> None:
            assert redo_log(server) == "OFF"
            started[-1].kill()
            apply(server, target)

        patch.setattr(restore, "_wait_for", killed)
        with pytest.raises(Unreachable):
            attempt()
    assert not folder.exists()
    with monkeypatch.context() as patch:
        patch.setattr(restore, "_REDO_ON", "DO 0")
        with pytest.raises(HostFailed, match="is OFF, not ON"):
            attempt()
    assert not folder.exists()
    attempt()

    def crash() -> None:
        with restore.serving(folder, launch) as server:
            assert redo_log(server) == "ON"
            server.batch(["SET GLOBAL super_read_only = OFF", f"INSERT INTO {table} VALUES (9)"])
            started[-1].kill()

    with pytest.raises(HostFailed, match="ended badly"):
        crash()
    with restore.serving(folder, launch) as server:
        assert ids(server, table) == list(range(10))


def redo_log(server: Server) -> str:
    return str(server.query("SHOW GLOBAL STATUS LIKE 'Innodb_redo_log_enabled'")[0]["Value"])


def test_moments_that_there_is_no_way_to(trio: Trio, table: str, bucket: Bucket) -> None:
    with pytest.raises(Refused, match="there is no archive"):
        restore.find(bucket, RING, Wanted(), now=micro())
    with Archives(trio, bucket):
        early = insert(trio, "mysql-1", table, 1)
        insert(trio, "mysql-1", table, 2)
        archived(trio, "mysql-1")
        with pytest.raises(Refused, match="there is no full backup"):
            restore.find(bucket, RING, Wanted(), now=micro())
        backed_up(trio, bucket, "mysql-2")
    with pytest.raises(Refused, match="in the future"):
        restore.find(bucket, RING, Wanted(until=micro() + DAY), now=micro())
    with pytest.raises(Refused, match="already holds transactions"):
        restore.find(bucket, RING, Wanted(until=early), now=micro())
    with pytest.raises(Refused, match="before"):
        restore.find(bucket, RING, Wanted(until=micro() - 3650 * DAY), now=micro())
    nobody = GtidSet.parse("00000000-0000-0000-0000-000000000009:1-5")
    have = GtidSet.parse(stored.manifests(bucket, RING)[0].gtids)
    with pytest.raises(Refused, match="00000000-0000-0000-0000-000000000009:1-5"):
        restore.find(bucket, RING, Wanted(gtids=have | nobody), now=micro())


def test_another_host_archives_when_the_first_stops(trio: Trio, table: str, bucket: Bucket) -> None:
    backed_up(trio, bucket, "mysql-2")
    with Archives(trio, bucket, ["mysql-1"]):
        insert(trio, "mysql-1", table, 1)
        archived(trio, "mysql-1")
    with Archives(trio, bucket, ["mysql-3"]):
        insert(trio, "mysql-1", table, 2)
        archived(trio, "mysql-1", seconds=60)
        assert progress(trio).host == "mysql-3"
        with Archives(trio, bucket, ["mysql-1"]):
            insert(trio, "mysql-1", table, 3)
            until(lambda: progress(trio).host == "mysql-1", seconds=30, every=0.2)
            archived(trio, "mysql-1")
    with restored(trio, bucket, Wanted()) as server:
        assert ids(server, table) == [0, 1, 2, 3]


def test_a_rotated_key_opens_what_it_sealed_and_seals_no_more(
    trio: Trio, table: str, bucket: Bucket
) -> None:
    old = operate.ring(trio.settings)
    before = backed_up(trio, bucket, "mysql-2", old)
    told = operate.rotate(trio.settings, confirmed=lambda _: None, said=lambda _: None)
    both = operate.ring(trio.settings)
    assert (told["key"], told["keys"]) == (both.newest, 2)
    after = backed_up(trio, bucket, "mysql-3", both)
    assert (before.key, after.key) == (old.newest, both.newest)
    assert stored.verify(bucket, both, before) == stored.verify(bucket, both, after) == []
    with pytest.raises(DamagedError, match=both.newest):
        stored.read_manifest(bucket, old, after.id)


def test_a_dump_is_whole_or_there_is_none(tmp_path: Path) -> None:
    for content in (b"", b"no gzip", gzip.compress(b"CREATE TABLE t;"), gzip.compress(b"x")[:-4]):
        path = tmp_path / "dump.sql.gz"
        path.write_bytes(content)
        with pytest.raises(Refused) as caught:
            logical._demand_whole(path)
        assert "Nothing was changed" in str(caught.value)
