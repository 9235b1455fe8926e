"""Watchers in the world of ``mysql_world``: who keeps a role, and who completes a change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

from mysql_actors import Actor, QuitError, Steps, compared, detach, finish, follow, turn
from mysql_world import DEAD_END, LostError, Server, StaleError

from flotilla.rules.mysql_completion import completion
from flotilla.rules.mysql_failover import Act
from flotilla.rules.mysql_rejoin import Advice, Do, Peers, advise
from flotilla.rules.mysql_topology import Member, Topology


class Keeper(Actor):
    """The watcher of one host, keeping its own server's role; for ever."""

    def steps(self) -> Steps:
        while True:
            self.fence, self.is_in_doubt = 0, False
            self.sessions.clear()
            yield
            try:
                advice = yield from self._advice()
                if advice.needs_lease:
                    self.fence = self.world.claim(self.host, self.holder, advice.do)
                    self.sessions.clear()
                    advice = yield from self._advice()
                yield from self._carry_out(advice)
            except (LostError, StaleError, QuitError):
                yield
            with suppress(LostError, StaleError):
                if self.fence:
                    self.let_go()

    def _advice(self) -> Iterator[None]:
        world = self.world
        seen: list[Member] = []
        self.session(self.host).do(lambda s: seen.append(world.member(s)))
        yield
        state = world.read(self.host)
        yield
        others: list[Member] = []
        for name in world.servers:
            if name != self.host:
                try:
                    self.session(name).do(lambda s: others.append(world.member(s)))
                except LostError:
                    continue
                yield
        me = seen[0]
        ahead = compared([me, *others])
        primary = next((m for m in others if m.instance_id == state.record.instance_id), None)
        peers = Peers(
            primary=primary,
            surplus=ahead.get((me.name, primary.name), "") if primary else "",
            lacks=",".join(
                gtids
                for (a, b), gtids in ahead.items()
                if b == me.name and f"i-{a}" not in state.barred
            ),
            acknowledgers=[
                m.name for m in others
                if m.replication and m.replication.host == me.name and m.semi_sync.acknowledging
            ],
        )  # fmt: skip
        return advise(me, state, peers, holder=self.holder, now=world.now, wait_for=world.wait_for)

    def _carry_out(self, advice: Advice) -> Steps:
        world, me = self.world, self.host
        state = world.read(me)
        source = state.record.instance_id.removeprefix("i-")
        if advice.unbar and self.mutant != "acknowledges while barred":
            self.guard()
            barred = {i: why for i, why in state.barred.items() if i != f"i-{me}"}
            world.bar(me, self.fence, barred)
            yield
        if advice.do is Do.CLOSE:
            self.fence = 0
            yield from self.close(me)
        elif advice.do is Do.GRANT:
            yield from self.grant(me, state.record.term)
        elif advice.do is Do.QUARANTINE:
            self.guard()
            world.bar(me, self.fence, {**state.barred, f"i-{me}": advice.why})
        else:
            if advice.do in {Do.DETACH, Do.REPOINT}:
                yield from self.drain(me)
            works = _works(source)
            if advice.do in works:
                yield from self.act(me, works[advice.do])


def _works(source: str) -> dict[Do, Callable[[Server], None]]:
    return {
        Do.SOURCE_OFF: lambda s: setattr(s, "waits", False),
        Do.DETACH: detach,
        Do.FOLLOW: lambda s: follow(s, source),
        Do.REPOINT: lambda s: turn(s, source),
        Do.RESUME: resume,
        Do.ACKNOWLEDGE: lambda s: turn(s, s.source or DEAD_END),
        Do.REOPEN: lambda s: setattr(s, "offline", False),
    }


def resume(server: Server) -> None:
    server.applier = True
    if server.io == "OFF":
        server.io = "CONNECTING"


class Complete(Actor):
    """Somebody finishes what another one left after the record."""

    def steps(self) -> Steps:
        self.fence = self.world.claim(self.host, self.holder, "complete")
        yield
        members: list[Member] = []
        for name in self.world.servers:
            try:
                self.session(name).do(lambda s: members.append(self.world.member(s)))
            except LostError:
                continue
            yield
        state = self.world.read(self.host)
        left = completion(
            state, Topology(tuple(members), {}, compared(members)), wait_for=self.world.wait_for
        )
        if hasattr(left, "steps"):
            if any(step.act is Act.DRAIN for step in left.steps):
                yield from self.drain(left.new.name)
            yield from finish(self, list(left.steps), left.new, left.term)
        self.let_go()
