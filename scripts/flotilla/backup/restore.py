"""Make a data directory of what the cluster had at one moment: a full backup, and what came after.

Everything happens beside the directory that is in use. The base is written, then a server of its
own, without network, applies the archived binary logs as if it had received them from a source: as
relay logs, by the parallel applier, which skips what it has already. The logs are cut down before
to exactly the transactions that are wanted, so nothing has to be stopped at the right moment; at
the end what the server has executed must be the target, no less and no more.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flotilla.backup import stored
from flotilla.backup.archiver import content, piece, streams
from flotilla.backup.bucket import Bucket
from flotilla.backup.sealed import Ring
from flotilla.errors import FlotillaError, HostFailed, Refused
from flotilla.hosts.mysql import Server, SqlError
from flotilla.rules import archive as rules
from flotilla.rules.archive import Known, Piece, Replay
from flotilla.rules.backup import Manifest
from flotilla.rules.binlog import Reader, Transaction
from flotilla.rules.gtid import GtidSet
from flotilla.wait import DeadlineError, until

START_SECONDS = 300.0
STOP_SECONDS = 300.0
APPLY_SECONDS = 24 * 3600.0
# Of two cores both are busy with 8; with 4 and the order of commits kept, 34,000 transactions took
# 1.5 times as long.
WORKERS = 8
# Of logs, on their way beside the base: a part takes 32 MiB of memory at most.
LOG_WORKERS = 2
_LOOK_SECONDS = 0.1
_RELAY = "replay"
_CHANNEL = "archive"
# The flag of a file in use, in the header of its first event: relay logs are not.
_FLAGS_AT = 4 + 17
_BLOCK = 1 << 20
_PROGRESS = """
SELECT @@GLOBAL.gtid_executed AS executed, CONCAT_WS('; ',
  (SELECT MAX(NULLIF(LAST_ERROR_MESSAGE, ''))
     FROM performance_schema.replication_applier_status_by_coordinator),
  (SELECT MAX(NULLIF(LAST_ERROR_MESSAGE, ''))
     FROM performance_schema.replication_applier_status_by_worker)) AS error
"""
# What a crash makes useless is made again: until all is there, it needs no redo log. 34,000
# transactions took a tenth less of the processors without.
_REDO_OFF = "ALTER INSTANCE DISABLE INNODB REDO_LOG"
_REDO_ON = "ALTER INSTANCE ENABLE INNODB REDO_LOG"
_REDO = "SHOW GLOBAL STATUS LIKE 'Innodb_redo_log_enabled'"
_FROM_FILES = """
CHANGE REPLICATION SOURCE TO SOURCE_HOST = 'archive', RELAY_LOG_FILE = %s, RELAY_LOG_POS = 4
FOR CHANNEL %s
"""
# Nobody connects to this server, and until it is done it can be made again.
OVERRIDES = {
    "skip-networking": "ON",
    "disable-log-bin": "ON",
    "log-replica-updates": "OFF",
    "skip-replica-start": "ON",
    "relay-log-recovery": "OFF",
    "relay-log-purge": "OFF",
    "replicate-same-server-id": "ON",
    "sync-relay-log": "0",
    "innodb-flush-log-at-trx-commit": "0",
    "innodb-doublewrite": "OFF",
    "event-scheduler": "OFF",
    "replica-parallel-workers": str(WORKERS),
    # Nobody reads meanwhile: only what is there in the end must be right.
    "replica-preserve-commit-order": "OFF",
    # What the server would know of itself costs a tenth of the time; errors of workers are told all
    # the same.
    "performance-schema-instrument": "%=OFF",
    # Keys for connections that it does not have: 0.4 s.
    "auto-generate-certs": "OFF",
    "loose-sha256-password-auto-generate-rsa-keys": "OFF",
    "loose-caching-sha2-password-auto-generate-rsa-keys": "OFF",
}

Launch = Callable[[Path, Sequence[str]], "subprocess.Popen[bytes]"]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Where to: until a moment (microseconds since the epoch), to exactly a set, or (neither) to
    the last transaction of the archive.
    """

    until: int | None = None
    gtids: GtidSet | None = None


@dataclass(frozen=True, slots=True)
class Way:
    """How to get there: the base, the files to apply, and what the server then has executed.

    ``pieces`` are what to read of each file of the replay, in order; ``term`` is the newest one
    that the archive knows of.
    """

    manifest: Manifest
    replay: Replay
    target: GtidSet
    pieces: Sequence[Sequence[Piece]]
    term: int = 0


def find(
    bucket: Bucket, ring: Ring, wanted: Wanted, *, now: int, promised: GtidSet | None = None
) -> Way:
    """Raises Refused when there is no way, naming what is missing; nothing was touched.

    ``promised`` is what the archiver said it had stored: a last object that somebody deleted leaves
    no other trace.
    """
    if wanted.until is not None and wanted.until > now:
        raise _refused(
            f"{rules.when(wanted.until)} is in the future; it is {rules.when(now)}",
            "fab backup.restore --to latest",
        )
    bases = {one.id: one for one in stored.manifests(bucket, ring)}
    whole = known = streams(bucket, ring)
    if wanted.until is not None:
        known = [_exact(bucket, ring, one, wanted.until) for one in whole]
    target = rules.history(known, wanted.until) if wanted.gtids is None else wanted.gtids
    if isinstance(target, str):
        raise _refused(target)
    gone = rules.gone(promised, known) if wanted == Wanted() and promised else GtidSet()
    if gone:
        raise _refused(f"it was archived and is not there any more: {gone}")
    held = {
        name: rules.Base(GtidSet.parse(one.gtids), GtidSet.parse(one.most_gtids))
        for name, one in bases.items()
    }
    replay = rules.plan(held, known, target)
    if isinstance(replay, str):
        raise _refused(replay)
    term = max((one.stream.term for one in known), default=0)
    by_stream = {one.stream: one for one in whole}
    pieces = [by_stream[stream].pieces(file, replay.gtids) for stream, file in replay.files]
    return Way(bases[replay.base], replay, target, pieces, term)


def restore(
    bucket: Bucket, ring: Ring, way: Way, folder: Path, launch: Launch, *, said: Say
) -> Path:
    """The data directory, complete and closed, in ``folder``, which must not exist.

    Raises DamagedError naming the object that is not what was stored, HostFailed when the server
    that applies the logs fails; the folder is then gone.
    """
    folder.mkdir(parents=True, mode=0o750)
    data, relay = folder / "data", folder / "relay"
    try:
        data.mkdir(mode=0o750)
        relay.mkdir(mode=0o750)
        said(f"base {way.manifest.id}: {way.manifest.raw_bytes >> 20} MiB")
        over = threading.Event()
        with ThreadPoolExecutor(1) as beside, ExitStack() as ending:
            ending.callback(over.set)  # who fails does not wait for the rest of the logs
            logs = beside.submit(_logs, bucket, ring, way, relay, over)
            paths = stored.fetch(bucket, ring, way.manifest, data)
            files = logs.result()
            # The server need not wait for the last of it to be on the disk.
            settled = beside.submit(stored.settle, data, paths)
            said(f"{len(way.replay.gtids)} transactions of {len(files)} binary logs to apply")
            _apply(folder, files, way, launch)
            settled.result()
        # Without a redo log the server need not have waited for the disk.
        stored.settle(data, list(data.rglob("*")))
        shutil.rmtree(relay)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return data


def _exact(bucket: Bucket, ring: Ring, known: Known, moment: int) -> Known:
    """The stream with the part that goes past the moment cut there."""
    part = rules.straddling(known, moment)
    if part is None:
        return known
    parts = [one for one in known.parts if one.place.file == part.place.file]
    reader = Reader()
    for one in parts:
        _, data = content(bucket, ring, one.place)
        found = reader.feed(data)
        if one == part:
            return rules.split(known, part, found, moment)
    raise AssertionError(f"{part} is none of {parts}")


def _logs(bucket: Bucket, ring: Ring, way: Way, relay: Path, over: threading.Event) -> list[Path]:
    """Download the logs, without what is not wanted; what there is of them once it is ``over``."""
    made: list[Path] = []
    for number, pieces in enumerate(way.pieces, 1):
        path = relay / f"{_RELAY}-{_CHANNEL}.{number:06d}"
        reader, found = Reader(), list[Transaction]()
        with path.open("xb") as target:
            for data in _read(bucket, ring, pieces):
                if over.is_set():
                    return made
                found += reader.feed(data)
                target.write(data)
        _cut(path, found, way.replay.gtids, reader.whole)
        made.append(path)
    return made


def _read(bucket: Bucket, ring: Ring, pieces: Sequence[Piece]) -> Iterator[bytes]:
    """The bytes of each, in order; several on their way at once, as each takes S3 some time."""
    with ThreadPoolExecutor(LOG_WORKERS) as pool:
        for at in range(0, len(pieces), LOG_WORKERS):
            yield from pool.map(partial(piece, bucket, ring), pieces[at : at + LOG_WORKERS])


def _cut(path: Path, found: Iterable[Transaction], wanted: GtidSet, end: int) -> None:
    """Leave only wanted transactions in a log."""
    dropped = [(one.start, one.end) for one in found if (one.source, one.number) not in wanted]
    with path.open("r+b") as file:
        file.seek(_FLAGS_AT)
        flags = file.read(1)[0]
        file.seek(_FLAGS_AT)
        file.write(bytes([flags & ~1]))
        to = 0
        at = 0
        for start, stop in [*dropped, (end, end)]:
            to = _moved(file, at, start, to)
            at = stop
        file.truncate(to)


def _moved(file: Any, start: int, end: int, to: int) -> int:
    """Move bytes towards the beginning; where the next ones go."""
    while start < end:
        size = min(_BLOCK, end - start)
        if start != to:
            file.seek(start)
            block = file.read(size)
            file.seek(to)
            file.write(block)
        start, to = start + size, to + size
    return to


def _apply(folder: Path, files: Sequence[Path], way: Way, launch: Launch) -> None:
    data, relay = folder / "data", folder / "relay"
    options = {
        **OVERRIDES,
        "datadir": str(data),
        "relay-log": str(relay / _RELAY),
        "relay-log-index": str(relay / f"{_RELAY}.index"),
    }
    argv = [f"--{name}={value}" for name, value in options.items()]
    # Of a new channel the server reads the list when it is made (that of the default one, when it
    # starts): the list has the channel's name in it, as the files have. It is written before: what
    # the launch finds is given to the server's user, what root writes later it may not read.
    listed = relay / f"{_RELAY}-{_CHANNEL}.index"
    listed.write_text("".join(f"{path}\n" for path in files))
    with running(folder, argv, launch) as server:
        # Where the copied server followed its source is in its tables.
        server.query("RESET REPLICA ALL", seconds=60)
        if files:
            server.query(_REDO_OFF, seconds=60)
            server.batch(
                [
                    (_FROM_FILES, (str(files[0]), _CHANNEL)),
                    ("START REPLICA SQL_THREAD FOR CHANNEL %s", (_CHANNEL,)),
                ],
                seconds=60,
            )
            _wait_for(server, way.target)
            server.batch(["STOP REPLICA", "RESET REPLICA ALL"], seconds=120)
            server.query(_REDO_ON, seconds=STOP_SECONDS)
        _demand(server, way.target)


def _wait_for(server: Server, target: GtidSet) -> None:
    why = ""

    def applied() -> bool:
        nonlocal why
        row = server.query(_PROGRESS, seconds=60)[0]
        why = row["error"] or ""
        if why:
            raise HostFailed(
                f"the archived transactions cannot be applied: {why}",
                untouched="The data directory in use is as it was",
                next="fab backup.verify",
            )
        return target <= GtidSet.parse(row["executed"])

    try:
        until(applied, seconds=APPLY_SECONDS, every=_LOOK_SECONDS)
    except DeadlineError:
        raise HostFailed("the archived transactions were not applied in a day") from None


def _demand(server: Server, target: GtidSet) -> None:
    if (logging := server.query(_REDO)[0]["Value"]) != "ON":
        raise HostFailed(
            f"the redo log of the restored server is {logging}, not ON",
            "a crash would make its data useless",
            "The data directory in use is as it was",
            "the same command again",
        )
    executed = GtidSet.parse(server.query(_PROGRESS)[0]["executed"])
    if executed != target:
        raise HostFailed(
            f"the restored server lacks {target - executed or 'nothing'} and has beyond its target "
            f"{executed - target or 'nothing'}",
            "it is not what the cluster was at that moment",
            "The data directory in use is as it was",
            "fab backup.verify",
        )


@contextmanager
def running(folder: Path, options: Sequence[str], launch: Launch) -> Iterator[Server]:
    """A server of its own on the directory, asked through its socket by root; it ends in order."""
    socket_ = folder / "mysqld.sock"
    log = folder / "error.log"
    argv = [
        *options,
        f"--socket={socket_}",
        f"--pid-file={folder / 'mysqld.pid'}",
        f"--log-error={log}",
    ]
    process = launch(folder, argv)
    try:
        server = Server("the restored server", lambda: _connected(socket_))
        _ready(server, process, log)
        yield server
        server.close()
        process.send_signal(signal.SIGTERM)
        if process.wait(STOP_SECONDS) != 0:
            raise HostFailed(f"the restored server ended badly: {_last(log)}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def serving(folder: Path, launch: Launch) -> AbstractContextManager[Server]:
    """A server on what ``restore`` made in the folder."""
    return running(folder, [f"--datadir={folder / 'data'}", "--skip-networking=ON"], launch)


def _ready(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    def answers() -> bool:
        if process.poll() is not None:
            raise HostFailed(
                f"the restored server does not start: {_last(log)}",
                untouched="The data directory in use is as it was",
            )
        try:
            return bool(server.query("SELECT 1 AS one", seconds=2.0))
        except SqlError:
            raise
        except FlotillaError:
            server.close()
            return False

    until(answers, seconds=START_SECONDS, every=_LOOK_SECONDS)


def _connected(path: Path) -> Any:
    import socket  # noqa: PLC0415  a name that this file needs for paths

    made = socket.socket(socket.AF_UNIX)
    made.connect(str(path))
    return made


def _last(log: Path) -> str:
    with suppress(OSError):
        lines = [line for line in log.read_text(errors="replace").splitlines() if "[ERROR]" in line]
        return " / ".join(lines[-3:]) or "its log names no error"
    return "it left no log"


def _refused(why: str, next_: str = "fab backup.list") -> Refused:
    return Refused(
        f"there is no way to that moment: {why}", untouched="Nothing was touched", next=next_
    )


def chowned(folder: Path, uid: int, gid: int) -> None:
    """Give all of a folder to a user: what root wrote, the server must own."""
    for root, folders, files in os.walk(folder):
        for name in (root, *(os.path.join(root, n) for n in (*folders, *files))):  # noqa: PTH118
            os.chown(name, uid, gid)
