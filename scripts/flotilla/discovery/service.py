"""The service: ask EC2 every few seconds, let the rule decide, act, read back, say what was done.

Killed at any moment it goes on from what HAProxy has. Remembered are only which servers it drained
itself, written before the drain, and which instances they lead to.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from flotilla import files
from flotilla.discovery.balancer import Balancer, Places
from flotilla.discovery.certificates import Certificates
from flotilla.discovery.source import Ec2, Metrics
from flotilla.errors import FlotillaError
from flotilla.hosts import haproxy
from flotilla.rules.discovery import (
    HELD_LIFECYCLE,
    Host,
    Limits,
    Memory,
    Order,
    after_no_answer,
    decide,
    released,
)
from flotilla.rules.lb_certificate import Certificate

# Between two looks at HAProxy, each of which saves the servers' states: what a crash may forget.
TURN_SECONDS = 0.25
# Two load balancers that ask at the same moment are throttled together: each waits a bit longer or
# shorter every time.
JITTER = 0.2
# Answers that fail one after the other are asked for ever more rarely, up to so many times.
SLOWEST = 4
CHANGES_KEPT = 20

log = logging.getLogger("flotilla.discovery")


class Source(Protocol):
    """Where hosts are listed."""

    def hosts(self) -> list[Host]:
        """All of them; raises anything rather than leave one out."""

    def let_go(self, host: Host) -> bool:
        """Let Auto Scaling end a host that it holds back; whether it had been waiting."""


@dataclass(slots=True)
class Report:
    """What `fab fleet.status` reads: times in seconds since the epoch, 0 for never.

    ``trouble`` is why nothing is followed now, "" if it is; ``notes`` what was left undone for
    safety; ``changes`` the last orders, newest first: {"at", "kind", "name", "address", "why"};
    ``certificates`` are those in use.
    """

    at: float = 0.0
    answered_at: float = 0.0
    hosts: int = 0
    servers: int = 0
    trouble: str = ""
    notes: tuple[str, ...] = ()
    changes: tuple[dict[str, Any], ...] = ()
    certificates: tuple[Certificate, ...] = ()


class Service:
    """One turn after the other. ``clock`` is monotonic, ``now`` in seconds since the epoch."""

    def __init__(
        self,
        source: Source,
        balancer: Balancer,
        folder: Path,
        *,
        every: float,
        limits: Limits,
        certificates: Certificates | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._source, self._balancer = source, balancer
        self._memory_file, self._report_file = folder / "memory.json", folder / "report.json"
        self._every, self._limits, self._certificates = every, limits, certificates
        self._clock, self._now, self._chance = clock, now, chance
        self._pool = ThreadPoolExecutor(1, "ec2")
        self._answer: Future[list[Host]] | None = None
        self._due = clock()
        self._failures = 0
        kept = _read(self._memory_file)
        self._memory = Memory({}, kept.get("drained", {}), kept.get("instances", {}))
        self._report = Report(changes=tuple(_read(self._report_file).get("changes", ())))
        self._said: str | None = None

    def turn(self) -> None:
        """Look at HAProxy; act when a new answer of EC2 is there. Raises nothing of ours."""
        try:
            self._balancer.save_states()
        except (FlotillaError, OSError) as error:
            self._tell(f"HAProxy cannot be asked: {error}")
            return
        if self._answer is None and self._clock() >= self._due:
            self._answer = self._pool.submit(self._source.hosts)
        if self._answer is not None and self._answer.done():
            answer, self._answer = self._answer, None
            self._round(answer)
            pause = self._every * min(2**self._failures, SLOWEST)
            self._due = self._clock() + pause * (1 + JITTER * (2 * self._chance() - 1))

    def _round(self, answer: Future[list[Host]]) -> None:
        try:
            hosts = answer.result()
        except Exception as error:  # whatever it was, half an answer is none
            self._failures += 1
            self._memory = after_no_answer(self._memory)
            self._tell(f"EC2 gave no answer: {error}")
            return
        self._failures = 0
        if self._certificates:
            self._report.certificates = self._certificates.look()
        try:
            notes = self._follow(hosts)
        except (FlotillaError, OSError) as error:
            self._tell(f"not followed: {error}")
            return
        self._report.answered_at = self._now()
        self._report.hosts = sum(host.is_wanted for host in hosts)
        self._report.notes = tuple(notes)
        self._tell("")

    def _follow(self, hosts: Sequence[Host]) -> list[str]:
        out_bit = self._balancer.out_bit()
        limits = replace(self._limits, out_bit=out_bit)
        decision = decide(hosts, self._balancer.servers(), self._memory, limits)
        if replace(decision.memory, absences={}) != replace(self._memory, absences={}):
            kept = {name: dict(getattr(decision.memory, name)) for name in ("drained", "instances")}
            files.replace(self._memory_file, json.dumps(kept))
        self._memory = decision.memory
        self._note(decision.orders)
        refused = self._balancer.carry_out(decision.orders, out_bit) if decision.orders else []
        if self._balancer.write_servers():
            log.info("wrote the servers that HAProxy has into its configuration")
        self._report.servers = len(self._balancer.servers())
        self._let_go(hosts)
        return [*decision.notes, *refused]

    def _let_go(self, hosts: Sequence[Host]) -> None:
        """Hosts that are drained everywhere need not wait for the end of the hook's time."""
        if not any(host.lifecycle == HELD_LIFECYCLE for host in hosts):
            return
        for host in released(hosts, self._balancer.everywhere()):
            try:
                if self._source.let_go(host):
                    log.info("let go %s: no load balancer has a request there", host.name)
            except Exception as error:  # the hook's time ends it as well
                log.warning("%s could not be let go: %s", host.name, error)

    def _note(self, orders: Sequence[Order]) -> None:
        # Newest first, so the last one of a server wins.
        last = {c["name"]: (c["kind"], c["address"]) for c in reversed(self._report.changes)}
        for order in orders:
            # A server with open connections is ordered away again and again: once is news.
            if last.get(order.name) != (order.kind.value, order.address):
                change = {"at": self._now(), **asdict(order), "kind": order.kind.value}
                log.info("%(kind)s %(name)s (%(address)s): %(why)s", change)
                self._report.changes = (change, *self._report.changes)[:CHANGES_KEPT]

    def _tell(self, trouble: str) -> None:
        self._report.at, self._report.trouble = self._now(), trouble
        said = trouble or "; ".join(self._report.notes)
        if said != self._said:
            log.info("%s", said or f"following {self._report.hosts} hosts")
        self._said = said
        try:
            files.replace(self._report_file, json.dumps(asdict(self._report)) + "\n")
        except FlotillaError as error:
            log.warning("%s", error)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty when there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def main() -> None:
    """Parse the command line of the unit and run until stopped."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fleet", required=True)
    parser.add_argument("--env", required=True)
    parser.add_argument("--group", required=True, help="Auto Scaling group of the application")
    parser.add_argument("--port", type=int, default=443, help="where the hosts listen")
    parser.add_argument("--every", type=float, default=2.5, help="seconds between two looks")
    parser.add_argument("--most-percent", type=int, default=Limits().most_percent)
    parser.add_argument("--namespace", default="", help="of the metrics; without one, none is put")
    parser.add_argument("--folder", type=Path, default=Path("/var/lib/flotilla-discovery"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Which endpoint and credentials it found is told at INFO, each time they are renewed.
    logging.getLogger("botocore").setLevel(logging.WARNING)
    runtime = haproxy.Runtime("haproxy", haproxy.local(Path(haproxy.SOCKET)))
    service = Service(
        Ec2(options.fleet, options.env, options.group),
        Balancer(runtime, Places(), port=options.port, clock=time.monotonic),
        options.folder,
        every=options.every,
        limits=Limits(most_percent=options.most_percent),
        certificates=Certificates(runtime, Metrics(options.namespace).put),
    )
    while True:
        service.turn()
        time.sleep(TURN_SECONDS)


if __name__ == "__main__":
    main()
