"""Rehearsals: do to the fleet what the run-books are for, and measure what clients see."""

from __future__ import annotations

import signal
from typing import Any

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from fabfile._operator import JSON, attempt, confirm, said, show, typed
from flotilla.words import counted

# Filling a disk copies what is in the directory first.
_SLOWEST_SECONDS = 300.0
_YES = {"yes": "do it without asking, also where it is not the lab that is struck"}
_FAULTS = (
    "what goes wrong in every deploy: lb-reload, lb-restart, lb-failover, app-kill-in-drain, "
    "app-crash, slow-boot, never-healthy, wrong-version, errors-after-soak, operator-kill, "
    "api-down, host-unreachable"
)


@task(
    help={
        "runs": "deploys, back and forth between two versions (default 1)",
        "rate": "requests a second, keep-alive, close, sticky, slow and POST (default 100)",
        "fault": _FAULTS,
        "versions": "the two versions, comma between (default: what runs, and a new build)",
        "bad": "a release of your own that is bad in the way of --fault",
        "sticky": "load balancers keep clients on a server by a cookie meanwhile",
        "hosts": "scale to so many application hosts first, and back after",
        "calm": "seconds measured before and after each deploy (default 10)",
        "env-confirmed": "the environment's name, when it is not the lab",
        **_YES,
        **JSON,
    }
)
def deploy(
    _: Context,
    runs: int = 1,
    rate: int = 100,
    fault: str = "",
    versions: str = "",
    bad: str = "",
    *,
    sticky: bool = False,
    hosts: int = 0,
    calm: int = 10,
    env_confirmed: str = "",
    yes: bool = False,
    json: bool = False,
) -> None:
    """Deploy again and again under mixed traffic: requests served, failed, retried; p99; seconds.

    Runs in the lab without a question. Another environment has to be meant: FLOTILLA_ENV, and
    --env-confirmed NAME or --yes. Exit 0 every promise was kept, 1 one was broken (they are named),
    3 refused and nothing changed, 4 unreachable, 5 bad option.
    """
    from flotilla import config, drill
    from flotilla.drill import Options
    from flotilla.priority import go_behind

    settings = attempt(config.load, json=json)
    options = Options(
        runs=runs,
        rate=float(rate),
        fault=fault or None,
        versions=tuple(part.strip() for part in versions.split(",") if part.strip()),
        bad=bad or None,
        sticky=sticky,
        hosts=hosts or None,
        calm_seconds=float(calm),
    )
    attempt(options.demand, json=json)
    plan = drill.described(settings, options)
    again = typed(
        "drill.deploy",
        runs=runs,
        rate=rate,
        fault=fault,
        versions=versions,
        bad=bad,
        sticky=sticky,
        hosts=hosts or None,
        calm=calm,
        env_confirmed=settings.env,
    )
    attempt(lambda: _meant(settings, plan, env_confirmed, again, yes=yes), json=json)
    go_behind()
    _end_as_by_interrupt()
    told = attempt(
        lambda: drill.deploys(settings, options, said=said, outside=_outside(settings)), json=json
    )
    show(told, json=json, text=_figures(told))
    if told["broken"]:
        raise Exit("; ".join(told["broken"]), code=1)


@task(
    help={
        "fault": "what happens to the primary: kill, freeze, partition, partition-replicas-only, "
        "stop-instance, zone, switchover, restart, disk-full, too-many-connections",
        "runs": "how often, the cluster being put in order in between (default 1)",
        "writers": "clients on every application host, through its own HAProxy (default 2)",
        "stop-seconds": "EC2 takes so long to stop an instance meanwhile (default 0: at once)",
        "env-confirmed": "the environment's name, when it is not the lab",
        **_YES,
        **JSON,
    }
)
def mysql(
    _: Context,
    fault: str = "kill",
    runs: int = 1,
    writers: int = 2,
    stop_seconds: int = 0,
    env_confirmed: str = "",
    *,
    yes: bool = False,
    json: bool = False,
) -> None:
    """Strike the MySQL primary while clients write: seconds without a write, writes lost, who is
    primary afterwards, and whether two servers ever took writes at once.

    Runs in the lab without a question. Another environment has to be meant: FLOTILLA_ENV, and
    --env-confirmed NAME or --yes. Exit 0 every promise was kept, 1 one was broken (they are named),
    3 refused and nothing changed, 4 unreachable, 5 bad option.
    """
    from flotilla import config
    from flotilla.drill import mysql as drill

    settings = attempt(config.load, json=json)
    options = drill.Options(fault, runs, writers, float(stop_seconds))
    attempt(options.demand, json=json)
    plan = drill.described(settings, options)
    again = typed(
        "drill.mysql",
        fault=fault,
        runs=runs,
        writers=writers,
        stop_seconds=stop_seconds or None,
        env_confirmed=settings.env,
    )
    attempt(lambda: _meant(settings, plan, env_confirmed, again, yes=yes), json=json)
    _end_as_by_interrupt()
    told = attempt(
        lambda: drill.failovers(settings, options, said=said, outside=_outside(settings)), json=json
    )
    show(told, json=json, text=_failovers(told))
    if told["broken"]:
        raise Exit("; ".join(told["broken"]), code=1)


@task(
    help={
        "fault": "what happens to the primary: kill, freeze, partition, stop-instance, zone, "
        "switchover, restart",
        "runs": "how often, everything being put in order in between (default 1)",
        "writers": "clients on every application host, through its own HAProxy (default 2)",
        "wait": "replicas that must acknowledge each write before its client counts it (default 0)",
        "env-confirmed": "the environment's name, when it is not the lab",
        **_YES,
        **JSON,
    }
)
def redis(
    _: Context,
    fault: str = "kill",
    runs: int = 1,
    writers: int = 2,
    wait: int = 0,
    env_confirmed: str = "",
    *,
    yes: bool = False,
    json: bool = False,
) -> None:
    """Strike the Redis primary while clients write: seconds without a write, writes lost, who is
    primary afterwards, and whether applications were ever led to two.

    Runs in the lab without a question. Another environment has to be meant: FLOTILLA_ENV, and
    --env-confirmed NAME or --yes. Exit 0 every promise was kept, 1 one was broken (they are named),
    3 refused and nothing changed, 4 unreachable, 5 bad option.
    """
    from flotilla import config
    from flotilla.drill import redis as drill

    settings = attempt(config.load, json=json)
    options = drill.Options(fault, runs, writers, wait)
    attempt(options.demand, json=json)
    plan = drill.described(settings, options)
    again = typed(
        "drill.redis",
        fault=fault,
        runs=runs,
        writers=writers,
        wait=wait or None,
        env_confirmed=settings.env,
    )
    attempt(lambda: _meant(settings, plan, env_confirmed, again, yes=yes), json=json)
    _end_as_by_interrupt()
    told = attempt(
        lambda: drill.failovers(settings, options, said=said, outside=_outside(settings)), json=json
    )
    show(told, json=json, text=_failovers(told))
    if told["broken"]:
        raise Exit("; ".join(told["broken"]), code=1)


@task(
    help={
        "fault": "what happens to the one with the address: haproxy-kill, haproxy-freeze, "
        "keepalived-kill, freeze, stop-instance, zone, partition, both-claim, moved-by-hand, "
        "failover",
        "runs": "how often, everything being put in order in between (default 1)",
        "rate": "requests a second, half of them on new connections (default 50)",
        "env-confirmed": "the environment's name, when it is not the lab",
        **_YES,
        **JSON,
    }
)
def lb(
    _: Context,
    fault: str = "haproxy-kill",
    runs: int = 1,
    rate: int = 50,
    env_confirmed: str = "",
    *,
    yes: bool = False,
    json: bool = False,
) -> None:
    """Strike the load balancer that has the address while clients ask: seconds in which nobody was
    served, requests that failed, and whom the address went to.

    Runs in the lab without a question. Another environment has to be meant: FLOTILLA_ENV, and
    --env-confirmed NAME or --yes. Exit 0 every promise was kept, 1 one was broken (they are named),
    3 refused and nothing changed, 4 unreachable, 5 bad option.
    """
    from flotilla import config
    from flotilla.drill import lb as drill

    settings = attempt(config.load, json=json)
    options = drill.Options(fault, runs, rate)
    attempt(options.demand, json=json)
    plan = drill.described_plan(settings, options)
    again = typed("drill.lb", fault=fault, runs=runs, rate=rate, env_confirmed=settings.env)
    attempt(lambda: _meant(settings, plan, env_confirmed, again, yes=yes), json=json)
    _end_as_by_interrupt()
    told = attempt(
        lambda: drill.failovers(settings, options, said=said, outside=_outside(settings)), json=json
    )
    show(told, json=json, text=_outages(told))
    if told["broken"]:
        raise Exit("; ".join(told["broken"]), code=1)


def _end_as_by_interrupt() -> None:
    """Faults are undone however it ends: SIGTERM and a closed terminal end it as Ctrl-C does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


def _meant(settings: Any, plan: str, named: str, again: str, *, yes: bool) -> None:
    """A drill breaks things: only the environment that is there for it needs no question."""
    from flotilla import environment
    from flotilla.errors import BadOption

    if named and named != settings.env:
        raise BadOption(
            f"--env-confirmed names {named}, but {environment.VARIABLE} chose {settings.env}",
            untouched="Nothing was changed",
            next=f"export {environment.VARIABLE}={named}, if that is meant; or {again}",
        )
    meant = yes or bool(named) or settings.env == environment.DEFAULT
    confirm(plan, yes=meant, again=again)


def _outside(settings: Any) -> Any:
    """The lab's faults, when the lab's API is the one this environment is run with."""
    from lab import control

    return _Lab() if settings.aws.endpoint_url == control.ENDPOINT else None


class _Lab:
    """Faults of the lab for the drill, with the drill's kind of errors."""

    def strike(self, target: str, kind: str, **options: str) -> None:
        """Break something."""
        self._ask("fault", {"target": target, "kind": kind, "args": options})

    def heal(self, target: str = "") -> None:
        """Undo the faults of a host, a zone or the API; without a target, every fault."""
        from flotilla.errors import FlotillaError

        failed = self._ask("heal", {"target": target or None})["failed"]
        if failed:
            raise FlotillaError(
                "; ".join(f"{one['kind']} of {one['host']}: {one['error']}" for one in failed),
                next="fab lab.heal",
            )

    def _ask(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        from flotilla.errors import FlotillaError
        from lab import control
        from lab.errors import LabError

        try:
            return control.ask(verb, body, timeout=_SLOWEST_SECONDS)
        except LabError as error:
            raise FlotillaError(str(error), next="fab lab.status") from error


def _figures(told: dict[str, Any]) -> str:
    seconds, p99, late = told["seconds"], told["p99_ms"], told["late_ms"]
    shape = f"{counted(told['runs'], 'deploy')} on {counted(told['hosts'], 'host')}, "
    shape += f"{told['rate']:g} requests/s"
    served = (
        f"served {told['served']}, failed {told['failed']}, retried {told['retried']}; "
        f"{told['acked']} entries acknowledged, {told['lost']} lost"
    )
    slow = (
        f"p99 ms   before {p99['before']['median']} (worst {p99['before']['worst']}), "
        f"during {p99['during']['median']} (worst {p99['during']['worst']})"
    )
    return "\n".join(
        [
            shape + (f", fault {told['fault']}" if told["fault"] else ""),
            served,
            f"seconds  median {seconds['median']}, worst {seconds['worst']}",
            slow,
            f"99 of 100 requests were sent at most {late['during']['worst']} ms late",
            *(f"BROKEN   {why}" for why in told["broken"]),
        ]
    )


def _failovers(told: dict[str, Any]) -> str:
    gap, converged = told["write_gap_seconds"], told["converged_seconds"]
    fates = ", ".join(f"{count} x {fate}" for fate, count in told["old_primary"].items())
    written = (
        f"acknowledged {told['acked']}, lost {told['lost']}; "
        f"told nothing {told['unknown']}, of those there {told['unknown_there']}"
    )
    return "\n".join(
        [
            f"{told['runs']} x {told['fault']}, {told['writers']} writers",
            written,
            f"seconds without a write   median {gap['median']}, worst {gap['worst']}",
            f"  while hosts came back    worst {told['mending_gap_seconds']['worst']}",
            f"two servers at once       worst {told['dual_writable_seconds']['worst']}",
            f"in order again            median {converged['median']}, worst {converged['worst']}",
            f"the old primary           {fates}",
            *(f"BROKEN   {why}" for why in told["broken"]),
        ]
    )


def _outages(told: dict[str, Any]) -> str:
    outage, converged = told["outage_seconds"], told["converged_seconds"]
    return "\n".join(
        [
            f"{told['runs']} x {told['fault']}, {told['rate']} requests/s",
            f"served {told['served']}, failed {told['failed']}, retried {told['retried']}",
            f"seconds without an answer  median {outage['median']}, worst {outage['worst']}",
            f"in order again             median {converged['median']}, worst {converged['worst']}",
            f"the address moved          at most {told['most_moves']} times",
            *(f"BROKEN   {why}" for why in told["broken"]),
        ]
    )
