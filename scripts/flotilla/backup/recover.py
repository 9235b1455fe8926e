"""Make a cluster again whose hosts are gone: from S3, onto hosts that hold nothing.

Every member is restored to the same set, all at once, so nobody has to be copied from another one
and the primary finds replicas that can follow it at once. Then the record names one of them in a
new term, and what makes a cluster whole does the rest. Cut off anywhere, the same command goes on:
members that hold just what is wanted are left as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from flotilla import configure, inventory
from flotilla.backup.operate import moment, on_host, target
from flotilla.errors import FlotillaError, Refused
from flotilla.hosts.mysql import look
from flotilla.mysql import store
from flotilla.mysql.leasing import leased
from flotilla.mysql.recorded import Confirmed, Said, recorded
from flotilla.mysql.session import Session, session
from flotilla.provision import operate as provision
from flotilla.rules.gtid import GtidSet
from flotilla.rules.mysql_topology import Record
from flotilla.settings import Settings
from flotilla.wait import until

COMMAND = "fab backup.recover"
BACK_SECONDS = 120.0


def recover(
    settings: Settings, *, to: str, gtid: str, confirmed: Confirmed, said: Said
) -> dict[str, Any]:
    """Launch what is missing, restore every member, name a primary.

    {primary, term, base, gtids, seconds: {step: s}}.

    Without a record (another region, another account) the term comes after those of the archive.

    Raises Refused with nothing changed while the primary of the record exists, or when a member
    holds transactions that the target has not, or any where there is no record; HostFailed, and the
    same command goes on.
    """
    words = target(moment(to), gtid)
    state = store.records(settings).state()
    if state:
        _demand_lost(settings, state.record)
    when = "the latest transaction" if to in {"", "latest"} else to
    term = f"term {state.record.term + 1}" if state else "a term after those of the archive"
    confirmed(
        f"{settings.prefix}: launch MySQL hosts that are missing, restore all of them to"
        f" {gtid or when}, and make one of them primary of {term}"
    )
    with recorded(settings, COMMAND, said) as steps:
        with steps.step("hosts"):
            provision.provision(settings, confirmed=lambda _: None, said=said)
            provision.await_hosts(settings, said=said)
        with steps.step("roles"):
            configure.hosts_only(settings, "mysql", say=said)
        with session(settings, fresh=True) as opened:
            names = sorted(opened.cluster.seats)
            way = on_host(opened, names[0], "find", *words)
            wanted = GtidSet.parse(way["gtids"])
            left = _to_restore(opened, wanted, is_known=state is not None)
            with steps.step(f"restore {', '.join(left) or 'nobody'}"):
                _restored(opened, left, str(wanted))
            with steps.step("record"):
                record = _record(settings, opened, names[0], str(wanted), after=way["term"])
        with steps.step("everything that uses it"):
            configure.configure(settings, say=said)
        steps.result = {
            "primary": names[0],
            "term": record.term,
            "base": way["base"],
            "gtids": str(wanted),
            "seconds": steps.seconds,
        }
    return steps.result


def _demand_lost(settings: Settings, record: Record) -> None:
    hosts = inventory.load(settings, refresh=True).by_role("mysql")
    there = next((host.name for host in hosts if host.instance_id == record.instance_id), None)
    if there:
        raise Refused(
            f"{there}, the primary of the record, exists",
            "a cluster that is there is mended, not replaced",
            "Nothing was changed",
            "fab mysql.status",
        )


def _to_restore(opened: Session, wanted: GtidSet, *, is_known: bool) -> list[str]:
    """Members that do not hold just that. Raises Refused for one that holds something else; where
    no record says that they are lost, for one that holds anything else.
    """
    held = opened.cluster.each(
        opened.cluster.seats,
        lambda seat: GtidSet.parse(
            seat.server.query("SELECT @@GLOBAL.gtid_executed AS e", seconds=30)[0]["e"]
        ),
    )
    beyond = {name: gtids - wanted for name, gtids in held.items() if gtids - wanted}
    if beyond:
        name, gtids = next(iter(sorted(beyond.items())))
        raise Refused(
            f"{name} holds transactions that the target has not: {gtids}",
            "they would be gone",
            "No data was replaced",
            f"fab mysql.status; terminate {name} if they are not wanted",
        )
    left = sorted(name for name, gtids in held.items() if gtids != wanted)
    if not is_known and (full := [name for name in left if held[name]]):
        raise Refused(
            f"{full[0]} has data, and there is no record of who was primary",
            "a cluster that lost its record only is mended, not replaced",
            "No data was replaced",
            "fab mysql.ensure",
        )
    return left


def _restored(opened: Session, names: list[str], gtids: str) -> None:
    words = ("restore", "--gtid", gtids, "--even-primary")
    with ThreadPoolExecutor(max(1, len(names))) as pool:
        running = [pool.submit(on_host, opened, name, *words) for name in names]
        # All end before the first error is raised.
        errors = [error for one in running if (error := one.exception())]
    if errors:
        raise errors[0]
    for name in names:
        opened.cluster.server(name).close()
        until(partial(_answers, opened, name), seconds=BACK_SECONDS, every=0.5)


def _answers(opened: Session, name: str) -> bool:
    server = opened.cluster.server(name)
    try:
        return bool(server.query("SELECT 1 AS one", seconds=2.0))
    except FlotillaError:
        server.close()
        return False


def _record(settings: Settings, opened: Session, name: str, gtids: str, *, after: int) -> Record:
    """Name the primary of the next term, and one beyond ``after``, unless that was done already."""
    seat = opened.cluster.seats[name]
    member, _ = look(seat.server, instance_id=seat.instance_id, address=seat.address)
    with leased(settings, COMMAND) as lock:
        records = store.records(settings)
        found = records.read()
        there = found.term if found else 0
        if found and found.instance_id == seat.instance_id and found.uuid == member.uuid:
            return found
        record = Record(max(there, after) + 1, seat.instance_id, member.uuid)
        barred: Mapping[str, str] = {}
        records.write(record, fence=lock.term, replaces=there, barred=barred, baseline=gtids)
    return record
