"""Failovers as tests run them: here, or in a process of their own that can be killed.

``python -m mysqld.managers`` reads an Order as JSON from its input. It kills or freezes itself
after a given line of its journal, exactly there: the line is on the disk and nothing else happened.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mysqld.server import Mysqld, unix_stream
from mysqld.trio import Trio
from unit.fleets import maker

from flotilla.aws.items import Change
from flotilla.errors import FlotillaError, Refused, exit_code
from flotilla.hosts.mysql import Server
from flotilla.mysql import store
from flotilla.mysql.cluster import Cluster, Seat
from flotilla.mysql.failover import Done, Failover
from flotilla.mysql.failover_journal import Journal
from flotilla.mysql.fencing import Fence, Fencing, ServerFence
from flotilla.rules.mysql import Refusal
from flotilla.rules.mysql_failover import Opening, opening
from flotilla.rules.mysql_state import Place
from flotilla.rules.mysql_verdict import Kind, Verdict
from flotilla.wait import until
from flotilla.who import holder

DEAD = Verdict(Kind.DEAD, ("it was killed by the test",), is_actionable=True)


@dataclass(frozen=True, slots=True)
class Order:
    """What a manager process is to do. ``at_line`` 0 is never; ``with_signal`` is what it does."""

    root: str
    seats: list[tuple[str, str, str, str]]
    old: str
    old_pid: int
    journal: str
    at_line: int = 0
    with_signal: int = int(signal.SIGKILL)


class Interrupted(Journal):
    """A journal whose writer gets a signal right after a line."""

    at_line = 0
    with_signal = int(signal.SIGKILL)

    def write(self, event: str, **fields: Any) -> None:
        super().write(event, **fields)
        if len(self.lines()) == self.at_line:
            os.kill(os.getpid(), self.with_signal)
            time.sleep(0.2)  # the signal may arrive a moment later


class Observed(Journal):
    """A journal whose lines are shown to somebody when they are on the disk."""

    on_line: Callable[[Mapping[str, Any]], None] | None = None

    def write(self, event: str, **fields: Any) -> None:
        super().write(event, **fields)
        if self.on_line:
            self.on_line({"event": event, **fields})


def power_off(server: Mysqld) -> Fence:
    """A fence like EC2's forced stop: the process ends, whatever state it is in."""
    return Fencing(lambda: _ended(server.name, server.kill))


def through_server(server: Mysqld) -> Fence:
    """A fence through the server's own SQL."""
    return ServerFence(server.session())


def never(server: Mysqld) -> Fence:
    """A fence that cannot be had: EC2 does not answer."""

    def fail() -> str:
        raise Refused(f"{server.name} could not be stopped")

    return Fencing(fail)


def opened(
    trio: Trio, reachable: Mapping[str, bool] | None = None, **options: Any
) -> Opening | Refusal:
    """What the rules say to begin with; ``reachable`` defaults to those whose process runs."""
    up = {name: server.is_running for name, server in trio.servers.items()} | (reachable or {})
    state = trio.records.state()
    assert state is not None
    return opening(
        trio.places,
        state,
        options.pop("verdict", DEAD),
        {name for name, runs in up.items() if runs},
        me=holder(),
        now=time.time(),
        **options,
    )


def fail_over(
    trio: Trio,
    *,
    fence: Callable[[Mysqld], Fence] = power_off,
    on_line: Callable[[Mapping[str, Any]], None] | None = None,
    kind: type[Failover] = Failover,
    reachable: Mapping[str, bool] | None = None,
    **options: Any,
) -> Done:
    """A whole failover in this process, as an operator's command or a watcher runs it.

    ``on_line`` is called after each line of the journal; ``kind`` may be one that does it wrong.
    """
    old = trio.primary
    begin = opened(trio, reachable, **options)
    if isinstance(begin, Refusal):
        raise Refused(begin.what, begin.why, "Nothing was changed", begin.next)
    with store.lock(trio.settings, "a test") as lock, trio.cluster() as cluster:
        journal = Observed.begin(trio.folder / "journal", begin.term, time.time)
        assert isinstance(journal, Observed)
        journal.on_line = on_line
        run = kind(cluster, lock, trio.records, journal, fence(old), known=trio.secrets)
        return run.run(begin)


def resume(trio: Trio, old: Mysqld, term: int) -> Done:
    """Whatever is left of a failover to ``term`` that was cut off."""
    if trio.record.term < term:
        return fail_over(trio)
    with store.lock(trio.settings, "a test") as lock, trio.cluster() as cluster:
        journal = Journal.begin(trio.folder / "journal", term, time.time)
        return Failover(
            cluster, lock, trio.records, journal, power_off(old), known=trio.secrets
        ).complete()


def let_lease_expire(trio: Trio) -> None:
    """As if the time of whoever holds the lease were over."""
    records = trio.records
    item = records.table.get(records.cluster) or {}
    gone = {"expires_at": {"N": repr(time.time() - 60)}}
    records.table.update(records.cluster, Change(gone, {"expires_at": item.get("expires_at")}))


def start(trio: Trio, *, at_line: int = 0, with_signal: int = int(signal.SIGKILL)) -> Any:
    """A manager process at work on the failover of ``trio``'s primary; a Popen."""
    old = trio.primary
    order = Order(
        root=str(trio.settings.root),
        seats=[(s.name, s.instance_id, s.address, str(s.folder)) for s in trio.servers.values()],
        old=old.name,
        old_pid=old.process.pid if old.process else 0,
        journal=str(trio.folder / "journal"),
        at_line=at_line,
        with_signal=with_signal,
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "mysqld.managers"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(asdict(order)) + "\n")
    process.stdin.close()
    process.stdin = None  # or communicate() would flush it
    return process


def main() -> int:
    """What a manager process does; its exit code is what ``fab mysql.failover`` would give."""
    values = json.loads(sys.stdin.readline())
    order = Order(**values | {"seats": [tuple(seat) for seat in values["seats"]]})
    try:
        _manage(order)
    except FlotillaError as error:
        sys.stderr.write(str(error))
        return exit_code(error)
    return 0


def _manage(order: Order) -> None:
    settings = maker(Path(order.root))().settings
    places = [Place(name, instance, address) for name, instance, address, _ in order.seats]
    records = store.records(settings)
    with store.lock(settings, "a test's manager") as lock, Cluster(_seats(order)) as cluster:
        state = records.state()
        assert state is not None
        names = {place.name for place in places} - {order.old}
        begin = opening(places, state, DEAD, names, me=holder(), now=time.time())
        assert isinstance(begin, Opening), begin
        if begin.old.name != order.old:
            raise Refused(f"{order.old} is not the primary any more")
        journal = Interrupted.begin(Path(order.journal), begin.term, time.time)
        assert isinstance(journal, Interrupted)
        journal.at_line, journal.with_signal = order.at_line, order.with_signal
        fence = Fencing(partial(_slow_stop, order, journal))
        known = store.secrets(settings)
        Failover(cluster, lock, records, journal, fence, known=known).run(begin)


def _seats(order: Order) -> list[Seat]:
    return [
        Seat(name, instance, address, Server(name, lambda folder=folder: unix_stream(Path(folder))))
        for name, instance, address, folder in order.seats
    ]


def _slow_stop(order: Order, journal: Journal) -> str:
    """Like EC2's: over only when the new primary has long been taking writes."""
    granted = {"event": "done", "act": "grant"}
    until(lambda: any(granted.items() <= line.items() for line in journal.lines()), seconds=60)
    return _ended(order.old, lambda: _end(order.old_pid))


def _ended(name: str, end: Callable[[], None]) -> str:
    end()
    return f"{name} is stopped"


def _end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
