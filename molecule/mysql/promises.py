#!/usr/bin/env python3
"""Keep the promises of a MySQL cluster on the scenario's real hosts, and say what clients saw.

One line of JSON for each promise. The first that is broken ends the run with a traceback.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "molecule" / "shared")]

from flotilla.aws import secrets  # noqa: E402
from flotilla.aws.session import client  # noqa: E402
from flotilla.drill.mysql_cluster import Watched  # noqa: E402
from flotilla.errors import Refused  # noqa: E402
from flotilla.mysql import operate, operate_rebuild, status, store  # noqa: E402
from flotilla.mysql.session import Session, session  # noqa: E402
from flotilla.mysql.switchover import Move  # noqa: E402
from flotilla.provision import authority, destroy, identity, storage  # noqa: E402
from flotilla.provision.world import World  # noqa: E402
from flotilla.rules.ledger import Summary  # noqa: E402
from flotilla.settings import Settings  # noqa: E402
from flotilla.wait import until  # noqa: E402
from inventory import scenario_settings  # noqa: E402

SETTLE_SECONDS = 1.0


class CutOffError(BaseException):
    """A run that ends in the middle, as by a kill: nothing that handles errors sees it."""


def ensure(settings: Settings) -> dict[str, Any]:
    """Make the cluster whole."""
    return operate.ensure(settings, confirmed=lambda _: None, said=lambda _: None)


def board(opened: Session) -> dict[str, Any]:
    """What the cluster looks like."""
    return status.status(opened.cluster, store.records(opened.settings))


def writable(opened: Session) -> list[str]:
    """Who would take a write."""
    return [member["name"] for member in board(opened)["members"] if member.get("writable")]


def answers(opened: Session, name: str) -> bool:
    """Whether a member's server tells of itself."""
    return any(
        member["name"] == name and member.get("writable") is not None
        for member in board(opened)["members"]
    )


@contextmanager
def watched(opened: Session, seen: dict[str, Any]) -> Iterator[None]:
    """Clients write meanwhile; nothing they were promised may be missing afterwards."""
    with opened.ledger() as ledger:
        time.sleep(SETTLE_SECONDS)
        yield
        time.sleep(SETTLE_SECONDS)
        primary = board(opened)["primary"]
        summary: Summary = ledger.close_against(opened.cluster.server(primary))
    seen |= {
        "write_gap_seconds": round(summary.write_gap_seconds, 3),
        "acked": summary.acked,
        "unknown": summary.unknown,
        "lost": len(summary.lost),
    }
    assert not summary.lost, summary.lost
    assert summary.acked > 50, summary


def health(opened: Session, name: str, path: str) -> tuple[int, float]:
    """Status and seconds of one question to a host's endpoint."""
    command = f"curl -s -m 5 -o /dev/null -w '%{{http_code}} %{{time_total}}' localhost:3380{path}"
    code, seconds = opened.runner.run(name, command, seconds=8, check=False).stdout.split()
    return int(code), float(seconds)


def refusal(attempt: Callable[[], object]) -> str:
    """What it was refused with; it must be."""
    try:
        attempt()
    except Refused as error:
        return str(error)
    raise AssertionError("it was not refused")


def forms_once(opened: Session) -> dict[str, Any]:
    """Blank servers become a cluster, and a second time there is nothing to do."""
    first, second = ensure(opened.settings), ensure(opened.settings)
    assert first["changed"]
    assert not second["changed"]
    return {"steps": len(first["steps"])}


def moves_under_load(opened: Session) -> dict[str, Any]:
    """Every member becomes primary once, under writes."""
    gaps, lost = [], 0
    for _ in range(3):
        moved = operate.switchover(
            opened.settings, writers=4, confirmed=lambda _: None, said=lambda _: None
        )
        gaps.append(moved["write_gap_seconds"])
        lost += moved["lost"]
    assert lost == 0
    return {"write_gap_seconds": gaps, "lost": lost}


def survives_a_cut_anywhere(opened: Session) -> dict[str, Any]:
    """A switchover that ends at any step is finished or undone; one primary, nothing lost."""
    cuts = []
    for stop in range(1, 11):
        seen: dict[str, Any] = {}
        with watched(opened, seen):
            title = _cut(opened, stop)
            ensure(opened.settings)
        assert len(writable(opened)) == 1
        assert not board(opened)["problems"]
        cuts.append({"before": title} | seen)
        if not title:
            break
    return {"cuts": cuts}


def _cut(opened: Session, stop: int) -> str:
    count, last = 0, ""

    @contextmanager
    def progress(title: str) -> Iterator[None]:
        nonlocal count, last
        count += 1
        if count == stop:
            last = title
            raise CutOffError(title)
        yield

    move = Move(opened.settings, opened.cluster)
    try:
        move.apply(move.plan(), progress)
    except CutOffError:
        return last
    return ""


def calls_off_behind_a_lock(opened: Session) -> dict[str, Any]:
    """A table lock on the primary ends the switch, and writes go on as before."""
    primary = board(opened)["primary"]
    with session(opened.settings, fresh=True) as other:
        holder = other.cluster.server(primary)
        holder.query("LOCK TABLES ops.account WRITE")
        move = Move(opened.settings, opened.cluster)
        plan = move.plan()
        start = time.monotonic()
        said = refusal(lambda: move.apply(plan, lambda _: nullcontext()))
        seconds = time.monotonic() - start
    assert writable(opened) == [primary]
    assert f"{primary} takes writes as before" in said
    ensure(opened.settings)
    return {"seconds": round(seconds, 1)}


class Scenario(Watched):
    """The cluster of a scenario: no folder of inventory/ is its, so no `fab` finds it."""

    def rebuild(self, name: str) -> None:
        operate_rebuild.rebuild(
            self._settings, name, give_up=False, confirmed=lambda _: None, said=lambda _: None
        )


def replaces_who_was_killed(opened: Session) -> dict[str, Any]:
    """A killed primary is replaced by the others, is a replica when it is back, and loses nothing.

    One that had a write which nobody acknowledged holds it apart, and is rebuilt.
    """
    old = board(opened)["primary"]
    cluster = Scenario(opened.settings, opened)
    seen: dict[str, Any] = {}
    with watched(opened, seen):
        opened.runner.run(old, "systemctl kill --signal=KILL mysql.service", sudo=True)
        opened.cluster.server(old).close()
        until(lambda: cluster.view(old).primary not in {"", old}, seconds=60)
        new = cluster.view(old).primary
        until(lambda: answers(opened, old), seconds=60)
        assert writable(opened) == [new], "it came back as what it was"
        fate = cluster.mend(old, lambda _: None)
    assert not board(opened)["problems"]
    return {"fate": fate} | seen


def admits_a_freeze(opened: Session) -> dict[str, Any]:
    """A frozen server is no primary for whoever asks, soon, and is one again later."""
    primary = board(opened)["primary"]
    opened.runner.run(primary, "systemctl kill --signal=STOP mysql.service", sudo=True)
    begun = time.monotonic()
    try:
        until(lambda: health(opened, primary, "/primary")[0] == 503, seconds=10, every=0.05)
        seconds = round(time.monotonic() - begun, 2)
        _, answer = health(opened, primary, "/primary")
    finally:
        opened.runner.run(primary, "systemctl kill --signal=CONT mysql.service", sudo=True)
    assert answer < 1, "whoever asks is not kept waiting"
    until(lambda: health(opened, primary, "/primary")[0] == 200, seconds=10)
    return {"seconds": seconds}


def refuses_what_it_cannot_explain(opened: Session) -> dict[str, Any]:
    """A transaction that only a replica has stops everything, by name, and nothing is changed."""
    found = board(opened)
    replica = next(m["name"] for m in found["members"] if m["role"] == "replica")
    opened.cluster.server(replica).batch(
        [
            "SET GLOBAL super_read_only = OFF",
            "CREATE DATABASE strayed",
            "SET GLOBAL super_read_only = ON",
        ]
    )
    attempts = (lambda: ensure(opened.settings), Move(opened.settings, opened.cluster).plan)
    for attempt in attempts:
        assert f"{replica} holds" in refusal(attempt)
    # An operator who has looked may decide that it is harmless: an empty transaction of that name
    # on the primary says so, and the cluster is whole again.
    found = board(opened)
    surplus = next(m["surplus"] for m in found["members"] if m["name"] == replica)
    opened.cluster.server(found["primary"]).batch(
        [
            ("SET gtid_next = %s", (surplus,)),
            "BEGIN",
            "COMMIT",
            "SET gtid_next = 'AUTOMATIC'",
        ]
    )
    # Its watcher may have kept it out meanwhile, and lets it in again when it looks next.
    until(lambda: not board(opened)["problems"], seconds=30)
    return {"surplus": surplus}


PROMISES: tuple[Callable[[Session], dict[str, Any]], ...] = (
    forms_once,
    moves_under_load,
    survives_a_cut_anywhere,
    calls_off_behind_a_lock,
    admits_a_freeze,
    refuses_what_it_cannot_explain,
    replaces_who_was_killed,
)


def identify(settings: Settings) -> None:
    """Make the database hosts' own IAM role and instance profile."""
    for stage in identity.stages(World(settings)):
        for change in stage:
            if change.name == settings.name_of("mysql"):
                change.act()


def trust(settings: Settings) -> None:
    """Make the authority as provisioning does; what converge needs of it, as JSON on stdout."""
    world = World(settings)
    for stage in authority.stages(world):
        for change in stage:
            change.act()
    names = {"authority": ("authority", "certificate"), "issuer": ("mysql", "tls_issuer")}
    paths = {key: settings.parameter(*name) for key, name in names.items()}
    found = secrets.named(settings, paths.values())
    sys.stdout.write(json.dumps({key: found[path] for key, path in paths.items()}))


def run(settings: Settings) -> None:
    """All promises, in an order in which each leaves a whole cluster to the next."""
    world = World(settings)
    for change in storage.stages(world)[0]:
        # What only a killed primary has is saved in a bucket before the host is rebuilt.
        if change.kind in {"table", "secret"} or change.name == settings.name_of("backups"):
            change.act()
    for promise in PROMISES:
        start = time.monotonic()
        with session(settings, fresh=True) as opened:
            seen = promise(opened)
        line = {"promise": promise.__name__, "seconds": round(time.monotonic() - start, 1), **seen}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def forget(settings: Settings) -> None:
    """Delete the scenario's tables, secrets and backups."""
    world = World(settings)
    backups = settings.name_of("backups")
    if storage.bucket_exists(world, backups):
        destroy.delete_bucket(world, backups)
    for suffix in ("locks", "clusters"):
        if storage.table_exists(world, settings.name_of(suffix)):
            client(settings, "dynamodb").delete_table(TableName=settings.name_of(suffix))
    for name in storage.parameters(world):
        client(settings, "ssm").delete_parameter(Name=name)


if __name__ == "__main__":
    {"identify": identify, "trust": trust, "run": run, "forget": forget}[sys.argv[1]](
        scenario_settings("mysql")
    )
