"""Restore drills: what is written down of one, when the next is due, and what is wrong by now.

mysql/drill/<time>.json               what a drill found, or why it found nothing
mysql/drill/work/<time>/order.json    what the scratch host is to restore
mysql/drill/work/<time>/answer.json   what came of it
mysql/drill/work/<SHA-256>.zip        the tool that it runs
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

FOLDER = "mysql/drill/"
WORK = f"{FOLDER}work/"
# The tag Role of hosts that live for one drill; they belong to no tier.
ROLE = "restore"
_STAMP = "%Y%m%dT%H%M%SZ"
_RECORD = re.compile(rf"{FOLDER}(?P<stamp>\d{{8}}T\d{{6}}Z)\.json")
# A scheduled drill is due when the newest one is this old, and late when it is two days and some.
DUE = timedelta(hours=20)
LATE = timedelta(hours=51)


@dataclass(frozen=True, slots=True)
class Drilled:
    """What the newest drill found. ``at`` is when it began, in seconds since the epoch; ``wrong``
    is a sentence, "" where every table was the same.
    """

    at: float
    wrong: str


def stamp(at: datetime) -> str:
    """A drill's name: when it began, in UTC."""
    return at.astimezone(UTC).strftime(_STAMP)


def record_key(name: str) -> str:
    """Where it is written down what a drill found."""
    return f"{FOLDER}{name}.json"


def newest(keys: Iterable[str]) -> tuple[str, datetime] | None:
    """The record of the drill that began last, and when that was."""
    found = [(match["stamp"], key) for key in keys if (match := _RECORD.fullmatch(key))]
    if not found:
        return None
    name, key = max(found)
    return key, datetime.strptime(name, _STAMP).replace(tzinfo=UTC)


def drilled(at: datetime, record: Mapping[str, Any]) -> Drilled:
    """A record, for people."""
    wrong = ""
    if record.get("error"):
        wrong = f"the restore drill of {at:%Y-%m-%d %H:%M} UTC failed: {record['error']}"
    elif not record.get("exact"):
        names = ", ".join(record.get("differ", ())) or "nobody knows what"
        wrong = f"the restore drill of {at:%Y-%m-%d %H:%M} UTC was not exact: {names}"
    return Drilled(at.timestamp(), wrong)


def differ(held: Mapping[str, int | None], restored: Mapping[str, int | None]) -> list[str]:
    """The tables that are not the same, or not on both sides, or could not be read."""
    return sorted(
        name
        for name in {*held, *restored}
        if name not in held or held[name] is None or held[name] != restored.get(name)
    )


def moment(
    oldest: float, last: float | None, now: float, draw: Callable[[float, float], float]
) -> int:
    """A random moment since the last drill that can be restored, in microseconds since the epoch.

    ``oldest`` is when the oldest backup was taken. Until a second ago: of later ones the archive
    may not know yet.
    """
    since = max(oldest + 1.0, last or 0.0)
    return int(draw(since, max(since, now - 1.0)) * 1e6)


def user_data(
    *, bucket: str, digest: str, fleet: str, env: str, drill: str, namespace: str, seconds: int
) -> str:
    """What a scratch host does at its first boot: fetch the tool, run it, power off.

    EC2 terminates it then, whatever came before; ``digest`` is the tool's SHA-256.
    """
    fetch = (
        'import boto3, sys; boto3.client("s3").download_file(sys.argv[1], sys.argv[2], sys.argv[3])'
    )
    tool = "/run/flotilla-restore.zip"
    words = ["--fleet", fleet, "--env", env, "--host", ROLE, "--namespace", namespace]
    # Not at the beginning of a line here: what begins with it is taken for a shell script.
    return f"""{"#!/bin/sh"}
# A host for one restore drill. What it found is in the bucket when it powers off; EC2 ends it then.
trap 'systemctl poweroff' EXIT
set -eu
set -a
. /etc/flotilla/aws.env
set +a
umask 077
export PYTHONDONTWRITEBYTECODE=1
python3 -c {shlex.quote(fetch)} {shlex.quote(bucket)} {shlex.quote(f"{WORK}{digest}.zip")} {tool}
echo '{digest}  {tool}' | sha256sum --check --quiet
PYTHONPATH={tool} timeout {seconds} python3 -m flotilla.agent.backup {shlex.join(words)} \\
  scratch --drill {shlex.quote(drill)}
"""
