"""Strike the load balancer that has the address, again and again, while clients ask.

Nothing of it asks where it runs. A run begins and ends with the pair in order: the address with the
one VRRP master, and the other one ready.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Self

from flotilla import inventory
from flotilla.aws import edge
from flotilla.aws.session import client, described
from flotilla.drill import strikes, writes
from flotilla.drill.commands import told as typed
from flotilla.drill.faults import Outside
from flotilla.drill.pair import Pair
from flotilla.drill.strikes import Site, Strike, spared
from flotilla.errors import BadOption, FlotillaError, Refused
from flotilla.hosts.ssh import Runner, prepare
from flotilla.rules import drill_lb as rules
from flotilla.rules.drill_fault import Aim, Ends, Fault, elsewhere
from flotilla.rules.drill_lb import FAULTS
from flotilla.settings import Settings
from flotilla.snapshot import Host, Snapshot
from flotilla.traffic import Background
from flotilla.wait import DeadlineError, until
from flotilla.words import counted

Say = Callable[[str], None]

CALM_SECONDS = 3.0
# After the fault was undone: a second move would come now.
AFTER_SECONDS = 8.0
CONVERGE_SECONDS = 60.0
WHOLE_SECONDS = 60.0
LOOK_SECONDS = 0.25
# A client that waits longer for an answer, or for a connection, asks again.
PATIENCE_SECONDS = 1.0
HELP = "fab --help drill.lb"
UNIT = "haproxy.service"


@dataclass(frozen=True, slots=True)
class Options:
    """What to rehearse: a fault, how often, under how many requests a second."""

    fault: str
    runs: int = 1
    rate: int = 50

    def demand(self) -> None:
        """Raise BadOption for what cannot be rehearsed."""
        writes.demand(FAULTS, self.fault, runs=self.runs, writers=1, next_=HELP)
        # 10 a second is as coarse as a tenth of a second; a thousand is the generator's limit.
        if not 10 <= self.rate <= 1000:
            raise BadOption(
                f"rate {self.rate} is 10 to 1000 requests a second",
                untouched="Nothing was changed",
                next=HELP,
            )


def described_plan(settings: Settings, options: Options) -> str:
    """The plan for people."""
    about, page = FAULTS[options.fault].about, settings.application.health_path
    return "\n".join(
        [
            f"Drill on {settings.prefix}: {counted(options.runs, 'time')}, {about}",
            f"  {options.rate} requests a second to {page} at the address,",
            f"  half of them on new connections; each waits {PATIENCE_SECONDS:g} s for its answer",
            "  a host that was stopped is started again",
        ]
    )


def failovers(
    settings: Settings, options: Options, *, said: Say, outside: Outside | None = None
) -> dict[str, Any]:
    """Rehearse; {runs, fault, outage_seconds, served, failed, ..., each, broken}.

    See ``rules.drill_lb``; ``broken`` names the promises that were not kept. Raises BadOption and
    Refused with nothing changed, FlotillaError when the pair could not be seen.
    """
    options.demand()
    fault = FAULTS[options.fault]
    writes.demand_power(fault, outside, settings.env)
    snapshot = inventory.load(settings, max_age_seconds=inventory.max_age(settings), refresh=True)
    prepare(settings, snapshot)
    each: list[dict[str, Any]] = []
    with Runner(settings, snapshot) as runner:
        drill = Drill(settings, snapshot, runner, outside)
        for number in range(options.runs):
            each.append(drill.run(fault, options.rate))
            said(line(number, options.runs, each[-1]))
            if each[-1]["not_mended"]:
                break
    over = rules.over_all(each)
    broken = [
        f"run {number}: {why}"
        for number, run in enumerate(each, 1)
        for why in rules.broken(run, fault)
    ]
    broken += rules.broken_by_all(over, fault, len(each))
    return {
        "runs": len(each),
        "fault": fault.name,
        "rate": options.rate,
        **over,
        "broken": broken,
        "each": each,
    }


class Drill:
    """Runs of one fault on the pair of a fleet."""

    def __init__(
        self, settings: Settings, snapshot: Snapshot, runner: Runner, outside: Outside | None
    ) -> None:
        self._settings, self._snapshot, self._runner = settings, snapshot, runner
        self._outside = outside
        self._hosts: dict[str, Host] = {host.name: host for host in snapshot.by_role("lb")}
        self._pair = Pair(settings, runner, self._hosts)

    def run(self, fault: Fault, rate: int) -> dict[str, Any]:
        """One fault under clients; its figures."""
        self._prepare(fault)
        old = self._whole()
        aim = self._aim(fault, old)
        with self._clients(rate) as traffic, Watch(self._pair) as watch:
            time.sleep(CALM_SECONDS)
            struck = time.time()
            with self._struck(fault, aim):
                converged = self._followed(fault, old, struck)
            if converged is None:
                # Who was cut off may have been our own way to everybody; or nobody was to move.
                converged = self._awaited("")
            time.sleep(AFTER_SECONDS)
            not_mended = self._mended(old)
            report = traffic.stop()
            moves = watch.seen
        seen = rules.Seen(
            traffic=report,
            struck=struck,
            ended=time.time(),
            converged=converged,
            old=old,
            new=moves[-1] if moves else "",
            rate=rate,
            patience_seconds=PATIENCE_SECONDS,
            moves=moves,
        )
        return rules.figures(seen) | {"not_mended": not_mended}

    @contextmanager
    def _clients(self, rate: int) -> Iterator[Background]:
        with Background(
            *("--url", edge.url(self._settings), "--rate", str(rate)),
            *("--mix", "keep-alive=1,close=1", "--page", self._settings.application.health_path),
            *("--timeout", str(PATIENCE_SECONDS)),
        ) as traffic:
            yield traffic

    def _struck(self, fault: Fault, aim: Aim) -> AbstractContextManager[None]:
        site = Site(
            settings=self._settings,
            runner=self._runner,
            unit=UNIT,
            members=self._hosts,
            apps={},
            give=lambda _: None,
            outside=self._outside,
        )
        return strikes.struck(STRIKES, site, fault, aim)

    def _followed(self, fault: Fault, old: str, struck: float) -> float | None:
        """Let the fault last; when all was in order but for ``old``."""
        converged = None
        while time.time() < struck + CONVERGE_SECONDS:
            if fault.ends is Ends.MOVED and converged is None:
                converged = time.time() if not self._disorder(old) else None
            held = time.time() >= struck + fault.hold_seconds
            if held and (converged is not None or fault.ends is not Ends.MOVED):
                break
            time.sleep(LOOK_SECONDS)
        return converged

    def _disorder(self, but: str) -> str:
        try:
            return self._pair.disorder(but)
        except FlotillaError as error:
            return error.what

    def _awaited(self, but: str) -> float | None:
        try:
            until(lambda: not self._disorder(but), seconds=CONVERGE_SECONDS, every=LOOK_SECONDS)
        except DeadlineError:
            return None
        return time.time()

    def _mended(self, old: str) -> str:
        try:
            self._pair.mend(old)
        except FlotillaError as error:
            return error.what
        return ""

    def _whole(self) -> str:
        """Who has the address, all being in order. Raises Refused when it is not."""
        why = ""

        def whole() -> bool:
            nonlocal why
            why = self._disorder("")
            return not why

        try:
            until(whole, seconds=WHOLE_SECONDS, every=1.0)
        except DeadlineError:
            raise Refused(
                f"the load balancers are not in order: {why}",
                why="a drill begins with everything in order, or its figures mean nothing",
                untouched="Nothing was struck",
                next="fab lb.status",
            ) from None
        return next(iter(self._pair.owners()), "")

    def _prepare(self, fault: Fault) -> None:
        """Have the address in a zone without the primary of MySQL, before the zone is struck: that
        one's failover is not what is measured here, and would end with a host that was stopped.
        """
        if fault.name != "zone":
            return
        zones = {name: host.zone for name, host in self._hosts.items()}
        if elsewhere(self._whole(), zones, spared(self._settings, self._snapshot)):
            typed(self._settings, "lb.failover", "--yes")

    def _aim(self, fault: Fault, old: str) -> Aim:
        found = rules.aim(fault, old, {name: host.zone for name, host in self._hosts.items()})
        if isinstance(found, str):
            raise Refused(found, untouched="Nothing was struck", next=HELP)
        return found


class Watch:
    """Who has the address, looked at all the time in a thread; ``seen`` is the order of owners."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._seen: list[str] = []

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def seen(self) -> list[str]:
        """Names, each once for as long as it had the address; "" for none of ours."""
        self._look()
        return [name for name, _ in groupby(self._seen)]

    def _run(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        # EC2 may be away for a moment; while the address is on its way it is with nobody.
        with suppress(FlotillaError):
            self._seen += self._pair.owners()


def line(number: int, runs: int, run: Mapping[str, Any]) -> str:
    """One run for people."""
    converged = run["converged_seconds"]
    return (
        f"[{number + 1}/{runs}] {' -> '.join(run['moves'])}: outage {run['outage_seconds']:.2f} s, "
        f"served {run['served']}, failed {run['failed']}, "
        f"in order after {'never' if converged is None else f'{converged:.1f} s'} "
        f"({run['ended_seconds']:.0f} s)"
    )


# --- faults ---------------------------------------------------------------------------------------


def _signal(unit: str, name: str) -> Strike:
    def strike(site: Site, aim: Aim) -> None:
        site.on(aim.target, f"systemctl kill --kill-whom=all --signal={name} {unit}")

    return strike


def _freeze_haproxy(site: Site, aim: Aim) -> None:
    site.on(aim.target, strikes.thawed_later(UNIT))
    # A unit that systemd has started anew meanwhile runs already: CONT does nothing to it. It fails
    # where there is no process, and then nobody is frozen.
    site.later(aim.target, f"systemctl kill --kill-whom=all --signal=CONT {UNIT} || true")
    _signal(UNIT, "STOP")(site, aim)


def _move_by_hand(site: Site, aim: Aim) -> None:
    host = site.members[aim.target]
    with described(site.settings, f"give the address to {host.name}"):
        ec2 = client(site.settings, "ec2")
        (found,) = ec2.describe_addresses(
            Filters=[{"Name": "tag:Name", "Values": [site.settings.name_of("edge")]}]
        )["Addresses"]
        ec2.associate_address(
            AllocationId=found["AllocationId"],
            InstanceId=host.instance_id,
            AllowReassociation=True,
        )


def _failover(site: Site, _: Aim) -> None:
    typed(site.settings, "lb.failover", "--yes")


STRIKES: Mapping[str, Strike] = {
    "haproxy-kill": _signal(UNIT, "KILL"),
    "haproxy-freeze": _freeze_haproxy,
    "keepalived-kill": _signal("keepalived.service", "KILL"),
    "freeze": strikes.outside("freeze"),
    "stop-instance": strikes.STRIKES["stop-instance"],
    "zone": strikes.STRIKES["zone"],
    "partition": strikes.STRIKES["partition"],
    "both-claim": strikes.outside("cut"),
    "moved-by-hand": _move_by_hand,
    "failover": _failover,
}
