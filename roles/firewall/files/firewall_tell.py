#!/usr/bin/python3 -IS
"""Tell the journal what this host's packet filter refused since it was told last.

One line for each refusing rule whose counter grew, as JSON: {refused, chain, packets, since}.
A line for each packet would let any scan fill the journal.

Invariant: a packet is told once. Counters begin anew whenever rules are loaded, so the loader takes
down how far they had come (``note``); only what is refused in the milliseconds between the two is
never told. Cut off between its line and its memory, it tells again.

It runs every few seconds, and what it imports is most of what it costs: pathlib would be a third
more.
"""

# ruff: noqa: PTH105, PTH123

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time

TYPE_CHECKING = False  # typing's own costs more than all the rest
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

RUN = "/run/flotilla-firewall"
# What a look leaves behind: of which table, how far its counters were, what is not told yet.
MEMORY = {"table", "counts", "owed", "since"}
LIST = ("nft", "-j", "list", "table", "inet", "flotilla")


def counted(listed: Mapping[str, Any]) -> tuple[int, dict[str, int]]:
    """The table's handle, another one after each loading, and packets by refusing rule.

    ``listed`` is nft's JSON of the table. A rule is known by its chain and comment.
    """
    table, counts = 0, {}
    for one in listed.get("nftables", ()):
        table = one.get("table", {}).get("handle", table)
        rule = one.get("rule", {})
        expressions = rule.get("expr", ())
        if not any("drop" in part or "reject" in part for part in expressions):
            continue
        name = f"{rule['chain']}: {rule.get('comment', rule['handle'])}"
        for part in expressions:
            if "counter" in part:
                counts[name] = counts.get(name, 0) + part["counter"]["packets"]
    return table, counts


def reckoned(
    before: Mapping[str, Any] | None, table: int, counts: Mapping[str, int], now: float
) -> dict[str, Any]:
    """What is known after a look: {table, counts, owed, since}; ``owed`` is not told yet.

    At the first look nothing is owed: what a host's counters say from before a boot is old.
    """
    if before is None:
        return {"table": table, "counts": dict(counts), "owed": {}, "since": now}
    past = before["counts"] if before["table"] == table else {}
    owed = dict(before["owed"])
    for rule, packets in counts.items():
        was = past.get(rule, 0)
        # Fewer than before: somebody set the counters back by hand.
        if grown := packets - was if packets >= was else packets:
            owed[rule] = owed.get(rule, 0) + grown
    return {"table": table, "counts": dict(counts), "owed": owed, "since": before["since"]}


def lines(state: Mapping[str, Any]) -> list[str]:
    """What is owed, a line a rule."""
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(state["since"]))
    found = []
    for rule, packets in sorted(state["owed"].items()):
        chain, _, refused = rule.partition(": ")
        told = {"refused": refused, "chain": chain, "packets": packets, "since": since}
        found.append(json.dumps(told))
    return found


def look(folder: str, now: float) -> dict[str, Any]:
    """The state after a look at the kernel's counters. A host without our table has none.

    A memory that cannot be read is none: the rules' loader asks here, and must not fail by it.
    """
    try:
        with open(f"{folder}/told.json", encoding="utf-8") as file:
            before = json.load(file)
        if not isinstance(before, dict) or before.keys() != MEMORY:
            before = None
    except (OSError, ValueError):
        before = None
    done = subprocess.run(LIST, capture_output=True, text=True, check=False)
    return reckoned(before, *counted(json.loads(done.stdout or "{}")), now)


def keep(folder: str, state: Mapping[str, Any]) -> None:
    """Remember it until the next boot."""
    fresh = f"{folder}/told.new"
    with open(fresh, "w", encoding="utf-8") as file:
        json.dump(state, file)
    os.replace(fresh, f"{folder}/told.json")


def note(folder: str = RUN) -> None:
    """Take down how far the counters have come: rules are about to be replaced."""
    keep(folder, look(folder, time.time()))


def tell(folder: str = RUN) -> None:
    """Say what was refused since the last time; ``<4>`` makes it a warning to the journal."""
    # The loader's lock: no rules are replaced while we look.
    with open(f"{folder}/lock", "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        now = time.time()
        state = look(folder, now)
        for line in lines(state):
            sys.stdout.write(f"<4>{line}\n")
        sys.stdout.flush()
        keep(folder, state | {"owed": {}, "since": now})


if __name__ == "__main__":
    tell()
