"""A cluster of three as a model: what each step does to it, and one look at it as the rules see it.

GTID sets are sets of numbers here. A replica that follows has all that its source has as soon as
anybody looks, and a stopped one keeps what it had: enough to tell right orders from wrong ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from flotilla.rules.mysql import FIRST_TERM, Step, Verb
from flotilla.rules.mysql_topology import Member, Record, Replication, SemiSync, Topology

NAMES = ("mysql-1", "mysql-2", "mysql-3")


@dataclass
class Server:
    """The state that steps change. ``source`` is a name; ``rows`` are transactions it holds."""

    name: str
    rows: set[int] = field(default_factory=set)
    read_only: bool = True
    super_read_only: bool = True
    source: str | None = None
    running: bool = False
    waits: bool = False
    acknowledges: bool = False
    outdated: bool = False
    term: int | None = None
    term_of: str | None = None


class Model:
    """Three servers and the record."""

    def __init__(self) -> None:
        self.servers = {name: Server(name) for name in NAMES}
        self.record: Record | None = None
        self.silent: set[str] = set()
        # Whether the old password opens nothing any more.
        self.refuses = False

    def look(self) -> Topology:
        """What the rules are given: everybody who follows has caught up with its source."""
        self._replicate()
        members = tuple(_member(s) for s in self.servers.values() if s.name not in self.silent)
        surplus = {
            (a.name, b.name): str(sorted(self.rows(a.name) - self.rows(b.name)))
            for a in members
            for b in members
            if self.rows(a.name) - self.rows(b.name)
        }
        outdated = frozenset(m.name for m in members if self.servers[m.name].outdated)
        silent = dict.fromkeys(self.silent, "it is off")
        return Topology(members, silent, surplus, outdated=outdated)

    def rows(self, name: str) -> set[int]:
        return self.servers[name].rows

    def write(self, name: str) -> None:
        """One transaction on a server, whoever it is."""
        self.servers[name].rows.add(1 + max((max(s.rows, default=0) for s in self.all), default=0))

    def restart(self, name: str) -> None:
        """As after a crash: read-only, nothing started, semi-sync off; data and settings stay."""
        server = self.servers[name]
        server.read_only = server.super_read_only = True
        server.running = server.waits = server.acknowledges = False

    @property
    def all(self) -> list[Server]:
        return list(self.servers.values())

    @property
    def writable(self) -> list[str]:
        return [server.name for server in self.all if not server.read_only]

    def apply(self, step: Step, primary: str, term: int) -> None:
        """Do one step of a repair."""
        server = self.servers[step.member]
        match step.verb:
            case Verb.RECORD:
                assert self.record is None
                self.record = Record(FIRST_TERM, f"i-{primary}", f"u-{primary}")
            case Verb.SOURCE_OFF:
                server.waits = False
            case Verb.DETACH:
                server.source, server.running = None, False
            case Verb.BOOTSTRAP | Verb.ACCOUNTS:
                server.super_read_only = False
                server.term, server.term_of = server.term or 0, server.term_of or ""
                self.write(server.name)
            case Verb.GRANT:
                self.open(server.name, term)
            case Verb.RENEW:
                if server.running:
                    others = (s for s in self.all if s is not server and s.source == primary)
                    assert any(s.running and s.acknowledges for s in others), "a write would wait"
                server.outdated = False
            case _:
                self._follow(server, step.verb, primary)
        self._replicate()

    def _follow(self, server: Server, verb: Verb, primary: str) -> None:
        assert not server.waits, "an applier would wait for acknowledgements"
        if verb in {Verb.FOLLOW, Verb.REPOINT}:
            server.source = primary
        server.outdated = server.outdated and verb is not Verb.FOLLOW
        assert not (server.outdated and self.refuses), "its source would not let it in"
        server.running = True
        server.acknowledges = server.acknowledges or verb is not Verb.RESUME

    def open(self, name: str, term: int) -> None:
        """Take writes; the term's row is the first of them, and somebody acknowledges it."""
        server = self.servers[name]
        assert any(s.source == name and s.running and s.acknowledges for s in self.all)
        server.acknowledges, server.waits = False, True
        server.read_only = server.super_read_only = False
        server.term, server.term_of = term, f"u-{name}"
        self.write(name)

    def _replicate(self) -> None:
        for _ in NAMES:
            for server in self.all:
                source = self.servers.get(server.source or "")
                if source and server.running and source.name not in self.silent:
                    server.rows |= source.rows
                    server.term, server.term_of = source.term, source.term_of


def _member(server: Server) -> Member:
    follows = Replication(
        host=f"host-{server.source}",
        io="ON" if server.running else "OFF",
        applier="ON" if server.running else "OFF",
    )
    sides = SemiSync(
        source=server.waits,
        replica=server.acknowledges,
        acknowledging=server.acknowledges and server.running,
    )
    return Member(
        name=server.name,
        instance_id=f"i-{server.name}",
        address=f"host-{server.name}",
        uuid=f"u-{server.name}",
        server_id=NAMES.index(server.name) + 1,
        version=(9, 7, 4),
        read_only=server.read_only,
        super_read_only=server.super_read_only,
        executed=str(sorted(server.rows)) if server.rows else "",
        term=server.term,
        term_uuid=server.term_of,
        replication=follows if server.source else None,
        semi_sync=sides,
    )


def with_member(topology: Topology, name: str, **changes: object) -> Topology:
    """The same look with one member changed."""
    members = tuple(
        replace(m, **changes) if m.name == name else m  # type: ignore[arg-type]
        for m in topology.members
    )
    return replace(topology, members=members)
