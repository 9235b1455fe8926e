"""Who is the Redis primary: decisions over what the Sentinels and Redis itself say.

Nothing here talks to a host. Two invariants:
- a host is offered to clients as the primary only while its own ROLE says so *and* a majority of
  all configured Sentinels names it: no two hosts at a time, but for the age of the words;
- a host whose data is gone never starts as the primary of hosts that still have theirs: its
  replicas would copy the emptiness. Nor does it start as a replica of a primary that is away, for
  Sentinel might choose it as the next one.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Word:
    """What one Sentinel said: ``names`` an address, or nothing.

    ``silent`` is True when it may be there but did not answer (a timeout, an error); a refused
    connection is no silence: nothing runs there.
    """

    names: str = ""
    silent: bool = False


@dataclass(frozen=True)
class Start:
    """How to start: ``role`` is primary, replica, keep (as Redis itself noted last) or wait."""

    role: str
    primary: str
    reason: str


def majority(hosts: int) -> int:
    """The least number that is more than half of ``hosts``."""
    return hosts // 2 + 1


def named_by_majority(words: Mapping[str, Word]) -> str:
    """The address most Sentinels name, if they are more than half of all; else empty."""
    counted = Counter(word.names for word in words.values() if word.names)
    address, votes = counted.most_common(1)[0] if counted else ("", 0)
    return address if votes >= majority(len(words)) else ""


def start(
    words: Mapping[str, Word],
    *,
    me: str,
    initial: str,
    empty: bool,
    serving: Collection[str] = (),
) -> Start:
    """Rule on the role a starting Redis takes.

    ``words`` has every configured Sentinel by host name, this host's included; ``me`` and
    ``initial`` are addresses, ``initial`` that of the host which is primary in a fleet that never
    had one; ``empty`` says that this host holds no data; ``serving`` are the addresses that are
    named and say that they are the primary.
    """
    found = _start(words, me=me, initial=initial, empty=empty)
    if not empty or found.role != "replica" or found.primary in serving:
        return found
    if all(not word.names for word in words.values()):
        return found  # nobody has data that could be lost
    return Start(
        "wait",
        "",
        f"{found.reason}, and that host is no primary now: this one is empty, and could be chosen"
        " to be the next",
    )


def _start(words: Mapping[str, Word], *, me: str, initial: str, empty: bool) -> Start:
    named = named_by_majority(words)
    if named and named != me:
        return Start("replica", named, f"a majority of the Sentinels names {named}")
    if named and empty:
        return Start(
            "wait",
            "",
            "the Sentinels name this host, but its data is gone: starting empty would empty its "
            "replicas; one of them takes over first",
        )
    if named:
        return Start("primary", me, "a majority of the Sentinels names this host")
    if not empty:
        return Start(
            "keep", "", "no majority of the Sentinels answers; the last known role is kept"
        )
    return _first_start(words, me=me, initial=initial)


def _first_start(words: Mapping[str, Word], *, me: str, initial: str) -> Start:
    others = {word.names for word in words.values() if word.names}
    if others == {me}:
        return Start("wait", "", "a Sentinel names this host, but its data is gone")
    if len(others) == 1:
        (primary,) = others
        return Start("replica", primary, f"the only Sentinels that answer name {primary}")
    if others:
        return Start("wait", "", f"the Sentinels disagree: {', '.join(sorted(others))}")
    silent = sorted(name for name, word in words.items() if word.silent)
    if silent:
        return Start(
            "wait", "", f"no answer from {', '.join(silent)}: somebody may be primary there"
        )
    if me == initial:
        return Start("primary", me, "nobody has ever been primary, and this host is the first")
    return Start("replica", initial, f"nobody has ever been primary; {initial} is the first")


def monitored(words: Mapping[str, Word], *, initial: str, initial_role: str) -> Start:
    """The primary a Sentinel that has no memory starts to watch; ``role`` is replica or wait.

    ``initial_role`` is what ROLE says on the initial host, empty when it does not answer. A
    Sentinel must not remember a primary that never was: that host would find itself named at its
    first start, take its own emptiness for lost data, and wait for ever.
    """
    named = {word.names for word in words.values() if word.names}
    agreed = named_by_majority(words) or (named.pop() if len(named) == 1 else "")
    if agreed:
        return Start("replica", agreed, f"the other Sentinels watch {agreed}")
    silent = sorted(name for name, word in words.items() if word.silent)
    if silent or named:
        return Start(
            "wait", "", f"no agreement, and no answer from {', '.join(silent) or 'nobody'}"
        )
    if initial_role != "master":
        return Start("wait", "", f"{initial} is to be the first primary and is not yet")
    return Start("replica", initial, f"no Sentinel watches anybody yet; {initial} is the first")


def offered(own_role: str, words: Mapping[str, Word], *, me: str) -> tuple[bool, str]:
    """May clients be sent here as to the primary, and why (not).

    ``own_role`` is the first word of ROLE (master, slave), empty when Redis did not answer.
    """
    votes = sum(word.names == me for word in words.values())
    silent = sorted(name for name, word in words.items() if not word.names)
    heard = f"{votes} of {len(words)} Sentinels name this host"
    if silent:
        heard += f" (no word from {', '.join(silent)})"
    if not own_role:
        return False, "Redis on this host does not answer"
    if own_role != "master":
        return False, f"Redis on this host is a replica; {heard}"
    if votes < majority(len(words)):
        return False, f"Redis on this host says it is the primary, but only {heard}"
    return True, heard


def unseen(
    hosts: Mapping[str, str],
    servers: Sequence[Mapping[str, str]],
    sentinels: Sequence[Mapping[str, str]],
    *,
    me: str,
) -> list[str]:
    """The Redis and the Sentinels of ``hosts`` that one Sentinel, of host ``me``, cannot count on.

    ``servers`` and ``sentinels`` are its own rows of them. What it remembers of hosts that are gone
    is nobody's concern.
    """
    up = {row["ip"] for row in servers if _is_up(row)}
    agreeing = {row["ip"] for row in sentinels if _is_up(row)}
    found = [f"Redis of {name}" for name, address in hosts.items() if address not in up]
    return found + [
        f"Sentinel of {name}"
        for name, address in hosts.items()
        if address not in agreeing and name != me
    ]


def _is_up(row: Mapping[str, str]) -> bool:
    return not {"s_down", "o_down", "disconnected"} & set(row["flags"].split(","))


# --- a planned move ------------------------------------------------------------------------------

# How far behind a replica may be when writes are paused for it: some milliseconds of a network.
BEHIND_BYTES = 4 << 20
# Sentinel sends INFO a second after the last answer, while it fails over. Promoted 0.1 to 0.2 s
# after it was told, a replica is seen at once when the last answer was then 0.6 to 0.8 s old.
MOMENT_SECONDS = (0.6, 0.8)


@dataclass(frozen=True)
class Candidate:
    """A replica: whether its link to the primary is up, and how many bytes it lacks."""

    name: str
    address: str
    follows: bool
    behind: int


def candidate(found: Sequence[Candidate], to: str | None) -> Candidate | str:
    """Who is to be primary next: the one that was asked for, else the nearest; or why nobody."""
    known = {one.name: one for one in found}
    if to is not None and to not in known:
        return f"{to} is no replica here; there are {', '.join(sorted(known)) or 'none'}"
    wanted = [known[to]] if to is not None else sorted(found, key=lambda one: one.behind)
    reasons = []
    for one in wanted:
        why = _unfit(one)
        if not why:
            return one
        reasons.append(f"{one.name}: {why}")
    return "; ".join(reasons) or "there is no replica"


def is_moment(age: float) -> bool:
    """Whether to fail over now: ``age`` is of the last INFO that Sentinel has of the replica."""
    first, last = MOMENT_SECONDS
    return first <= age <= last


def unsettled(info: Mapping[str, Any], name: str, chosen: Candidate) -> str:
    """What is not yet as it should be on a host after a move, by its INFO; empty for nothing."""
    if name == chosen.name:
        primary = info["role"] == "master"
        return "" if primary else f"{name} is a replica of {info.get('master_host')}"
    if info.get("master_host") != chosen.address:
        return f"{name} follows {info.get('master_host') or 'nobody'}"
    return "" if info.get("master_link_status") == "up" else f"the link of {name} is down"


def _unfit(one: Candidate) -> str:
    if not one.follows:
        return "its link to the primary is not up"
    if one.behind > BEHIND_BYTES:
        return f"it is {one.behind} bytes behind, {BEHIND_BYTES} are the limit"
    return ""


# --- a rebuild ------------------------------------------------------------------------------------

# A replica whose last word is older does not count as one: what a primary is told by default.
GOOD_LAG_SECONDS = 3


def keep_data(info: Mapping[str, Any], *, named: str, me: str) -> str:
    """Why the data on host ``me`` must not be thrown away now; empty for nothing.

    ``named`` is whom a majority of the Sentinels names, ``info`` its INFO replication.
    """
    if named == me:
        return "a majority of the Sentinels names this host: it is the primary"
    if info["role"] != "master":
        return f"{named} is named by the Sentinels and is no primary"
    replicas = [row for name, row in info.items() if _is_replica(name)]
    good = [
        row
        for row in replicas
        if row["ip"] != me and row["state"] == "online" and int(row["lag"]) <= GOOD_LAG_SECONDS
    ]
    return "" if good else f"no other replica keeps up with {named}: it would refuse writes"


def uncopied(info: Mapping[str, Any]) -> str:
    """What a host still lacks to be a whole copy, by its INFO; empty for nothing.

    Of whom is Sentinel's to say: the primary may be another one by now.
    """
    if info["role"] != "slave":
        return "it follows nobody"
    if info.get("loading") or info.get("master_sync_in_progress"):
        return "the copy is under way"
    if info.get("master_link_status") != "up":
        return "its link to the primary is down"
    if info.get("aof_rewrite_in_progress") or info.get("aof_rewrite_scheduled"):
        return "its append-only file is being written"
    written = info.get("aof_enabled") and info.get("aof_last_bgrewrite_status") == "ok"
    return "" if written else "its append-only file was not written"


# --- a backup and a restore -----------------------------------------------------------------------


def unsaved(info: Mapping[str, Any]) -> str:
    """Why a backup is not taken here, by INFO replication; empty for nothing."""
    if info["role"] != "slave":
        return "this host is the primary; a replica does it"
    if info.get("master_sync_in_progress"):
        return "this host copies its primary"
    return "" if info.get("master_link_status") == "up" else "its link to the primary is down"


def unloaded(info: Mapping[str, Any], keys: int) -> str:
    """Why a start did not bring ``keys`` keys and a primary, by its INFO; empty for nothing.

    What came or expired since the start is not counted.
    """
    if info["loading"]:
        return "Redis was still loading"
    if info["role"] != "master":
        return f"Redis started as a replica of {info.get('master_host')}"
    found = info["rdb_last_load_keys_loaded"]
    return "" if found == keys else f"Redis loaded {found} keys of {keys}"


def has_data(folder: Path) -> bool:
    """Whether a data directory holds anything that Redis would load."""
    return any(folder.glob("appendonlydir/*")) or any(folder.glob("*.rdb"))


def _is_replica(name: str) -> bool:
    return name.startswith("slave") and name[len("slave") :].isdecimal()


# --- TLS ------------------------------------------------------------------------------------------


def reached(text: str, lines: Sequence[str]) -> str:
    """A Sentinel's configuration with ``lines`` for how it is reached, and the rest as it was."""
    ours = ("port", *(line.partition(" ")[0] for line in lines))
    kept = [line for line in text.splitlines() if line.partition(" ")[0] not in ours]
    return "\n".join([*lines, *kept]) + "\n"


def needed(words: Mapping[str, Word], *, me: str) -> str:
    """Why the Sentinel of host ``me`` may not go away for a moment; empty when it may.

    The others have to be a majority without it, and of one mind, so that a primary that dies just
    then is failed over all the same.
    """
    others = {name: word for name, word in words.items() if name != me}
    quiet = sorted(name for name, word in others.items() if not word.names)
    if len(others) - len(quiet) < majority(len(words)):
        return f"without it there would be no majority, for {', '.join(quiet)} does not answer"
    if len({word.names for word in others.values() if word.names}) > 1:
        return "the other Sentinels do not agree who is primary"
    return ""
