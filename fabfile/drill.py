"""Rehearsals: do to the fleet what the run-books are for, and measure what clients see."""

from __future__ import annotations

import signal
from typing import Any

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from fabfile._operator import JSON, YES, attempt, confirm, said, show

_FAULTS = (
    "what goes wrong in every deploy: lb-reload, lb-restart, lb-failover, app-kill-in-drain, "
    "app-crash, slow-boot, never-healthy, wrong-version, errors-after-soak, operator-kill, "
    "api-down, host-unreachable"
)


@task(
    help={
        "runs": "deploys, back and forth between two versions (default 1)",
        "rate": "requests a second, keep-alive, close, sticky, slow and POST (default 200)",
        "fault": _FAULTS,
        "versions": "the two versions, comma between (default: what runs, and a new build)",
        "bad": "a release of your own that is bad in the way of --fault",
        "sticky": "load balancers keep clients on a server by a cookie meanwhile",
        "hosts": "scale to so many application hosts first, and back after",
        "calm": "seconds measured before and after each deploy (default 10)",
        "env-confirmed": "the environment's name, when it is not the lab",
        **YES,
        **JSON,
    }
)
def deploy(
    _: Context,
    runs: int = 1,
    rate: int = 200,
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
    attempt(lambda: _meant(settings, plan, env_confirmed, yes=yes), json=json)
    # Faults are undone however it ends: SIGTERM and a closed terminal end it as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    told = attempt(
        lambda: drill.deploys(settings, options, said=said, outside=_outside(settings)), json=json
    )
    show(told, json=json, text=_figures(told))
    if told["broken"]:
        raise Exit("; ".join(told["broken"]), code=1)


def _meant(settings: Any, plan: str, named: str, *, yes: bool) -> None:
    """A drill breaks things: only the environment that is there for it needs no question."""
    from flotilla import environment
    from flotilla.errors import BadOption

    if named and named != settings.env:
        raise BadOption(
            f"--env-confirmed names {named}, but {environment.VARIABLE} chose {settings.env}",
            untouched="Nothing was changed",
            next=f"{environment.VARIABLE}={named} fab drill.deploy --env-confirmed {named}",
        )
    meant = yes or bool(named) or settings.env == environment.DEFAULT
    confirm(plan, yes=meant, again=f"fab drill.deploy --env-confirmed {settings.env}")


def _outside(settings: Any) -> Any:
    """The lab's faults, when the lab's API is the one this environment is run with."""
    from lab import control

    return _Lab() if settings.aws.endpoint_url == control.ENDPOINT else None


class _Lab:
    """Faults of the lab for the drill, with the drill's kind of errors."""

    def strike(self, target: str, kind: str, **options: str) -> None:
        """Break something."""
        self._ask("fault", {"target": target, "kind": kind, "args": options})

    def heal(self) -> None:
        """Undo every fault."""
        self._ask("heal", {})

    def _ask(self, verb: str, body: dict[str, Any]) -> None:
        from flotilla.errors import FlotillaError
        from lab import control
        from lab.errors import LabError

        try:
            control.ask(verb, body)
        except LabError as error:
            raise FlotillaError(str(error), next="fab lab.status") from error


def _figures(told: dict[str, Any]) -> str:
    seconds, p99, late = told["seconds"], told["p99_ms"], told["late_ms"]
    shape = f"{told['runs']} deploys on {told['hosts']} hosts, {told['rate']:g} requests/s"
    counted = (
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
            counted,
            f"seconds  median {seconds['median']}, worst {seconds['worst']}",
            slow,
            f"99 of 100 requests were sent at most {late['during']['worst']} ms late",
            *(f"BROKEN   {why}" for why in told["broken"]),
        ]
    )
