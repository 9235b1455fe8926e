"""How a secret is changed while everybody who uses it goes on: one step after the other.

SSM holds up to three parameters beside the secret, and which of them exist tells how far a rotation
is. There is no other journal: whoever types the command again, on whatever machine, goes on there.

    NAME            what clients use
    NAME.next       the new value, until clients are given it
    NAME.previous   the old value, until no client has it any more
    NAME.refused    the old value, until every server is seen to refuse it

Invariant: servers accept all of NAME, NAME.next and NAME.previous that SSM holds (``accepted``),
and what clients use was accepted by every server before they were given it. A fleet that is
configured, or a host that joins, in the middle of a rotation is therefore right too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

NEXT, PREVIOUS, REFUSED = ".next", ".previous", ".refused"
SUFFIXES = (NEXT, PREVIOUS, REFUSED)
DAY_SECONDS = 86400.0


class Step(StrEnum):
    """The steps of a rotation, in their order."""

    MAKE = "make"
    ACCEPT = "accept"
    SWITCH = "switch"
    MOVE = "move"
    DROP = "drop"
    REFUSE = "refuse"


WORDS: Mapping[Step, str] = {
    Step.MAKE: "store a new value beside the old one",
    Step.ACCEPT: "have every server accept both, and log in with both",
    Step.SWITCH: "make the new value the one that clients are given",
    Step.MOVE: "give it to every client, and read it back from each",
    Step.DROP: "see that nobody else uses it, and take the old value off the servers' list",
    Step.REFUSE: "have every server refuse the old value, see that each does, and forget it",
}


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret that can be rotated: the account it opens, and who has it.

    ``account`` is "" for the application's own account of MySQL, which fleet.yml names. ``users``
    is the role of the hosts that have it, in ``file``; "" where no file of the fleet does.
    """

    role: str
    parameter: str
    account: str
    users: str = ""
    file: str = ""
    sentinels: bool = False  # Sentinels have the account as well
    watchers: bool = False  # the watcher on every server's host holds it in memory
    streams: bool = False  # every replica keeps it, for the stream from its source

    @property
    def key(self) -> str:
        """``<role>/<name>``, as SSM keeps it below ``/<fleet>/<env>/``."""
        return f"{self.role}/{self.parameter}"


ROTATED: Mapping[str, Secret] = {
    "redis-app": Secret("redis", "app_password", "app", "app", "/etc/app/environment"),
    "mysql-app": Secret("mysql", "app_password", "", "app", "/etc/app/environment"),
    "redis-monitor": Secret(
        "redis", "monitor_password", "monitor", "redis", "/etc/redis/flotilla.json", sentinels=True
    ),
    "mysql-monitor": Secret("mysql", "monitor_password", "monitor"),
    "redis-replication": Secret(
        "redis", "replication_password", "replication", "redis", "/etc/redis/flotilla.conf"
    ),
    "redis-sentinel": Secret(
        "redis",
        "sentinel_password",
        "sentinel",
        "redis",
        "/etc/redis/flotilla.json",
        sentinels=True,
    ),
    "mysql-replication": Secret(
        "mysql", "replication_password", "replication", watchers=True, streams=True
    ),
    "mysql-watcher": Secret("mysql", "watcher_password", "flotilla_watcher", watchers=True),
}
# Why each of the others is not, and what there is instead.
NOT_ROTATED: Mapping[str, str] = {
    "mysql-root": "nobody logs in with it: root is known by the operating system's user, and no"
    " server has the value",
    "mysql-backup-keys": "a new key goes before the old ones, which open what they sealed",
    "redis-backup-keys": "a new key goes before the old ones, and no command does that yet",
    "ssh-user-ca": "every certificate of a person is signed again with it",
    "ssh-host-ca": "every certificate of a host is signed again with it",
    "app-secret": "the application takes one key only: another one ends every user's session",
}
INSTEAD = {"mysql-backup-keys": "fab backup.rotate-key"}


@dataclass(frozen=True, slots=True, repr=False)
class Held:
    """What SSM holds of one secret; None for a parameter that is not there. No repr: no logs."""

    current: str
    next: str | None = None
    previous: str | None = None
    refused: str | None = None

    @property
    def is_rotating(self) -> bool:
        """Whether a rotation has begun and not ended."""
        return any(value is not None for value in (self.next, self.previous, self.refused))


@dataclass(frozen=True, slots=True, repr=False)
class Write:
    """One change of a parameter, ``value`` None to delete it; ``suffix`` "" is the secret."""

    suffix: str
    value: str | None


def accepted(held: Held) -> tuple[str, ...]:
    """What servers accept, the newest first: one value, or two in the middle of a rotation."""
    values = (held.next, held.current, held.previous if held.refused is None else None)
    return tuple(dict.fromkeys(value for value in values if value is not None))


def objection(held: Held) -> str | None:
    """Why these parameters cannot be what a rotation left; None when they can."""
    around = (held.next is not None, held.previous is not None, held.refused is not None)
    if around == (True, True, False) and held.current not in {held.next, held.previous}:
        return f"it is neither what {NEXT} nor what {PREVIOUS} says"
    if around == (False, True, True) and held.previous != held.refused:
        return f"{PREVIOUS} and {REFUSED} differ"
    if around in {(True, False, True), (True, True, True)}:
        return f"{NEXT} and {REFUSED} are both there"
    if around in {(False, True, False), (False, False, True), (False, True, True)} and (
        held.current in {held.previous, held.refused}
    ):
        return "it is the old value again"
    return None


def ahead(held: Held) -> tuple[Step, ...]:
    """The steps that are left, all of them where no rotation is under way."""
    if held.refused is not None:
        first = Step.REFUSE if held.previous is None else Step.DROP
    elif held.previous is not None:
        first = Step.MOVE if held.next is None else Step.SWITCH
    else:
        first = Step.MAKE if held.next is None else Step.ACCEPT
    steps = tuple(Step)
    return steps[steps.index(first) :]


def writes(step: Step, held: Held, new: str = "") -> list[Write]:
    """What a step changes in SSM, in this order: after each of them the invariant holds.

    ``new`` is for MAKE. A step that was cut off has what is left of its list.
    """
    if step is Step.MAKE:
        return [Write(NEXT, new)]
    if step is Step.SWITCH and held.next is not None:
        keep = [Write(PREVIOUS, held.current)] if held.previous is None else []
        put = [Write("", held.next)] if held.current != held.next else []
        return [*keep, *put, Write(NEXT, None)]
    if step is Step.DROP and held.previous is not None:
        keep = [Write(REFUSED, held.previous)] if held.refused is None else []
        return [*keep, Write(PREVIOUS, None)]
    if step is Step.REFUSE:
        return [Write(REFUSED, None)]
    return []


def written(held: Held, write: Write) -> Held:
    """What SSM holds after a write."""
    if write.suffix == "":
        return Held(write.value or "", held.next, held.previous, held.refused)
    values = {NEXT: held.next, PREVIOUS: held.previous, REFUSED: held.refused}
    values[write.suffix] = write.value
    return Held(held.current, values[NEXT], values[PREVIOUS], values[REFUSED])


def gathered(found: Mapping[str, str]) -> dict[str, Held]:
    """By secret what SSM holds of it, from names with their suffixes."""
    own = [name for name in found if not name.endswith(SUFFIXES)]
    return {
        name: Held(found[name], *(found.get(f"{name}{suffix}") for suffix in SUFFIXES))
        for name in own
    }


def also_accepted(found: Mapping[str, str]) -> dict[str, list[str]]:
    """By secret in a rotation what servers accept beside what clients use."""
    also = {
        name: [value for value in accepted(held) if value != held.current]
        for name, held in gathered(found).items()
    }
    return {name: values for name, values in also.items() if values}


def strangers(seen: Mapping[str, Iterable[str]], known: Iterable[str]) -> dict[str, list[str]]:
    """By server, the addresses of sessions that no ``known`` host has; no list is empty."""
    ours = set(known)
    found = {server: sorted(set(addresses) - ours) for server, addresses in seen.items()}
    return {server: addresses for server, addresses in sorted(found.items()) if addresses}


def name_of(role: str, parameter: str) -> str:
    """What an operator calls a secret: ``mysql-app`` for ``mysql/app_password``."""
    short = parameter.removesuffix("_password").removesuffix("_key").replace("_", "-")
    return f"{role}-{short}"


def age_days(changed_at: float, now: float) -> int:
    """Whole days since; never below 0, for clocks differ."""
    return max(0, int((now - changed_at) // DAY_SECONDS))
