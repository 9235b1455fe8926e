"""A cluster as a world in which anything may happen between any two statements.

What a server does is what was measured on 9.7: a commit waits with its row already in the binary
log, a crash turns what waited into rows, switching the source side off tells waiting clients OK,
a CHANGE with both threads stopped empties the relay log, a stream acknowledges only if it was told
to before it connected. A GTID is ``(uuid, number)``; a session dies when somebody kills it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from flotilla.rules.mysql_state import Claim, Place, State
from flotilla.rules.mysql_topology import Member, Record, Replication, SemiSync

Gtid = tuple[str, int]
DEAD_END = "dead-end"
LEASE = 12.0


class LostError(Exception):
    """No answer: whether it took effect is not known."""


class StaleError(Exception):
    """The API refused a write: somebody else has the lease, or the term moved on."""


@dataclass
class Sent:
    """Statements that a server has not read yet: by which session, and when they are too late."""

    session: int
    until: float
    work: Callable[[Server], None]


@dataclass
class Server:
    """``log`` is its binary log in order, ``waiting`` the end of it that is not committed yet."""

    name: str
    uuid: str
    log: list[Gtid] = field(default_factory=list)
    waiting: dict[Gtid, set[str]] = field(default_factory=dict)
    clients: set[Gtid] = field(default_factory=set)
    received: list[Gtid] = field(default_factory=list)
    is_up: bool = True
    is_frozen: bool = False
    read_only: bool = True
    offline: bool = False
    waits: bool = False
    acknowledges: bool = False
    source: str | None = None
    io: str = "OFF"
    io_acknowledges: bool = False
    applier: bool = False
    delayed: bool = False
    session: int = 0
    unread: list[Sent] = field(default_factory=list)

    @property
    def answers(self) -> bool:
        return self.is_up and not self.is_frozen

    @property
    def executed(self) -> set[Gtid]:
        return {gtid for gtid in self.log if gtid not in self.waiting}

    @property
    def holds(self) -> set[Gtid]:
        """What is on its disk, whatever state the process is in."""
        return {*self.log, *self.received}

    @property
    def unapplied(self) -> list[Gtid]:
        return [gtid for gtid in self.received if gtid not in self.log]


class World:
    """Servers, links, the API with its item, EC2, and what clients were told."""

    def __init__(self, size: int = 3, wait_for: int = 1) -> None:
        self.wait_for = wait_for
        self.servers = {f"mysql-{n}": Server(f"mysql-{n}", f"u{n}") for n in range(1, size + 1)}
        self.now = 0.0
        self.cut: set[frozenset[str]] = set()
        self.no_api: set[str] = set()
        self.stopping: set[str] = set()
        self.stopped: set[str] = set()
        self.acks: list[tuple[str, str, Gtid]] = []
        self.terms: dict[Gtid, tuple[int, str]] = {}
        self.begun: dict[Gtid, bool] = {}
        self.told: set[Gtid] = set()
        self.mute: set[str] = set()
        self.state = State(Record(1, "i-mysql-1", "u1"))
        self._form()

    def _form(self) -> None:
        first = self.servers["mysql-1"]
        first.read_only, first.waits = False, True
        for server in self.servers.values():
            if server is not first:
                server.source, server.io, server.applier = "mysql-1", "ON", True
                server.acknowledges = server.io_acknowledges = True
        row = ("u1", 1)
        self.terms[row] = (1, "u1")
        for server in self.servers.values():
            server.log.append(row)
        self.begun[row] = True

    # --- servers

    def places(self) -> list[Place]:
        return [Place(n, f"i-{n}", n) for n in self.servers]

    @property
    def primary(self) -> Server:
        return self.servers[self.state.record.instance_id.removeprefix("i-")]

    def linked(self, one: str, other: str) -> bool:
        return frozenset({one, other}) not in self.cut

    def write(self, server: Server, term: int | None = None) -> Gtid:
        """Begin a commit; a client waits for it, or the session that writes the term's row."""
        taken = [n for s in self.servers.values() for (u, n) in s.holds if u == server.uuid]
        mine = [n for (u, n) in server.holds if u == server.uuid]
        assert max(mine, default=0) == max(taken, default=0), "a GTID would be given out twice"
        gtid = (server.uuid, max(taken, default=0) + 1)
        server.log.append(gtid)
        server.waiting[gtid] = set()
        self.begun[gtid] = self.primary is server
        if term is None:
            server.clients.add(gtid)
        else:
            owners = {owner for number, owner in self.terms.values() if number == term}
            assert owners <= {server.uuid}, f"term {term} was given to two servers"
            self.terms[gtid] = (term, server.uuid)
        if not server.waits:
            self.commit(server)
        return gtid

    def commit(self, server: Server) -> None:
        """End every commit at the head of the log that has its acknowledgements."""
        for gtid in list(server.waiting):
            if server.waits and len(server.waiting[gtid]) < self.wait_for:
                return
            del server.waiting[gtid]
            if gtid in server.clients:
                server.clients.discard(gtid)
                self.told.add(gtid)
                assert self.begun[gtid], f"{server.name} took a write that was not its to take"

    def receive(self, name: str) -> None:
        """The next transaction of its source arrives at a replica, which acknowledges it."""
        replica = self.servers[name]
        source = self.servers[replica.source or ""]
        gtid = next(g for g in source.log if g not in replica.holds)
        replica.received.append(gtid)
        if replica.io_acknowledges:
            self.acks.append((name, source.name, gtid))

    def can_receive(self, name: str) -> bool:
        replica = self.servers[name]
        source = self.servers.get(replica.source or "")
        return bool(
            source
            and replica.answers
            and replica.io == "ON"
            and source.answers
            and self.linked(name, source.name)
            and any(g not in replica.holds for g in source.log)
        )

    def deliver(self, index: int) -> None:
        """An acknowledgement arrives. It names a position, so it covers what came before it."""
        replica, name, gtid = self.acks.pop(index)
        source = self.servers[name]
        if source.answers and self.linked(replica, name) and gtid in source.log:
            for earlier in source.log[: source.log.index(gtid) + 1]:
                if earlier in source.waiting:
                    source.waiting[earlier].add(replica)
            self.commit(source)

    def apply(self, server: Server) -> None:
        server.log.append(server.unapplied[0])
        assert not server.waits, "an applier would wait for acknowledgements"

    def connect(self, name: str) -> None:
        """A replica's stream reaches its source, or notices that it does not any more."""
        replica = self.servers[name]
        source = self.servers.get(replica.source or "")
        if source and source.is_up and self.linked(name, source.name):
            if replica.io == "CONNECTING" and not source.is_frozen:
                replica.io, replica.io_acknowledges = "ON", replica.acknowledges
        elif replica.io == "ON":
            replica.io = "CONNECTING"

    def crash(self, server: Server) -> None:
        """The process is gone; what waited for acknowledgements is on its disk and will be rows."""
        server.waiting.clear()
        server.clients.clear()
        server.is_up, server.is_frozen = False, False
        server.read_only, server.offline = True, False
        server.waits = server.acknowledges = server.io_acknowledges = server.applier = False
        server.io = "OFF"
        server.session += 1
        server.unread.clear()
        for other in self.servers.values():
            if other.source == server.name and other.io == "ON":
                other.io = "CONNECTING"

    def read_on(self, server: Server, index: int) -> None:
        """It does what was sent to it while it was frozen, in any order."""
        sent = server.unread.pop(index)
        if sent.session == server.session and self.now <= sent.until:
            sent.work(server)

    def member(self, server: Server) -> Member:
        terms = [self.terms[g] for g in server.log if g in self.terms and g not in server.waiting]
        term, owner = max(terms, default=(None, None))
        follows = server.source and Replication(
            host=server.source,
            io=server.io,
            applier="ON" if server.applier else "OFF",
            received=text(server.received),
            delay_seconds=3600 if server.delayed else 0,
        )
        return Member(
            name=server.name,
            instance_id=f"i-{server.name}",
            address=server.name,
            uuid=server.uuid,
            server_id=1,
            version=(9, 7, 4),
            read_only=server.read_only,
            super_read_only=server.read_only,
            offline=server.offline,
            executed=text(server.executed),
            term=term,
            term_uuid=owner,
            replication=follows or None,
            semi_sync=SemiSync(
                source=server.waits,
                replica=server.acknowledges,
                acknowledging=server.io == "ON" and server.io_acknowledges,
            ),
        )

    # --- the API

    def read(self, who: str) -> State:
        if who in self.no_api:
            raise LostError
        return self.state

    def claim(self, who: str, holder: str, reason: str) -> int:
        """Take the lease if it is free, or ours, or over; its fencing number."""
        state = self.read(who)
        held = state.claim
        if held and held.holder not in {"", holder} and self.now <= held.expires_at:
            raise StaleError
        fence = state.fence + 1
        claim = Claim(holder, fence, self.now + LEASE, reason)
        self.state = replace(state, fence=fence, claim=claim)
        return fence

    def release(self, who: str, fence: int) -> None:
        state = self._under(who, fence)
        assert state.claim
        self.state = replace(state, claim=replace(state.claim, holder=""))

    def promote(
        self, who: str, fence: int, record: Record, barred: Mapping[str, str], baseline: str
    ) -> None:
        state = self._under(who, fence)
        if record.term != state.record.term + 1:
            raise StaleError
        self.state = replace(state, record=record, barred=dict(barred), baseline=baseline)
        if who in self.mute:
            self.mute.discard(who)
            raise LostError

    def bar(self, who: str, fence: int, barred: Mapping[str, str]) -> None:
        self.state = replace(self._under(who, fence), barred=dict(barred))

    def _under(self, who: str, fence: int) -> State:
        state = self.read(who)
        if state.fence != fence:
            raise StaleError
        return state


class Session:
    """One actor's connection to one server: good until the server dies or somebody kills it."""

    def __init__(self, world: World, host: str, server: str) -> None:
        self._world = world
        self._host = host
        self.server = world.servers[server]
        self._check(self.server.session)
        self._number = self.server.session

    def do(self, work: Callable[[Server], None], until: float = float("inf")) -> None:
        """Run statements. LostError: they took effect, or will, or did not.

        With ``until``, the server itself refuses to begin them after that time.
        """
        if self.server.is_frozen and self._number == self.server.session:
            self.server.unread.append(Sent(self._number, until, work))
        self._check(self._number)
        if self._world.now > until:
            raise StaleError
        work(self.server)
        if self._host in self._world.mute:
            self._world.mute.discard(self._host)
            raise LostError

    def kill_others(self) -> None:
        """End every other session on this server."""
        self._check(self._number)
        self.server.session += 1
        self._number = self.server.session

    def _check(self, number: int) -> None:
        linked = self._host == self.server.name or self._world.linked(self._host, self.server.name)
        if not self.server.answers or not linked or number != self.server.session:
            raise LostError


def text(gtids: set[Gtid] | list[Gtid]) -> str:
    """A GTID set as a server prints it; sections are single numbers."""
    return ",".join(f"{uuid}:{number}" for uuid, number in sorted(gtids))


def parsed(gtids: str) -> Iterator[Gtid]:
    for part in gtids.split(","):
        if part:
            uuid, _, number = part.partition(":")
            yield uuid, int(number)
