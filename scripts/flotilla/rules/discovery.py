"""Which servers a load balancer gains, drains, takes back and loses: from what EC2 says, what
HAProxy has and what was seen before, to orders. No clock, no I/O.

Invariants, whatever EC2 answers:
- an answer that is empty or failed orders nothing;
- the last server that serves is never drained, and in one round at most ``most_percent`` of the
  servers are drained, or deleted, or one of them where that is less than one;
- a server's host is gone by EC2's word only if that word is about the instance that was seen behind
  it: instances that ended keep their names for an hour, and names are given again;
- a host that only is not listed counts as gone after ``absences`` answers in a row; an answer in
  which more than ``most_percent`` of the servers are missing while they pass their checks is not
  believed;
- a server that somebody else put into drain or maintenance is not moved, and it is deleted only
  when EC2 says its host is gone, or has not listed it for ``held_absences`` answers.

There is no order that lets a server serve: "add" and "return" leave it DOWN and enabled, and its
own fresh checks bring it up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from flotilla.rules.rotation import Server

# srv_admin_state: what an operator or we forced, by command.
MAINTENANCE_BIT = 0x01
DRAIN_BIT = 0x08

COMING = frozenset({"pending", "running"})
GONE = frozenset({"shutting-down", "terminated"})
# Auto Scaling's words for members that Elastic Load Balancing would deregister.
LEAVING_LIFECYCLES = ("Terminating", "EnteringStandby", "Standby")
# Auto Scaling holds the instance until it is told that it may go, or the hook's time is over.
HELD_LIFECYCLE = "Terminating:Wait"


class Kind(StrEnum):
    """What to do with one server."""

    ADD = "add"
    RETURN = "return"
    DRAIN = "drain"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Host:
    """An application host as EC2 and Auto Scaling describe it.

    ``state`` is EC2's word; ``lifecycle`` Auto Scaling's, "" outside of a group; ``address`` is ""
    once it has none.
    """

    name: str
    address: str
    state: str = "running"
    lifecycle: str = ""
    instance_id: str = ""

    @property
    def why_leaving(self) -> str:
        """Why it must get no new requests; "" when it may."""
        if self.state not in COMING:
            return f"its instance is {self.state}"
        if self.lifecycle.startswith(LEAVING_LIFECYCLES):
            return f"Auto Scaling says {self.lifecycle}"
        return ""

    @property
    def is_wanted(self) -> bool:
        """Whether it should be a server."""
        return bool(self.address) and not self.why_leaving


@dataclass(frozen=True, slots=True)
class Seen:
    """A server of the backend as HAProxy has it; ``admin`` is its ``srv_admin_state``."""

    server: Server
    admin: int = 0

    @property
    def address(self) -> str:
        """Without the port."""
        return self.server.address.rpartition(":")[0]

    @property
    def is_forced_out(self) -> bool:
        """Whether a command took it out of rotation."""
        return bool(self.admin & (MAINTENANCE_BIT | DRAIN_BIT))

    @property
    def is_serving(self) -> bool:
        """Whether it is given new requests."""
        return self.server.is_serving and not self.is_forced_out

    @property
    def is_idle(self) -> bool:
        """Whether no request is in flight or queued."""
        return not self.server.sessions and not self.server.queued


@dataclass(frozen=True, slots=True)
class Memory:
    """What has to be known from before.

    ``absences``: by server, in how many answers in a row its host was not listed. ``drained``: the
    servers that we drained, with their addresses; every other drain or maintenance is somebody's.
    ``instances``: by server, the id of the instance that it leads to.
    """

    absences: Mapping[str, int] = field(default_factory=dict)
    drained: Mapping[str, str] = field(default_factory=dict)
    instances: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Limits:
    """How careful to be; see the module's invariants."""

    absences: int = 2
    held_absences: int = 24
    most_percent: int = 25
    # How a server is taken out: clients that a cookie keeps on it go on through a drain.
    out_bit: int = DRAIN_BIT


@dataclass(frozen=True, slots=True)
class Order:
    """One thing to do, and the reason in words."""

    kind: Kind
    name: str
    address: str
    why: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, what to remember once it is done, and what was left undone for safety."""

    orders: tuple[Order, ...]
    memory: Memory
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Leaver:
    """A server that has to go. ``is_final``: its host is gone and does not come back;
    ``is_absent``: nothing says so but that EC2 does not list it.
    """

    seen: Seen
    why: str
    is_final: bool
    is_absent: bool = False


@dataclass(frozen=True, slots=True)
class _Look:
    """An answer beside what HAProxy has.

    ``present`` are hosts that are not gone, ``matching`` those whose server has their name and
    address. By server: ``gone`` why its instance is, ``absences`` as in ``Memory``.
    """

    present: Sequence[Host]
    matching: Mapping[str, Host]
    drained: Mapping[str, str]
    instances: Mapping[str, str]
    gone: Mapping[str, str]
    absences: Mapping[str, int]


def decide(
    hosts: Sequence[Host],
    servers: Mapping[str, Seen],
    memory: Memory,
    limits: Limits = Limits(),
) -> Decision:
    """One round, from one good answer. ``hosts`` that are not gone have different names."""
    look = _look(hosts, servers, memory, limits)
    drained = dict(look.drained)
    if not any(host.is_wanted for host in look.present):
        why = f"EC2 lists no application host that is to serve; {len(servers)} servers stay"
        return Decision((), Memory({}, drained, look.instances), (why,) if servers else ())
    most = max(1, len(servers) * limits.most_percent // 100)
    leavers, doubts = _believed(
        list(_leavers(look, servers, limits)), _missing(look, servers), most
    )
    back = [
        Order(Kind.RETURN, name, drained.pop(name), "its host is back")
        for name, host in look.matching.items()
        if name in drained and host.is_wanted
    ]
    drains, kept = _drains(leavers, servers, most)
    drained |= {order.name: order.address for order in drains}
    orders = (*_adds(look, servers), *back, *drains, *_deletes(leavers, most))
    return Decision(orders, Memory(look.absences, drained, look.instances), (*doubts, *kept))


def _look(
    hosts: Sequence[Host], servers: Mapping[str, Seen], memory: Memory, limits: Limits
) -> _Look:
    present = [host for host in hosts if host.state not in GONE]
    matching = {
        host.name: host
        for host in present
        if host.name in servers and host.address == servers[host.name].address
    }
    instances = {name: one for name, one in memory.instances.items() if name in servers}
    instances |= {name: host.instance_id for name, host in matching.items()}
    ended = {host.instance_id: host.why_leaving for host in hosts if host.state in GONE}
    gone = {name: ended[one] for name, one in instances.items() if one in ended}
    known = {*gone, *(host.name for host in present)}
    absences = {n: memory.absences.get(n, 0) + 1 for n in servers if n not in known}
    return _Look(
        present, matching, _still_drained(servers, memory, limits), instances, gone, absences
    )


def _adds(look: _Look, servers: Mapping[str, Seen]) -> list[Order]:
    """A host that was given a new name while somebody works on it stays out under that one, too."""
    out = {n: seen.address for n, seen in servers.items() if seen.is_forced_out}
    held = {address for name, address in out.items() if name not in look.drained}
    return [
        Order(Kind.ADD, host.name, host.address, "a host that is to serve")
        for host in look.present
        if host.is_wanted and host.name not in servers and host.address not in held
    ]


def _missing(look: _Look, servers: Mapping[str, Seen]) -> list[str]:
    """Servers that serve and that EC2 lists under no name."""
    addresses = {host.address for host in look.present}
    serving = (name for name in look.absences if servers[name].is_serving)
    return [name for name in serving if servers[name].address not in addresses]


def released(hosts: Sequence[Host], balancers: Sequence[Mapping[str, Server] | None]) -> list[Host]:
    """The hosts that Auto Scaling holds back and that no load balancer needs any more.

    ``balancers``: the servers of each, None of one that does not answer: it may have requests there
    for all we know, so nobody is let go.
    """
    if any(servers is None for servers in balancers):
        return []
    held = (host for host in hosts if host.lifecycle == HELD_LIFECYCLE)
    return [
        host
        for host in held
        if not any(_is_used(host.name, servers) for servers in balancers if servers is not None)
    ]


def _is_used(name: str, servers: Mapping[str, Server]) -> bool:
    server = servers.get(name)
    return server is not None and bool(server.is_serving or server.sessions or server.queued)


def after_no_answer(memory: Memory) -> Memory:
    """Absences are counted in answers in a row, and this one is missing."""
    return replace(memory, absences={})


def _still_drained(servers: Mapping[str, Seen], memory: Memory, limits: Limits) -> dict[str, str]:
    """Of what we took out, what nobody has touched since."""
    return {
        name: address
        for name, address in memory.drained.items()
        if name in servers
        and servers[name].address == address
        and servers[name].admin & (MAINTENANCE_BIT | DRAIN_BIT) == limits.out_bit
    }


def _leavers(look: _Look, servers: Mapping[str, Seen], limits: Limits) -> Iterator[_Leaver]:
    """The servers that have to go, whether the answer is believed or not."""
    for name, seen in sorted(servers.items()):
        if name in look.gone:
            yield _Leaver(seen, look.gone[name], is_final=True)
        elif name in look.matching:
            if why := look.matching[name].why_leaving:
                yield _Leaver(seen, why, is_final=False)
        elif why := _why_another(name, seen, look, servers):
            yield _Leaver(seen, why, is_final=True)
        elif name in look.absences and not _is_renamed(seen, look):
            held = seen.is_forced_out and name not in look.drained
            if look.absences[name] >= (limits.held_absences if held else limits.absences):
                why = f"EC2 has not listed it {look.absences[name]} times in a row"
                yield _Leaver(seen, why, is_final=True, is_absent=True)


def _why_another(name: str, seen: Seen, look: _Look, servers: Mapping[str, Seen]) -> str:
    """Why a server's name is not its host's any more; "" while that has to be waited for."""
    for host in look.present:
        under = servers.get(host.name)
        if host.name != name and host.address == seen.address and host.is_wanted:
            if under is not None and under.address == host.address and under.is_serving:
                return f"its host is called {host.name} now"
        elif host.name == name and host.address:
            return f"{name} is another host now, {host.address}"
    return ""


def _is_renamed(seen: Seen, look: _Look) -> bool:
    """Whether it serves a host that is yet to serve under its new name."""
    return seen.is_serving and any(h.address == seen.address for h in look.present if h.is_wanted)


def _believed(
    leavers: Sequence[_Leaver], missing: Sequence[str], most: int
) -> tuple[list[_Leaver], tuple[str, ...]]:
    """The leavers, without those that only are missing when too many are ``missing`` and serve."""
    if len(missing) <= most:
        return list(leavers), ()
    note = (
        f"EC2 does not list {len(missing)} servers, and they pass their checks: "
        "the answer is not believed, they stay"
    )
    return [one for one in leavers if not (one.is_absent and one.seen.is_serving)], (note,)


def _drains(
    leavers: Sequence[_Leaver], servers: Mapping[str, Seen], most: int
) -> tuple[list[Order], tuple[str, ...]]:
    """Those that are in rotation; a server whose checks fail loses nothing and comes on top."""
    open_ = [leaver for leaver in leavers if not leaver.seen.is_forced_out]
    serving = [leaver for leaver in open_ if leaver.seen.is_serving]
    down = [leaver for leaver in open_ if not leaver.seen.is_serving]
    in_rotation = sum(seen.is_serving for seen in servers.values())
    room = min(most, max(0, in_rotation - 1))
    names = ", ".join(leaver.seen.server.name for leaver in serving[room : room + 5])
    orders = [
        Order(Kind.DRAIN, leaver.seen.server.name, leaver.seen.address, leaver.why)
        for leaver in [*serving[:room], *down]
    ]
    return orders, (f"not drained yet, so that others serve: {names}",) if names else ()


def _deletes(leavers: Sequence[_Leaver], most: int) -> list[Order]:
    """Those that are out of rotation and idle, and whose host does not come back."""
    ready = [
        leaver
        for leaver in leavers
        if leaver.is_final and leaver.seen.is_forced_out and leaver.seen.is_idle
    ]
    return [
        Order(Kind.DELETE, leaver.seen.server.name, leaver.seen.address, leaver.why)
        for leaver in ready[:most]
    ]
