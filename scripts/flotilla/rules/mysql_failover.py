"""Rule on an unplanned change of primary: may it begin, who takes over, in which order.

It is decided twice, because positions mean something only once nobody acknowledges any more:
``opening`` says whom to cut from the old primary, and ``promotion`` rules on what was found then.
Whoever resumes a run decides again from the beginning under the same term, until the record names
the new primary; after that only ``completion`` is left. Invariants:

- Nobody is promoted before so many members were cut off that the rest are too few to acknowledge a
  write. The same count proves that every acknowledged write is on a member that was asked.
- Where that count is given up (``accept_loss``), nobody is promoted before the old primary is
  verified to be closed or stopped.
- The new primary holds all that anybody asked received, but for what nobody should have written.
- The record is changed before any member is told to follow or to acknowledge to the new primary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from flotilla.rules.mysql import Refusal
from flotilla.rules.mysql_state import Place, State
from flotilla.rules.mysql_topology import Member, Record, Topology
from flotilla.rules.mysql_verdict import Verdict

_LOOK = "fab mysql.status"


class Act(StrEnum):
    """What a failover does, in the words that journals and people see."""

    REVOKE = "revoke"  # acknowledge to the old primary no more
    FENCE = "fence"  # begin to close or stop the old primary; nobody waits for it here
    POSITIONS = "positions"
    FENCED = "verify fence"
    UNDELAY = "undelay"
    DRAIN = "drain"
    RECORD = "record"
    DETACH = "detach"  # of a drained member: follow nobody
    REPOINT = "repoint"  # the stream only; its applier goes on
    GRANT = "grant"
    VERIFY = "verify"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do to one member, and why. Neighbours with the same act may run at once."""

    act: Act
    member: str
    why: str


class How(StrEnum):
    """How the old primary is closed: by its own server where it answers, else by EC2."""

    SERVER = "server"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class Opening:
    """Whom to cut off, and how many of them must succeed; ``evidence`` is why at all."""

    term: int
    old: Place
    ackers: tuple[str, ...]
    needed: int
    how: How
    evidence: tuple[str, ...]
    steps: tuple[Step, ...]
    accept_loss: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What is known once the steps of an opening were done.

    ``revoked`` have confirmed to be cut off, and positions were read after that; ``kept`` maps the
    others to the reason. ``fenced`` says how the old primary was verified to be closed, "" while it
    is not. ``topology`` is everybody who answered; its ``surplus`` leaves out what is in
    ``errant``, which maps members to the GTIDs that no primary wrote. ``unapplied`` is what a
    member received and has not executed. ``unable`` were tried in this run and failed.
    ``lost`` is what the old primary was last seen to hold and nobody asked has.
    """

    revoked: frozenset[str]
    kept: Mapping[str, str]
    fenced: str
    topology: Topology
    errant: Mapping[str, str] = field(default_factory=dict)
    unapplied: Mapping[str, str] = field(default_factory=dict)
    unable: Mapping[str, str] = field(default_factory=dict)
    lost: str = ""


@dataclass(frozen=True, slots=True)
class Promotion:
    """Who takes over. ``table`` has a line for each member asked: name and why not, "" for fit.

    ``proof`` says why the old primary can acknowledge nothing; ``await_fence``: it is proved only
    once the fence is verified, so the first step waits for that.
    """

    term: int
    old: Place
    new: Member
    followers: tuple[Member, ...]
    proof: str
    table: tuple[tuple[str, str], ...]
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()
    await_fence: bool = False

    @property
    def record(self) -> Record:
        """What the record becomes."""
        return Record(self.term, self.new.instance_id, self.new.uuid)


@dataclass(frozen=True, slots=True)
class Completion:
    """What is left once the record names the new primary; ``left_out`` need a human, with why."""

    term: int
    new: Member
    steps: tuple[Step, ...]
    left_out: Mapping[str, str]


def opening(
    places: Collection[Place],
    state: State,
    verdict: Verdict,
    reachable: Collection[str],
    *,
    me: str,
    now: float,
    wait_for: int = 1,
    accept_loss: bool = False,
    manual: bool = False,
) -> Opening | Refusal:
    """May a failover begin, and with what.

    ``reachable`` are the names that answer, the old primary's among them if it does. ``me`` is the
    lease's holder as the record writes it; ``now`` is epoch seconds. ``manual``: an operator asked
    for it, so a pause does not count and a suspicion is enough; a living primary is never replaced.
    """
    raise NotImplementedError


def promotion(
    opened: Opening, state: State, found: Found, *, wait_for: int = 1
) -> Promotion | Refusal:
    """Who takes over, or why nobody may."""
    raise NotImplementedError


def completion(
    state: State, topology: Topology, *, out: Mapping[str, str], wait_for: int = 1
) -> Completion | Refusal:
    """What is left to do for the primary that the record names. Done again, it does no harm.

    ``out`` maps members that must not follow (diverged, never reached in this run) to the reason.
    """
    raise NotImplementedError
