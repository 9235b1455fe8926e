"""An operator's commands on backups, each plan, confirm, act, verify, record.

The work is done on database hosts, by the same tool that their timers run: data does not travel
through the operator's machine, and keys of the bucket's objects do not either.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flotilla.aws import dynamo
from flotilla.aws.secrets import sealed_by
from flotilla.aws.session import client, described
from flotilla.backup import shared, stored
from flotilla.backup.archiver import streams
from flotilla.backup.bucket import Bucket
from flotilla.backup.sealed import Ring, no_keys
from flotilla.errors import BadOption, FlotillaError, HostFailed, Refused
from flotilla.hosts.mysql import Server
from flotilla.hosts.mysql_glimpse import glimpse
from flotilla.mysql.operate import demand_member
from flotilla.mysql.recorded import Confirmed, Said, recorded
from flotilla.mysql.session import Session, session
from flotilla.rules import archive as rules
from flotilla.rules import backup as names
from flotilla.rules import retention as keeping
from flotilla.rules.archive_duty import Progress, objection
from flotilla.rules.backup import Manifest
from flotilla.rules.gtid import GtidSet
from flotilla.settings import Settings

TOOL = "/usr/local/sbin/flotilla-backup"
# A terabyte in a day is 12 MB/s.
HOST_SECONDS = 24 * 3600.0
KEY_BYTES = 32
# What every clock and every text can say, whatever the time zone.
_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)
_FORMATS = ("%Y-%m-%d %H:%M:%S.%f", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S")


def bucket(settings: Settings) -> Bucket:
    """The fleet's bucket of backups."""
    return Bucket(client(settings, "s3"), settings.name_of("backups"))


def ring(settings: Settings, parameter: str = "") -> Ring:
    """The keys: the fleet's own, or those in another SSM parameter. Raises Refused without it."""
    name = parameter or settings.parameter("mysql", "backup_keys")
    with described(settings, "read the keys of backups"):
        answer = client(settings, "ssm").get_parameters(Names=[name], WithDecryption=True)
    if not answer["Parameters"]:
        raise no_keys(name)
    return Ring.parse(answer["Parameters"][0]["Value"])


def moment(text: str) -> int | None:
    """Microseconds since the epoch, None for "latest". UTC unless the text says otherwise.

    Raises BadOption.
    """
    if text == "latest":
        return None
    found = _read(text)
    # As a variable of the shell that was never set, "" must not mean the latest of all.
    if found is None or not _EARLIEST <= found <= _LATEST:
        raise BadOption(
            f"{text!r} is no moment" if text else "no moment is given",
            "it is written as 2026-11-20 14:03:07 (UTC), or latest",
            "Nothing was touched",
            "fab backup.list",
        )
    return round(found.timestamp() * 1e6)


def _read(text: str) -> datetime | None:
    for form in _FORMATS:
        with suppress(ValueError):
            return datetime.strptime(text, form).replace(tzinfo=UTC)
    with suppress(ValueError):
        found = datetime.fromisoformat(text)
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    return None


def listed(settings: Settings, *, now: float | None = None) -> dict[str, Any]:
    """{backups, archive}: whole backups, newest first, and how far binary logs are archived.

    ``archive``: {host, caught_up_at, behind_seconds, objection, from, to}; times in UTC.
    """
    store, keys = bucket(settings), ring(settings)
    manifests = stored.manifests(store, keys)
    progress = shared.read(dynamo.clusters(settings))[1]
    clock = time.time() if now is None else now
    newest = GtidSet.parse(manifests[-1].gtids) if manifests else GtidSet()
    return {
        "backups": names.summary(manifests),
        "archive": _archive(progress, newest, clock) | _span(manifests, progress),
    }


def _archive(progress: Progress | None, newest: GtidSet, now: float) -> dict[str, Any]:
    return {
        "host": progress.host if progress else None,
        "behind_seconds": round(max(0.0, now - progress.caught_up_at), 1) if progress else None,
        "objection": objection(progress, newest, now),
    }


def _span(manifests: list[Manifest], progress: Progress | None) -> dict[str, Any]:
    at = datetime.fromtimestamp(progress.caught_up_at, UTC) if progress else None
    return {
        "from": manifests[0].taken if manifests else None,
        "to": at.isoformat(timespec="seconds") if at and manifests else None,
    }


def run(
    settings: Settings, host: str | None, *, confirmed: Confirmed, said: Said
) -> dict[str, Any]:
    """Take a full backup now, on a replica: {backup, host, gtids, bytes, stored_bytes, seconds}.

    Raises Refused where there is no replica to take it from, HostFailed when it was cut off: the
    same command on the same host goes on there.
    """
    command = "fab backup.run"
    with session(settings, fresh=True) as opened:
        chosen = host or nearest(opened)
        demand_member(opened, chosen)
        confirmed(f"{settings.prefix}: take a full backup on {chosen}; MySQL goes on meanwhile")
        with recorded(settings, command, said) as steps:
            with steps.step(f"copy and store on {chosen}"):
                told = on_host(opened, chosen, "run", as_server=True)
            steps.result = told | {"host": chosen, "seconds": steps.seconds}
        return steps.result


def verify(settings: Settings, backup: str, *, said: Said) -> dict[str, Any]:
    """Read and open every byte of a backup ("" all) on a replica: {verified, wrong, host}."""
    with session(settings, fresh=True) as opened:
        chosen = nearest(opened)
        said(f"reading on {chosen}")
        words = ["verify", *(["--backup", backup] if backup else [])]
        return on_host(opened, chosen, *words, as_server=True) | {"host": chosen}


def restore(
    settings: Settings,
    host: str,
    *,
    to: str,
    gtid: str,
    confirmed: Confirmed,
    said: Said,
) -> dict[str, Any]:
    """Replace a member's data by what the cluster had: {host, base, gtids, replayed, seconds}.

    Raises Refused with nothing touched, HostFailed; the host then has what it had.
    """
    until = moment(to)
    words = ["restore", *target(until, gtid)]
    with session(settings, fresh=True) as opened:
        demand_member(opened, host)
        when = "the latest transaction" if until is None else rules.when(until)
        confirmed(
            f"{settings.prefix}: replace all data on {host} by what the cluster had at"
            f" {gtid or when}; what {host} has now is kept beside it"
        )
        with recorded(settings, f"fab backup.restore {host}", said) as steps:
            with steps.step(f"restore {host}"):
                told = on_host(opened, host, *words)
            steps.result = told | {"host": host}
        return steps.result


def extract(
    settings: Settings,
    what: str,
    output: Path,
    *,
    to: str,
    gtid: str,
    said: Said,
) -> dict[str, Any]:
    """Write one database or table as it was into a local file of SQL; nothing else is touched."""
    if output.exists():
        raise BadOption(f"{output} exists", "it is not written over", "Nothing was changed")
    if not os.access(output.absolute().parent, os.W_OK | os.X_OK):
        raise BadOption(
            f"{output} cannot be written: its folder is not there, or not yours",
            "a restore takes its time, and has to go somewhere",
            "Nothing was changed",
        )
    until = moment(to)
    with session(settings, fresh=True) as opened:
        chosen = nearest(opened)
        said(f"restoring beside {chosen}'s own data")
        remote = f"/var/lib/mysql-files/extract-{time.time_ns()}.sql"
        words = ["extract", *target(until, gtid), "--what", what, "--output", remote]
        try:
            told = on_host(opened, chosen, *words)
            _fetched(opened, chosen, remote, output, told["bytes"])
        finally:
            opened.runner.run(chosen, f"rm -f {remote}", sudo=True)
        return told | {"host": chosen, "file": str(output)}


def retention(
    settings: Settings, policy: keeping.Policy, *, confirmed: Confirmed, said: Said
) -> dict[str, Any]:
    """Delete what the policy does not keep: {kept, dropped, logs}. Versions stay as the bucket's
    lifecycle says. Raises Refused.
    """
    store, keys = bucket(settings), ring(settings)
    manifests = {one.id: one for one in stored.manifests(store, keys)}
    taken = {name: datetime.fromisoformat(one.taken) for name, one in manifests.items()}
    ruled = keeping.verdicts(taken, policy)
    kept = [GtidSet.parse(manifests[one.backup].gtids) for one in ruled if one.why]
    dropped = [one.backup for one in ruled if not one.why]
    parts = keeping.droppable(streams(store, keys), kept)
    told = {
        "kept": {one.backup: one.why for one in ruled if one.why},
        "dropped": dropped,
        "logs": len({(part.place.stream, part.place.file) for part in parts}),
    }
    if not dropped and not parts:
        return told
    lines = [f"keep {one.backup}: {one.why}" if one.why else f"drop {one.backup}" for one in ruled]
    confirmed("\n".join([*lines, f"drop {told['logs']} binary logs that no kept backup needs"]))
    with recorded(settings, "fab backup.retention", said) as steps:
        for backup in dropped:
            with steps.step(f"drop {backup}"):
                # First: without its manifest it is no backup any more.
                store.remove([names.manifest_key(backup)])
                store.remove([entry.key for entry in store.list(f"{names.FULL}{backup}/")])
        if parts:
            with steps.step("drop binary logs"):
                files = {(part.place.stream, part.place.file) for part in parts}
                also = [
                    entry.key
                    for stream, file in sorted(files)
                    for kind in (rules.LIST, rules.MERGED)
                    for entry in store.list(f"{stream.prefix}{file}/{kind}")
                ]
                store.remove([*(part.place.key for part in parts), *also])
        steps.result = told
    return told


def rotate(settings: Settings, *, confirmed: Confirmed, said: Said) -> dict[str, Any]:
    """Seal with a new key from now on: {key, keys}. Every old key stays, to open what it sealed.

    The new ring is read back. Hosts read it again within some minutes.
    """
    old, name = ring(settings), settings.parameter("mysql", "backup_keys")
    confirmed(
        f"{settings.prefix}: put a new key before the {len(old.keys)} in {name}; key {old.newest}"
        " opens what it sealed"
    )
    made = Ring.parse(" ".join([secrets.token_urlsafe(KEY_BYTES), *(k.decode() for k in old.keys)]))
    with recorded(settings, "fab backup.rotate-key", said) as steps:
        with steps.step("new key"):
            store_ring(settings, made.keys)
        steps.result = {"key": made.newest, "keys": len(made.keys)}
    return steps.result


def store_ring(settings: Settings, keys: Sequence[bytes]) -> None:
    """Keep these keys, newest first, here and where backups are copied to, and read them back.

    In the other region first: a backup must not be sealed with a key that its copy lacks.
    """
    name = settings.parameter("mysql", "backup_keys")
    text = " ".join(key.decode() for key in keys)
    copy = settings.backups.copy_region
    for place in [*([settings.elsewhere(copy)] if copy else []), settings]:
        with described(place, f"store the keys of backups in {place.region}"):
            # A KMS key is of one region: the copy is sealed by AWS's own.
            key = sealed_by(settings) if place is settings else {}
            client(place, "ssm").put_parameter(
                Name=name, Value=text, Type="SecureString", Overwrite=True, **key
            )
    if ring(settings).keys != tuple(keys):
        raise FlotillaError(
            f"{name} is not what was written",
            "somebody else may have changed it in this moment",
            "SSM keeps its earlier versions",
            "docs/runbooks/backup-key-is-lost.md",
        )


def target(until: int | None, gtid: str) -> list[str]:
    """The words of the tool on a host for a moment, or a set. Raises BadOption for both, and for
    what is no set.
    """
    if gtid and until is not None:
        raise BadOption("--to and --gtid both say where to", untouched="Nothing was touched")
    if gtid:
        try:
            GtidSet.parse(gtid)
        except ValueError as error:
            raise BadOption(
                f"--gtid {gtid!r}: {error}", untouched="Nothing was touched", next="fab backup.list"
            ) from None
    return ["--gtid", gtid] if gtid else ["--to", "latest" if until is None else str(until)]


def nearest(opened: Session) -> str:
    """The replica that is nearest to the primary. Raises Refused where none runs."""
    best: tuple[float, str] | None = None
    lags = opened.cluster.each(opened.cluster.seats, lambda seat: _lag(seat.server))
    for name, answer in lags.items():
        if answer is not None and (best is None or (answer, name) < best):
            best = (answer, name)
    if best is None:
        raise Refused(
            "no replica answers whose stream and applier run",
            "a backup is taken from a replica, which nobody waits for",
            "Nothing was changed",
            "fab mysql.status, or name a host",
        )
    return best[1]


def _lag(server: Server) -> float | None:
    try:
        health = glimpse(server, seconds=5.0).health
    except FlotillaError:
        return None
    runs = health.read_only and health.io == "ON" and health.applier == "ON"
    return health.lag_seconds if runs else None


def on_host(opened: Session, host: str, *words: str, as_server: bool = False) -> dict[str, Any]:
    """What the tool on a host printed. Raises Refused or HostFailed with what it said."""
    tool = f"{TOOL} {shlex.join(words)}"
    if as_server:
        tool = f"setpriv --reuid mysql --regid mysql --init-groups {tool}"
    result = opened.runner.run(host, tool, sudo=True, seconds=HOST_SECONDS, check=False)
    if result.rc not in {0, 1} or not result.stdout.strip():
        kind = Refused if result.rc == Refused.exit_code else HostFailed
        # It ends with its own next command where it knows one; of hosts it does not know the names.
        what, _, advice = result.last_words.partition("Next: ")
        knows = advice and not advice.startswith("fab fleet.logs")
        raise kind(f"{host}: {what.strip()}", next=advice if knows else f"fab fleet.logs {host}")
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def _fetched(opened: Session, host: str, remote: str, output: Path, size: int) -> None:
    # Under its own name only when it is whole, and not over what has come there meanwhile.
    with tempfile.TemporaryDirectory(prefix=".flotilla-", dir=output.absolute().parent) as folder:
        partial = Path(folder) / output.name
        with partial.open("xb") as file:
            channel = opened.runner.stream(host, f"cat {remote}", sudo=True)
            channel.settimeout(60)
            while block := channel.recv(1 << 16):
                file.write(block)
            channel.close()
        if partial.stat().st_size != size:
            raise HostFailed(f"{host}: the file of {size} bytes did not arrive whole")
        try:
            output.hardlink_to(partial)
        except FileExistsError:
            raise Refused(
                f"{output} came to be meanwhile",
                "it is not written over",
                next="another name; the backup is as it was",
            ) from None
