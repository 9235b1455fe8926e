"""Those who change the world of ``mysql_world``, as the rules tell them to: a step between yields.

Whatever is not decided by the rules mirrors the executor and the watcher. ``mutant`` leaves out or
turns round one thing that the rules rely on, to show that the world would notice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import permutations

from mysql_world import DEAD_END, Gtid, LostError, Server, Session, StaleError, World, parsed, text

from flotilla.rules.mysql_candidate import Found
from flotilla.rules.mysql_failover import (
    Act,
    How,
    Opening,
    Promotion,
    Step,
    opening,
    promotion,
    shortfall,
)
from flotilla.rules.mysql_gtid import foreign
from flotilla.rules.mysql_topology import Member, Topology
from flotilla.rules.mysql_verdict import Kind, Verdict

Steps = Iterator[None]
PATIENCE = 12
NEVER = float("inf")
DEAD = Verdict(Kind.DEAD, ("somebody says so",), is_actionable=True)


class QuitError(Exception):
    """A run that ends here: refused, or it cannot go on."""


def revoke(server: Server) -> None:
    server.acknowledges = server.io_acknowledges = False
    server.io = "OFF"


def turn(server: Server, source: str) -> None:
    server.applier = True
    server.source, server.acknowledges, server.io_acknowledges = source, True, False
    server.io = "CONNECTING"


def follow(server: Server, source: str) -> None:
    server.received = [g for g in server.received if g in server.log]
    turn(server, source)


def detach(server: Server) -> None:
    server.received = [g for g in server.received if g in server.log]
    server.source, server.io, server.applier = None, "OFF", False
    server.io_acknowledges = False


def undelay(server: Server) -> None:
    server.applier, server.delayed, server.source = True, False, DEAD_END


class Actor:
    """Something on a host that does one step at a time and dies with its host."""

    def __init__(self, world: World, host: str, mutant: str = "") -> None:
        self.world = world
        self.host = host
        self.mutant = mutant
        # How statements of whoever lost the lease are kept from taking effect; one is enough.
        self.means = {"nothing stops a sleeper": set(), "kill": {"kill", "release"}}.get(
            mutant, {"deadline"}
        )
        self.is_in_doubt = False
        self.holder = f"{host}/{type(self).__name__}"
        self.fence = 0
        self.sessions: dict[str, Session] = {}

    def steps(self) -> Steps:
        raise NotImplementedError

    def guard(self) -> float:
        """The lease is ours and its time is not up; when it will be."""
        state = self.world.read(self.host)
        if state.fence != self.fence or state.claim is None:
            raise StaleError
        if self.world.now > state.claim.expires_at or state.claim.holder != self.holder:
            raise StaleError
        return state.claim.expires_at

    def session(self, name: str) -> Session:
        if name not in self.sessions:
            self.sessions[name] = Session(self.world, self.host, name)
        return self.sessions[name]

    def act(self, name: str, *works: Callable[[Server], None]) -> Steps:
        """Connect, then look at the lease, then act on that very session before the lease ends."""
        for work in works:
            session = self.session(name)
            yield
            until = self.guard() if self.fence and "deadline" in self.means else NEVER
            yield
            try:
                session.do(work, until)
            except LostError:
                self.is_in_doubt = True
                raise

    def let_go(self) -> None:
        """Release the lease, unless a statement of ours may still take effect: then let it end."""
        if not self.is_in_doubt or "release" in self.means:
            self.world.release(self.host, self.fence)

    def fenced_in(self, name: str) -> Steps:
        """Kill whoever else has a session there."""
        session = self.session(name)
        yield
        if "kill" in self.means:
            session.kill_others()

    def wait(self, done: Callable[[], bool], why: str) -> Steps:
        for _ in range(PATIENCE):
            if done():
                return
            yield
        raise QuitError(why)

    def drain(self, name: str) -> Steps:
        server = self.world.servers[name]
        yield from self.act(name, lambda s: setattr(s, "applier", True))
        yield from self.wait(lambda: not server.unapplied, f"{name} does not apply")

    def close(self, name: str) -> Steps:
        yield from self.fenced_in(name)

        def offline(server: Server) -> None:
            server.offline = True
            server.clients.clear()

        def source_off(server: Server) -> None:
            server.waits = False
            self.world.commit(server)

        def read_only(server: Server) -> None:
            server.read_only = True

        order = [offline, source_off, read_only]
        if self.mutant == "source off first":
            order = [source_off, offline, read_only]
        yield from self.act(name, *order)

    def grant(self, name: str, term: int) -> Steps:
        world = self.world

        def waits(server: Server) -> None:
            server.acknowledges, server.waits = False, True

        def is_heard() -> bool:
            count = sum(
                s.source == name and s.io == "ON" and s.io_acknowledges
                for s in world.servers.values()
            )
            return count >= world.wait_for

        rows: list[Gtid] = []

        def take(server: Server) -> None:
            server.read_only = server.offline = False
            rows.append(world.write(server, term))

        yield from self.act(name, waits)
        yield from self.wait(is_heard, "nobody acknowledges")
        yield from self.act(name, take)
        yield from self.wait(lambda: rows[0] not in world.servers[name].waiting, "no answer")


class Failover(Actor):
    """One run; verdicts are not asked for: somebody may always be wrong about a death."""

    def __init__(self, world: World, host: str, mutant: str = "", *, lossy: bool = False) -> None:
        super().__init__(world, host, mutant)
        self.lossy = lossy
        self.revoked: set[str] = set()
        self.kept: dict[str, str] = {}
        self.unable: dict[str, str] = {}
        self.closer: Closer | None = None
        self.spawn: list[Actor] = []

    def steps(self) -> Steps:
        self._may()
        yield
        self.fence = self.world.claim(self.host, self.holder, "failover")
        yield
        opened = self._may()
        try:
            yield from self._until_the_record(opened)
        except (QuitError, LostError):
            yield from self._give_up(opened)
            return
        self.let_go()

    def _may(self) -> Opening:
        world = self.world
        names = [n for n, s in world.servers.items() if s.answers and self._reaches(n)]
        decision = opening(
            world.places(), world.read(self.host), DEAD, names,
            me=self.holder, now=world.now, wait_for=world.wait_for, accept_loss=self.lossy,
        )  # fmt: skip
        if not isinstance(decision, Opening):
            raise QuitError(decision.what)
        return decision

    def _reaches(self, name: str) -> bool:
        return self.host == name or self.world.linked(self.host, name)

    def _until_the_record(self, opened: Opening) -> Steps:
        early = yield from self._positions(opened)
        yield from self._open(opened)
        while True:
            found = yield from self._positions(opened)
            if self.mutant == "positions first":
                found = replace(early, revoked=found.revoked, unable=self.unable)
            state = self.world.read(self.host)
            chosen = promotion(opened, state, found)
            if not isinstance(chosen, Promotion):
                raise QuitError(chosen.what)
            try:
                yield from self._ready(chosen)
            except (QuitError, LostError) as error:
                if chosen.new.name in self.unable:
                    raise
                self.unable[chosen.new.name] = str(error) or "lost"
            else:
                break
        yield from self._record_and_on(chosen)

    def _open(self, opened: Opening) -> Steps:
        for step in opened.steps:
            if step.act is Act.REVOKE:
                yield from self._revoke(step.member)
            elif step.act is Act.FENCE:
                if shortfall(opened, self.revoked, self.kept):
                    raise QuitError("too few are cut off")
                yield from self._fence(opened)

    def _revoke(self, name: str) -> Steps:
        if self.mutant == "revokes one only" and self.revoked:
            self.revoked.add(name)
            return
        try:
            yield from self.fenced_in(name)
            yield from self.act(name, revoke)
            self.revoked.add(name)
        except LostError:
            self.kept[name] = "no answer"

    def _fence(self, opened: Opening) -> Steps:
        yield
        self.guard()
        if opened.how is How.SERVER:
            self.closer = Closer(self.world, self.host, self.mutant)
            self.closer.target, self.closer.fence = opened.old.name, self.fence
            self.closer.holder = self.holder
            self.spawn.append(self.closer)
        else:
            self.world.stopping.add(opened.old.name)

    def _fenced(self, opened: Opening) -> str:
        if self.closer is not None:
            return "closed" if self.closer.is_done else ""
        return "stopped" if opened.old.name in self.world.stopped else ""

    def _positions(self, opened: Opening) -> Iterator[None]:
        members: list[Member] = []
        silent: dict[str, str] = {}
        for name in opened.ackers:
            yield
            try:
                self.session(name).do(lambda s: members.append(self.world.member(s)))
            except LostError:
                silent[name] = "no answer"
        known = set(parsed(self.world.state.baseline))
        ahead = compared(members)
        strange = {
            name: set(parsed(foreign(gtids, self.world.state.record.uuid))) - known
            for (name, _), gtids in ahead.items()
        }
        errant = {name: text(gtids) for name, gtids in strange.items() if gtids}
        own = {pair: text(set(parsed(g)) - strange[pair[0]]) for pair, g in ahead.items()}
        return Found(
            revoked=frozenset(self.revoked - silent.keys()),
            kept={**self.kept, **silent},
            fenced=self._fenced(opened),
            topology=Topology(
                tuple(members), silent, {pair: gtids for pair, gtids in own.items() if gtids}
            ),
            errant=errant,
            unapplied={m.name: "some" for m in members if self.world.servers[m.name].unapplied},
            owed=self._owed(members),
            unable=self.unable,
        )

    def _owed(self, members: list[Member]) -> dict[str, str]:
        if self.mutant == "the baseline is forgotten":
            return {}
        known = set(parsed(self.world.state.baseline))
        gaps = {m.name: text(known - self.world.servers[m.name].holds) for m in members}
        return {name: gtids for name, gtids in gaps.items() if gtids}

    def _ready(self, chosen: Promotion) -> Steps:
        for step in chosen.steps:
            match step.act:
                case Act.RECORD:
                    return
                case Act.FENCED:
                    old = chosen.old.name
                    yield from self.wait(partial(self._is_closed, old), "not fenced")
                case Act.UNDELAY:
                    yield from self.act(step.member, undelay)
                case Act.DRAIN:
                    yield from self.drain(step.member)

    def _is_closed(self, old: str) -> bool:
        return self.closer.is_done if self.closer else old in self.world.stopped

    def _record_and_on(self, chosen: Promotion) -> Steps:
        yield
        self.guard()
        yield
        rest = [step for step in chosen.steps if step.act is not Act.RECORD]
        try:
            baseline = text(set(parsed(chosen.baseline)))
            self.world.promote(self.host, self.fence, chosen.record, chosen.barred, baseline)
        except LostError as error:
            raise StaleError from error
        try:
            yield from finish(self, rest, chosen.new, chosen.term)
        except (LostError, QuitError) as error:
            raise StaleError from error

    def _give_up(self, opened: Opening) -> Steps:
        for name in sorted(self.revoked | self.kept.keys()):
            try:
                yield from self.act(name, lambda s: turn(s, opened.old.name))
            except LostError:
                continue
        self.let_go()


class Closer(Actor):
    """Closes an old primary that answers, beside the failover."""

    target = ""
    is_done = False

    def steps(self) -> Steps:
        yield from self.close(self.target)
        self.is_done = True


def finish(actor: Actor, todo: list[Step], new: Member, term: int) -> Steps:
    """Whatever comes after the record."""
    for step in todo:
        match step.act:
            case Act.DETACH:
                yield from actor.act(step.member, detach)
            case Act.REPOINT:
                yield from actor.act(step.member, lambda s: turn(s, new.name))
            case Act.FOLLOW:
                yield from actor.act(step.member, lambda s: follow(s, new.name))
            case Act.GRANT:
                yield from actor.grant(step.member, term)


def compared(members: list[Member]) -> dict[tuple[str, str], str]:
    """What each holds that another lacks, as a server would tell."""
    held = {
        m.name: {*parsed(m.executed), *parsed(m.replication.received if m.replication else "")}
        for m in members
    }
    return {(a, b): text(held[a] - held[b]) for a, b in permutations(held, 2) if held[a] - held[b]}
