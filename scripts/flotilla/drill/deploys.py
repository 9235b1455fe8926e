"""Deploy back and forth between two versions under mixed traffic, with or without a fault.

Nothing of it asks where it runs. Whatever a run leaves behind (a host out of rotation, an old
lock) is mended before the next one, with clients at work, and their failed requests count too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from flotilla import ansible, deploy, release, scale
from flotilla.aws import edge
from flotilla.aws.artifacts import Artifacts
from flotilla.deploy.survey import look
from flotilla.drill import faults, spoilt
from flotilla.drill.commands import typed
from flotilla.errors import BadOption, FlotillaError, Refused
from flotilla.rules import drill as rules
from flotilla.rules.deploy import Options as Roll
from flotilla.rules.release import default_version, key
from flotilla.settings import Settings
from flotilla.traffic import MIX, Background
from flotilla.wait import DeadlineError, until
from flotilla.words import counted

Say = Callable[[str], None]

# New clients open connections, and servers new threads: that is no part of a comparison.
WARM_SECONDS = 4.0
MEND_SECONDS = 120.0
_STICKY = "haproxy_edge_sticky_enabled"
_MENDING = "mending"


@dataclass(frozen=True, slots=True)
class Options:
    """What to rehearse. ``versions``: two to go between; empty: what runs, and a new build of it.

    ``bad`` is a release to use instead of a spoilt one, ``hosts`` how many application hosts there
    shall be meanwhile (None: as there are), ``calm_seconds`` how long before and after is measured.
    """

    runs: int = 1
    rate: float = 100.0
    fault: str | None = None
    versions: tuple[str, ...] = ()
    bad: str | None = None
    sticky: bool = False
    hosts: int | None = None
    calm_seconds: float = 10.0
    mix: Mapping[str, int] = field(default_factory=lambda: dict(MIX))

    def demand(self) -> None:
        """Raise BadOption for what cannot be rehearsed."""
        why = ""
        if self.fault is not None and self.fault not in rules.FAULTS:
            why = f"there is no fault {self.fault!r}; choose from: {', '.join(rules.FAULTS)}"
        elif self.runs < 1 or self.rate <= 0 or self.calm_seconds <= 0:
            why = f"runs {self.runs}, rate {self.rate:g} and calm {self.calm_seconds:g} are above 0"
        elif self.versions and len(set(self.versions)) != 2:
            why = f"{len(set(self.versions))} versions are named; it goes between two"
        if why:
            raise BadOption(why, untouched="Nothing was changed", next="fab --help drill.deploy")


def described(settings: Settings, options: Options) -> str:
    """The plan for people."""
    fault = rules.FAULTS[options.fault] if options.fault else None
    number = counted(options.runs, "deploy")
    extra = [f"{options.hosts} application hosts meanwhile"] if options.hosts else []
    extra += ["clients kept on a server by a cookie"] if options.sticky else []
    extra += [f"fault {fault.name}: {fault.about}"] if fault else []
    return "\n".join(
        [
            f"Drill on {settings.prefix}: {number} at {options.rate:g} requests/s",
            *(f"  {line}" for line in extra),
        ]
    )


def deploys(
    settings: Settings, options: Options, *, said: Say, outside: faults.Outside | None = None
) -> dict[str, Any]:
    """Rehearse; {runs, fault, served, failed, ..., each, broken}, see ``rules.drill``.

    ``broken`` names the promises that were not kept. Raises BadOption and Refused with nothing
    changed, FlotillaError when the fleet could not be brought back to one version.
    """
    options.demand()
    fault = rules.FAULTS[options.fault] if options.fault else None
    if fault:
        faults.demand(fault.name, outside, settings.env)
    each: list[dict[str, Any]] = []
    with ExitStack() as undo:
        if options.hosts is not None:
            undo.enter_context(scale.at(settings, options.hosts, said=said))
        if options.sticky:
            undo.enter_context(_sticky(settings, said))
        drill = _Drill(settings, options, fault, said, outside)
        drill.demand_rate()
        hosts = drill.count()
        for number in range(options.runs):
            each.append(drill.run(number))
            said(_line(number, options.runs, each[-1]))
        drill.leave()
    broken = [
        f"run {number}: {why}"
        for number, run in enumerate(each, 1)
        for why in rules.broken(run, fault)
    ]
    told = {"runs": len(each), "fault": options.fault, "rate": options.rate}
    shape = {"hosts": hosts, "sticky": options.sticky}
    return told | shape | rules.over_all(each) | {"broken": broken, "each": each}


class _Drill:
    """One drill on its way: the two versions, and which of them runs."""

    def __init__(
        self,
        settings: Settings,
        options: Options,
        fault: rules.Fault | None,
        said: Say,
        outside: faults.Outside | None,
    ) -> None:
        self._settings = settings
        self._options = options
        self._fault = fault
        self._said = said
        self._outside = outside
        self._stamp = default_version(datetime.now(UTC))
        self._url = edge.url(settings)
        self._first = self._current()
        self._versions = self._chosen()
        self._bad = self._spoilt() if fault else None

    def count(self) -> int:
        """How many application hosts there are."""
        return len(self._look())

    def demand_rate(self) -> None:
        """Raise Refused where the fleet does not serve so many requests with nothing done to it.

        Two cores did not serve 200 a second: every server was down by its health checks, and what
        was measured was that.
        """
        with Background(*self._clients()) as traffic:
            time.sleep(WARM_SECONDS)
            seen = traffic.stop()
        if why := rules.overload(seen):
            rate = self._options.rate
            raise Refused(
                f"the fleet does not keep up with {rate:g} requests/s: {why} in"
                f" {seen['seconds']:.0f} s, before anything was done",
                "a drill would show that, and not how a deploy goes",
                "No host was touched",
                f"fab drill.deploy --rate {max(round(rate / 2), 1)}",
            )

    def _clients(self) -> tuple[str, ...]:
        mix = ",".join(f"{kind}={weight}" for kind, weight in self._options.mix.items())
        return "--url", self._url, "--rate", f"{self._options.rate:g}", "--mix", mix, "--verify"

    def run(self, number: int) -> dict[str, Any]:
        """One deploy under traffic."""
        options, current = self._options, self._current()
        version = self._bad or next(one for one in self._versions if one != current)
        with Background(*self._clients()) as traffic:
            time.sleep(WARM_SECONDS)
            traffic.mark(rules.BEFORE)
            time.sleep(options.calm_seconds)
            traffic.mark(rules.DURING)
            begun = time.monotonic()
            ended, moment = self._deployed(version, number)
            wall = time.monotonic() - begun
            if self._fault:
                traffic.mark(_MENDING)
                self._mend(current if self._fault.is_bad_release else version)
            traffic.mark(rules.AFTER)
            time.sleep(options.calm_seconds)
            seen = traffic.stop()
        return rules.figures(seen, ended, wall) | {"struck_at": moment}

    def leave(self) -> None:
        """Deploy what ran before the drill, unless the operator chose what is to run."""
        if self._options.versions or self._current() == self._first:
            return
        self._said(f"back to {self._first}, which ran before the drill")
        # A fault may have kept us from giving the lock back.
        ended = _deploy(self._settings, self._first, self._said, take_over=True)
        if ended["result"] not in {"done", "nothing to do"}:
            raise FlotillaError(
                f"the fleet runs a release of the drill: {ended['reason']}",
                next=f"fab deploy.run --version {self._first}",
            )

    def _deployed(self, version: str, number: int) -> tuple[dict[str, Any], str]:
        """How the deploy ended, and where in it the fault struck."""
        if self._fault is None:
            return _deploy(self._settings, version, self._said), ""
        strike = faults.strike_of(self._fault.name, number)
        with faults.site(self._settings, self._outside) as site, faults.struck(site, strike) as at:
            if self._fault.name == "operator-kill":
                ended = _killed_and_resumed(self._settings, version, site)
            else:
                ended = _deploy(self._settings, version, self._said)
        if strike and not at:
            raise faults.missed(str(ended["result"]), str(ended["reason"]))
        return ended, at[0] if at else ""

    def _mend(self, good: str) -> None:
        """Wait until every host serves; when that does not come, bring all to release ``good``."""
        try:
            until(lambda: self._whole() is None, seconds=MEND_SECONDS / 4, every=1.0)
        except DeadlineError:
            self._said(f"mending: {self._whole()}")
            deploy.deploy(
                self._settings,
                good,
                _usual(self._settings, adopt=True),
                confirmed=lambda _: None,
                said=lambda _: None,
                take_over=True,
            )
            try:
                until(lambda: self._whole() is None, seconds=MEND_SECONDS, every=1.0)
            except DeadlineError:
                raise FlotillaError(
                    f"the fleet is not whole after the drill: {self._whole()}",
                    next="fab fleet.status",
                ) from None

    def _whole(self) -> str | None:
        """What keeps the fleet from being one healthy whole; None when nothing does."""
        try:
            hosts = self._look()
        except FlotillaError as error:
            return error.what
        out = [host.name for host in hosts if not all(v.is_serving for v in host.views.values())]
        if out:
            return f"{', '.join(out)} not in rotation everywhere"
        versions = sorted({str(host.version) for host in hosts})
        return None if len(versions) == 1 else f"hosts run {', '.join(versions)}"

    def _look(self) -> tuple[Any, ...]:
        with deploy.connect(self._settings) as (world, zones):
            return look(world, zones).hosts

    def _current(self) -> str:
        """The version that all hosts run. Raises Refused when there is no such one."""
        if why := self._whole():
            raise Refused(
                f"the fleet is not whole: {why}",
                why="a drill begins and ends with every host serving the same release",
                untouched="Nothing was changed",
                next="fab fleet.status; fab deploy.run --adopt",
            )
        return str(self._look()[0].version)

    def _chosen(self) -> tuple[str, ...]:
        if self._options.versions:
            return self._options.versions
        version = f"drill-{self._stamp}"
        return (self._first, release.publish(self._settings, version).release.version)

    def _spoilt(self) -> str | None:
        """The release that is bad in the way of the fault; None when the fault is another thing."""
        kind = self._options.fault
        if kind is None or kind not in spoilt.CHANGED:
            return None
        if self._options.bad:
            return self._options.bad
        good = self._versions[-1]
        path = self._settings.scratch / "artifacts" / f"drill-{good}.tar.gz"
        store = Artifacts(self._settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        store.fetch(f"s3://{store.bucket}/{key(good)}", path)
        return spoilt.publish(self._settings, kind, path, f"drill-{kind}-{self._stamp}")


def _usual(settings: Settings, *, adopt: bool = False) -> Roll:
    """As fleet.yml says."""
    chosen = settings.deploy
    return Roll(tuple(chosen.batches), chosen.floor_percent, adopt=adopt)


def _deploy(
    settings: Settings, version: str, said: Say, *, take_over: bool = False
) -> dict[str, Any]:
    """The outcome, or how it was refused, in the same shape."""
    begun = time.monotonic()
    try:
        return deploy.deploy(
            settings,
            version,
            _usual(settings),
            confirmed=lambda _: None,
            said=lambda step: said(
                f"  {step.host} {step.name} ... {step.error or 'ok'} {step.seconds:.1f} s"
            ),
            take_over=take_over,
        ).as_dict()
    except deploy.Interrupted:
        # The operator means the drill; the deploy has brought the hosts back already.
        raise
    except FlotillaError as error:
        return _not_ended(
            version, error.what, begun, "refused" if isinstance(error, Refused) else ""
        )


def _not_ended(version: str, reason: str, begun: float, result: str = "") -> dict[str, Any]:
    seconds = round(time.monotonic() - begun, 2)
    return {"version": version, "result": result or "failed", "reason": reason, "seconds": seconds}


def _killed_and_resumed(settings: Settings, version: str, site: faults.Site) -> dict[str, Any]:
    """A deploy as typed, which somebody kills; then the one that takes it up again."""
    begun = time.monotonic()
    with typed(settings, "deploy.run", "--version", version, "--yes", "--json") as process:
        site.pid = process.pid
        process.communicate()
    with typed(settings, "deploy.resume", "--take-over", "--yes", "--json") as process:
        output, _ = process.communicate()
    try:
        told: dict[str, Any] = json.loads(output)
    except ValueError:
        return _not_ended(version, f"exit code {process.returncode}, no report", begun)
    if "error" in told:
        return _not_ended(version, str(told["error"]["what"]), begun)
    return told | {"seconds": round(time.monotonic() - begun, 2)}


@contextmanager
def _sticky(settings: Settings, said: Say) -> Iterator[None]:
    """Load balancers keep clients on a server by a cookie, for as long as the block lasts."""
    _balancers(settings, said, {_STICKY: True})
    try:
        yield
    finally:
        _balancers(settings, said, None)


def _balancers(settings: Settings, said: Say, variables: Mapping[str, Any] | None) -> None:
    """Configure the load balancers, with variables that only this run has."""
    playbook = ansible.Playbook("site", limit="lb,localhost", variables=variables)
    said(f"load balancers: {dict(variables) if variables else 'as they were'}")
    run = ansible.run(settings, playbook, say=lambda _: None)
    if error := ansible.failure(run, env=settings.env):
        raise error


def _line(number: int, runs: int, run: Mapping[str, Any]) -> str:
    p99 = run["p99_ms"]
    return (
        f"[{number + 1}/{runs}] {run['version']} {run['result']} in {run['seconds']:.1f} s: "
        f"served {run['served']}, failed {run['failed']}, retried {run['retried']}, "
        f"p99 {p99[rules.BEFORE]} -> {p99[rules.DURING]} ms"
    )
