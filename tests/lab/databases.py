"""What tests of failovers look at: the cluster, its hosts, and clients that write meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from guests import control, until
from typed import fab

from flotilla.drill.mysql_clients import PROBE_SECONDS, Clients
from flotilla.drill.mysql_cluster import Watched
from flotilla.drill.subject import View, revived
from flotilla.errors import FlotillaError
from flotilla.hosts.mysql import SqlError
from flotilla.mysql import store
from flotilla.mysql.session import Session
from flotilla.rules import drill_writes
from flotilla.rules.mysql_state import State
from flotilla.settings import Settings

# Watcher and health endpoint: HAProxy sends no client to a host where it is stopped.
WATCHER = "flotilla-mysql-agent"
# Semi-sync waits for ever where nobody acknowledges: such a commit is given up by its client.
BLOCKED_SECONDS = 2.0
BACK_SECONDS, GOOD_LOOKS = 25.0, 3
MOVE_SECONDS = 60.0
# Longer than a failover ever takes, from a frozen primary on.
STILL_SECONDS = 20.0
BOOT_SECONDS = 120.0
TABLE = "ops.proof"


@dataclass
class Databases:
    """The MySQL tier of the standing fleet. Names are those of its hosts."""

    settings: Settings
    opened: Session
    struck: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.subject = Watched(self.settings, self.opened)
        self.records = store.records(self.settings)
        self.hosts = {host.name: host for host in self.opened.snapshot.by_role("mysql")}

    # --- who is who -------------------------------------------------------------------------------

    def view(self, but: str = "") -> View:
        return self.subject.view(but)

    @property
    def state(self) -> State:
        found = self.records.state()
        assert found is not None
        return found

    @property
    def primary(self) -> str:
        """The primary by the record."""
        wanted = self.state.record.instance_id
        return next(name for name, host in self.hosts.items() if host.instance_id == wanted)

    @property
    def replicas(self) -> list[str]:
        return [name for name in self.hosts if name != self.primary]

    def member(self, name: str) -> dict[str, Any]:
        """One member as ``fab mysql.status`` has it."""
        return next(m for m in fab("mysql.status")["members"] if m["name"] == name)

    # --- hands ------------------------------------------------------------------------------------

    def root(self, name: str, command: str, *, check: bool = True) -> str:
        """A shell command as root on a host, through SSH."""
        return self.opened.runner.run(name, command, sudo=True, check=check).stdout

    def sql(self, name: str, *statements: str, seconds: float = 10.0) -> list[Any]:
        """Statements as root on one server; the rows of the last one."""
        return list(self.opened.cluster.server(name).batch(statements, seconds=seconds)[-1])

    def value(self, name: str, expression: str) -> Any:
        return self.sql(name, f"SELECT {expression} AS value")[0]["value"]

    def write(self, name: str, row: str, *, seconds: float = 10.0) -> None:
        """One row, acknowledged when this returns. Raises FlotillaError."""
        # Not CREATE TABLE IF NOT EXISTS: that is a transaction even where the table is there, so it
        # would be what waits for an acknowledgement, and the row would never be written.
        if not self.sql(name, f"SHOW TABLES FROM ops LIKE '{TABLE.partition('.')[2]}'"):
            self.sql(name, f"CREATE TABLE {TABLE} (id VARCHAR(64) PRIMARY KEY)", seconds=seconds)
        self.sql(name, f"REPLACE INTO {TABLE} VALUES ('{row}')", seconds=seconds)

    def errs(self, name: str, *statements: str) -> None:
        """Statements on a replica that only its primary should ever have given it."""
        self.sql(
            name, "SET GLOBAL super_read_only = OFF", *statements, "SET GLOBAL super_read_only = ON"
        )

    def rows(self, name: str) -> set[str]:
        return {row["id"] for row in self.sql(name, f"SELECT id FROM {TABLE}")}

    def strike(self, target: str, kind: str, **options: object) -> None:
        """A fault of the lab, healed after the test at the latest."""
        self.struck.add(target)
        given = {name.rstrip("_"): str(value) for name, value in options.items()}
        control("fault", {"target": target, "kind": kind, "args": given})

    def heal(self, target: str) -> None:
        assert not control("heal", {"target": target})["failed"]
        self.struck.discard(target)

    def cut(self, name: str, *others: str) -> None:
        """One host and these others lose each other's packets; without others, all of them."""
        self.strike(name, "cut", from_=",".join(others) or "all")

    def kill(self, name: str) -> None:
        """kill -9; systemd starts the server again after a second, read-only."""
        self.root(name, "systemctl kill --kill-whom=main --signal=KILL mysql.service")

    def dies(self, name: str) -> None:
        """kill -9, and nobody starts it again."""
        self.root(
            name,
            "systemctl mask --runtime mysql.service;"
            " systemctl kill --kill-whom=main --signal=KILL mysql.service;"
            " systemctl stop --no-block mysql.service",
        )

    def lives(self, name: str) -> None:
        """A dead server runs again, and its host, which the fence may have stopped."""
        self.opened.cluster.server(name).close()  # that session died with it
        revived(self.settings, self.opened.runner, self.hosts[name], seconds=BOOT_SECONDS)
        self.root(name, "systemctl unmask --runtime mysql.service; systemctl start mysql.service")

    def freeze(self, name: str) -> None:
        self.root(name, "systemctl kill --kill-whom=main --signal=STOP mysql.service")

    def thaw(self, name: str) -> None:
        self.root(name, "systemctl kill --kill-whom=main --signal=CONT mysql.service || true")

    def watchers(self, verb: str, *names: str) -> None:
        """systemctl on watchers, all of them by default."""
        for name in names or self.hosts:
            self.root(name, f"systemctl {verb} {WATCHER}.service")

    # --- what is waited for -----------------------------------------------------------------------

    def moved(self, old: str, seconds: float = MOVE_SECONDS) -> str:
        """The new primary, once it serves with everybody but ``old`` in order behind it."""
        found = ""

        def moved() -> bool:
            nonlocal found
            with suppress(FlotillaError):
                view = self.view(but=old)
                found = view.primary
                return found not in {"", old} and not view.why
            return False

        until(moved, seconds, f"another member takes over from {old}")
        return found

    def taken_over(self, old: str, seconds: float = MOVE_SECONDS) -> str:
        """The new primary, once it is in order, whatever the others are like."""

        def taken() -> str:
            with suppress(FlotillaError):
                primary = self.primary
                if primary not in {"", old} and not self.member(primary)["why"]:
                    return primary
            return ""

        return until(taken, seconds, f"another member is primary instead of {old}")

    def answers(self, name: str) -> bool:
        """Whether a server answers now, in a new session if need be."""
        with suppress(FlotillaError):
            return bool(self.value(name, "1") == 1)
        self.opened.cluster.server(name).close()
        return False

    def stays(self, seconds: float = STILL_SECONDS) -> None:
        """Nobody takes over for as long as this."""
        record, end = self.state.record, time.monotonic() + seconds
        while time.monotonic() < end:
            now = self.records.read()
            assert now == record, f"{now} instead of {record}"
            time.sleep(0.5)

    def report(self) -> dict[str, Any]:
        """The newest report of a change of primary."""
        return dict(fab("mysql.history")["reports"][0])

    def failover(self, *more: str, code: int = 0) -> Any:
        """``fab mysql.failover`` by an operator."""
        return fab("mysql.failover", "--yes", *more, code=code)

    # --- between any two tests --------------------------------------------------------------------

    def make_whole(self) -> None:
        """Nothing is struck, every host runs, everybody follows, watchers watch and may act."""
        for target in list(self.struck):
            self.heal(target)
        for name in self.hosts:
            self.lives(name)
            self.thaw(name)
        self.watchers("start")
        fab("mysql.unpause", "--yes")
        self.records.acknowledge()
        for name in self.replicas:
            self._brought_back(name)
        self.subject.mend(self.primary, lambda _: None)
        self.sql(self.primary, f"DROP TABLE IF EXISTS {TABLE}")

    def rebuilt(self, name: str) -> dict[str, Any]:
        """``fab mysql.rebuild``; its server is another one afterwards."""
        told = fab("mysql.rebuild", name, "--yes")
        self.opened.cluster.server(name).close()
        return dict(told)

    def _brought_back(self, name: str) -> None:
        """A replica in order, for some seconds on end: watchers start a broken applier again and
        again, and for a moment it runs. One that does not come by itself is made a copy.
        """
        good = [0]

        def follows() -> bool:
            member = self.member(name)
            good[0] = 0 if member["why"] or member.get("surplus") else good[0] + 1
            return good[0] >= GOOD_LOOKS

        try:
            until(follows, BACK_SECONDS, f"{name} is in order")
        except AssertionError:
            self.rebuilt(name)

    # --- clients ----------------------------------------------------------------------------------

    @contextmanager
    def clients(self, writers: int = 2, *, is_probed: bool = True) -> Iterator[Writing]:
        """Writers on every application host and, unless told otherwise, a probe on every server."""
        with Clients(
            self.settings,
            store.secrets(self.settings),
            self.opened.runner,
            apps=self.opened.snapshot.by_role("app"),
            servers=self.hosts.values() if is_probed else (),
            server=self.subject.server,
            writers=writers,
        ) as made:
            time.sleep(1.0)
            yield Writing(self, made)


class Writing:
    """Clients under way. ``figures`` closes their ledger, once; ``stop`` also judges."""

    def __init__(self, databases: Databases, clients: Clients) -> None:
        self._databases = databases
        self._clients = clients
        self._begun = time.time()
        self._old = databases.primary

    def revive(self, name: str) -> None:
        """A probe beside a server whose host was down."""
        self._clients.revive(name)

    def figures(self) -> dict[str, Any]:
        """What they saw, from the beginning to now."""
        time.sleep(1.0)
        ended = time.time()
        told, probes, missing = self._clients.fetch()
        view = self._databases.view()
        return drill_writes.figures(
            drill_writes.Seen(
                clients=told,
                probes=probes,
                missing=missing,
                found=self._clients.rows(view.primary),
                struck=self._begun,
                healed=ended,
                ended=ended,
                converged=ended,
                old=self._old,
                new=view.primary,
                fate=(),
                names=view.names,
                term=view.term,
                probe_seconds=PROBE_SECONDS,
            )
        )

    def stop(self) -> dict[str, Any]:
        """The same: nothing that was acknowledged is missing, and never did two take writes."""
        figures = self.figures()
        assert figures["acked"] > 0
        assert figures["lost"] == 0, figures["lost_ids"]
        assert figures["dual_writable_seconds"] == 0, figures["writable"]
        assert not figures["not_fetched"]
        return figures


def refused(told: Mapping[str, Any], *words: str) -> None:
    """An error that names all of these, and says what to do next."""
    error = told["error"]
    text = json.dumps(error)
    assert not [word for word in words if word not in text], text
    assert error["next"]


def blocked(databases: Databases, name: str, row: str) -> bool:
    """Whether a write on a server is taken and not acknowledged."""
    try:
        databases.write(name, row, seconds=BLOCKED_SECONDS)
    except SqlError:
        raise
    except FlotillaError:
        return True
    return False
