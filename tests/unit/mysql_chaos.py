"""What may happen next in the world of ``mysql_world``, and a clock that makes it happen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from mysql_actors import Actor, Failover, QuitError, Steps
from mysql_keeper import Complete, Keeper
from mysql_world import LostError, Server, StaleError, World

Event = tuple[str, Callable[[], object]]
# A plan of ours is a dozen steps of two or three yields; faults must be rarer for it to get far.
FAULT_ODDS = 12
# A lease of somebody who died ends after 60 turns, and a watcher's round takes ten.
CALM = 90


class Chaos:
    """Every step is drawn by number, so that a list of numbers is a history."""

    def __init__(
        self, size: int = 3, wait_for: int = 1, *, mutant: str = "", lossy: bool = False
    ) -> None:
        self.world = World(size, wait_for)
        self.mutant = mutant
        self.lossy = lossy
        self.running: list[tuple[Actor, Steps]] = []
        self.log: list[str] = []
        for name in self.world.servers:
            self._start(Keeper(self.world, name, mutant))

    def _start(self, actor: Actor) -> None:
        self.running.append((actor, actor.steps()))

    def play(self, tape: list[int]) -> None:
        """Let each number choose what happens, and check the promises after each."""
        for number in tape:
            faulty = number % FAULT_ODDS == 0
            events = list(self.faults() if faulty else self.events())
            name, event = events[number // FAULT_ODDS % len(events)]
            self.log.append(name)
            event()
            self.check()

    def check(self) -> None:
        """Nothing that a client was told is missing on the primary of the record."""
        if not self.lossy:
            lost = self.world.told - self.world.primary.holds
            assert not lost, f"{lost} lost; {self.world.primary.name} is primary"

    def events(self) -> Iterator[Event]:
        """What happens when nothing breaks."""
        world = self.world
        yield "tick", self._tick
        for index, (actor, _) in enumerate(self.running):
            weight = 1 if isinstance(actor, Keeper) else 6
            for _again in range(weight):
                yield f"{actor.holder} goes on", partial(self._go_on, index)
        for index, (name, source, gtid) in enumerate(world.acks):
            yield f"{name} acks {gtid} to {source}", partial(world.deliver, index)
        for name, server in world.servers.items():
            yield from self._flow(name, server)

    def _flow(self, name: str, server: Server) -> Iterator[Event]:
        world = self.world
        if server.answers and not server.read_only and not server.offline:
            yield f"a client writes on {name}", partial(world.write, server)
        if world.can_receive(name):
            yield f"{name} receives", partial(world.receive, name)
        if server.answers and server.applier and server.unapplied and not server.delayed:
            yield f"{name} applies", partial(world.apply, server)
        if server.answers:
            for index in range(len(server.unread)):
                yield f"{name} reads on", partial(world.read_on, server, index)
        if server.answers and server.io != "OFF" and server.source:
            yield f"{name} looks after its stream", partial(world.connect, name)

    def faults(self) -> Iterator[Event]:
        """What breaks, what is mended, and who believes the primary dead."""
        for name, server in self.world.servers.items():
            for _again in range(6):
                yield f"failover from {name}", partial(self._begin, Failover, name)
            yield f"completion from {name}", partial(self._begin, Complete, name)
            yield from self._breaks(name, server)
        for index, (actor, _) in enumerate(self.running):
            if not isinstance(actor, Keeper):
                yield f"{actor.holder} dies", partial(self.running.pop, index)
        for pair in self._pairs():
            yield f"{set(pair)} cut", partial(self.world.cut.add, pair)
        yield "links heal", self.world.cut.clear

    def _breaks(self, name: str, server: Server) -> Iterator[Event]:
        world = self.world
        if server.is_up:
            yield f"{name} crashes", partial(world.crash, server)
            yield f"{name} freezes", partial(setattr, server, "is_frozen", True)
        else:
            yield f"{name} starts", partial(self._boot, name)
        if server.is_frozen:
            yield f"{name} thaws", partial(setattr, server, "is_frozen", False)
        if name in world.stopping:
            yield f"EC2 stops {name}", partial(self._stop, name)
        yield f"{name} has no API", partial(world.no_api.add, name)
        yield f"{name} has the API", partial(world.no_api.discard, name)
        yield f"{name} misses an answer", partial(world.mute.add, name)
        yield f"{name} is cut off", partial(self._isolate, name)

    def _pairs(self) -> list[frozenset[str]]:
        names = list(self.world.servers)
        return [frozenset({a, b}) for a in names for b in names if a < b]

    def _tick(self) -> None:
        self.world.now += 1

    def _begin(self, kind: type[Actor], name: str) -> None:
        if name in self.world.stopped or len(self.running) > len(self.world.servers) + 2:
            return
        actor = kind(self.world, name, self.mutant)
        if isinstance(actor, Failover):
            actor.lossy = self.lossy
        self._start(actor)

    def _go_on(self, index: int) -> None:
        actor, steps = self.running[index]
        try:
            next(steps)
        except (StopIteration, LostError, StaleError, QuitError):
            self.running.pop(index)
        while isinstance(actor, Failover) and actor.spawn:
            self._start(actor.spawn.pop())

    def _boot(self, name: str) -> None:
        self.world.servers[name].is_up = True
        self.world.stopped.discard(name)
        if not any(isinstance(a, Keeper) and a.host == name for a, _ in self.running):
            self._start(Keeper(self.world, name, self.mutant))

    def _stop(self, name: str) -> None:
        if self.world.servers[name].is_up:
            self.world.crash(self.world.servers[name])
        self.world.stopping.discard(name)
        self.world.stopped.add(name)
        self.running = [(a, s) for a, s in self.running if a.host != name]

    def _isolate(self, name: str) -> None:
        self.world.cut |= {pair for pair in self._pairs() if name in pair}

    def heal(self, rounds: int = 400) -> None:
        """Nothing breaks any more, and everybody goes on in turn, until nothing changes either."""
        world = self.world
        world.cut.clear()
        world.no_api.clear()
        world.mute.clear()
        world.stopping.clear()
        for name, server in world.servers.items():
            server.is_frozen = False
            if not server.is_up:
                self._boot(name)
        same, before = 0, self._shape()
        while rounds and same < CALM:
            rounds -= 1
            world.now += 0.2
            self._go_round()
            self.check()
            same = same + 1 if self._shape() == before else 0
            before = self._shape()

    def _go_round(self) -> None:
        """Everybody does a step, and all that is on its way arrives."""
        for index in reversed(range(len(self.running))):
            self._go_on(index)
        for _, event in [
            e for e in self.events() if e[0].endswith(("receives", "applies", "stream"))
        ]:
            event()
        for server in self.world.servers.values():
            while server.unread:
                self.world.read_on(server, 0)
        for index in reversed(range(len(self.world.acks))):
            self.world.deliver(index)

    def _shape(self) -> tuple[object, ...]:
        """All that matters of the world, but for the clock and who holds the lease."""
        servers = self.world.servers.values()
        state = self.world.state
        return (
            state.record,
            *state.barred,
            *(
                (s.read_only, s.offline, s.io, s.source, len(s.log), len(s.waiting))
                for s in servers
            ),
        )
