"""Have this replica save a snapshot of its data (BGSAVE), and check that it is whole.

A replica does it, for the fork costs memory and time that the primary's clients would wait for. The
snapshot is moved out of the data directory as soon as it is there; nobody but its reader knows it.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis_rules as rules
from redis_move import CalledOffError, told

POLL_SECONDS = 0.1
# Redis begins at once, or when its append-only file is rewritten.
IDLE_SECONDS = 20.0
SAVE_SECONDS = 3600.0
CHECK_SECONDS = 3600.0
_KEYS = re.compile(r"^\[info\] (\d+) keys read$", re.MULTILINE)


@dataclass(frozen=True)
class Saved:
    """A snapshot in ``file``; ``why`` instead says why this host is not the one to save.

    ``taken`` is ISO 8601 in UTC: all that was written before is in it.
    """

    host: str
    file: str = ""
    why: str = ""
    version: str = ""
    replid: str = ""
    offset: int = 0
    keys: int = 0
    taken: str = ""


def keys_in(file: Path) -> int:
    """How many keys a snapshot has. Raises CalledOffError where any of it cannot be read."""
    done = subprocess.run(
        ["redis-check-rdb", str(file)],
        capture_output=True,
        text=True,
        timeout=CHECK_SECONDS,
        check=False,
    )
    found = _KEYS.search(done.stdout)
    if done.returncode or found is None:
        lines = [line for line in done.stdout.splitlines() if line.startswith("[offset")]
        why = lines[-1] if lines else done.stderr.strip() or f"exit {done.returncode}"
        raise CalledOffError(f"{file} is no whole snapshot: {why}")
    return int(found[1])


def save(
    client: Any,
    *,
    host: str,
    data: Path,
    file: Path,
    free: int,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Saved:
    """Save into ``file``, for which ``free`` bytes are there. Raises CalledOffError."""
    with told("Redis"):
        before = client.info("replication")
        why = rules.unsaved(before)
        if why:
            return Saved(host, why=why)
        wanted, version = client.info("memory")["used_memory"], client.info("server")
        if free < wanted:
            raise CalledOffError(f"{free} bytes are free and the snapshot may need {wanted}")
        taken = datetime.now(UTC).isoformat(timespec="seconds")
        # Of a copy from the primary, or of a backup that was cut off: not ours, and not to be sent.
        snapshot = data / "dump.rdb"
        snapshot.unlink(missing_ok=True)
        _saved(client, clock, sleep)
        after = client.info("replication")
    # A copy of everything that began meanwhile puts a file of the same name in the same place.
    if rules.unsaved(after) or after["master_replid"] != before["master_replid"]:
        raise CalledOffError("its primary changed while it saved")
    try:
        snapshot.replace(file)
    except OSError as error:
        raise CalledOffError(f"{snapshot} cannot be moved to {file}: {error.strerror}") from error
    return Saved(
        host=host,
        file=str(file),
        version=version["redis_version"],
        replid=before["master_replid"],
        offset=before["slave_repl_offset"],
        keys=keys_in(file),
        taken=taken,
    )


def _saved(client: Any, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
    known = client.info("persistence")["rdb_saves"]
    client.execute_command("BGSAVE", "SCHEDULE")
    began = busy = clock()
    while True:
        info = client.info("persistence")
        status = info["rdb_last_bgsave_status"]
        if info["rdb_saves"] > known and not info["rdb_bgsave_in_progress"]:
            # It counts those that began.
            if status != "ok":
                raise CalledOffError("Redis could not save; its log tells why")
            return
        now = clock()
        if info["rdb_bgsave_in_progress"] or info["aof_rewrite_in_progress"]:
            busy = now
        if now > busy + IDLE_SECONDS or now > began + SAVE_SECONDS:
            raise CalledOffError(f"Redis did not save (its last one: {status}); its log tells why")
        sleep(POLL_SECONDS)
