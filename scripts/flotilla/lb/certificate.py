"""What the load balancers serve on port 443, and have them order a new certificate now."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any
from uuid import uuid4

from flotilla.aws.session import client, described
from flotilla.errors import FlotillaError, HostFailed, Refused
from flotilla.hosts.haproxy import Runtime, over_ssh
from flotilla.hosts.ssh import Runner
from flotilla.lb.reach import reached
from flotilla.lock import Lock
from flotilla.mysql.recorded import Confirmed, Said, Steps, recorded
from flotilla.replace.pair import ROLE
from flotilla.rules import lb_certificate as rules
from flotilla.rules.acme import CUT_OFF, Attempts, Request
from flotilla.rules.lb_certificate import Certificate
from flotilla.settings import Settings
from flotilla.wait import DeadlineError, until
from flotilla.who import holder

COMMAND = "fab lb.certificate --order"
# Its own: whoever has to move the address cannot wait for an authority.
LOCK = "certificate"
REPORT = "/var/lib/flotilla-certificate/report.json"
LOGS = "fab fleet.logs lb --unit flotilla-certificate"
# Load balancers look every 5 s; an order takes some 20 s, and minutes where the authority is slow.
TAKEN_SECONDS, ORDER_SECONDS, SERVED_SECONDS = 45.0, 480.0, 45.0
EVERY_SECONDS = 1.0


def seen(settings: Settings, *, now: Callable[[], float] = time.time) -> dict[str, Any]:
    """{domain, acme, members: [{name, certificates: [{serial, issuer, names, file, days_left}],
    trouble, order, order_at, failed}], problems, next}; JSON types.

    ``order`` says when and why the next one is ordered, "" where nobody orders. Raises Unreachable.
    """
    with reached(settings) as (runner, snapshot):
        names = [host.name for host in snapshot.by_role(ROLE)]
        return board(settings, runner, names, now())


def board(settings: Settings, runner: Runner, names: list[str], now: float) -> dict[str, Any]:
    """The same of load balancers that can be asked."""
    served = {name: Runtime(name, over_ssh(runner, name)).certificates() for name in names}
    reports = {name: _report(settings, runner, name) for name in names}
    problems = [finding.what for finding in rules.findings(served, now)]
    problems += [f"{n} serves no certificate" for n, found in served.items() if not found]
    problems += [f"{n}: {r['trouble']}" for n, r in reports.items() if r.get("trouble")]
    failed = {report["failed"] for report in reports.values() if report.get("failed")}
    problems += [f"the last order brought nothing: {why}" for why in sorted(failed)]
    return {
        "domain": settings.domain,
        "acme": settings.lb.acme.directory if settings.lb.acme else None,
        "members": [
            {
                "name": name,
                "certificates": [_shown(one, now) for one in served[name]],
                "trouble": reports[name].get("trouble", ""),
                "failed": reports[name].get("failed", ""),
                "order": reports[name].get("order", ""),
                "order_at": reports[name].get("order_at", 0.0),
            }
            for name in names
        ],
        "problems": problems,
        "next": LOGS if problems and settings.lb.acme else "",
    }


def order(settings: Settings, *, confirmed: Confirmed, said: Said) -> dict[str, Any]:
    """Have one ordered and served by all: {changed, hosts, old, new, seconds}.

    Raises Refused with nothing changed where nobody orders, HostFailed where it was not given, or
    not taken up: what is served stays.
    """
    if settings.lb.acme is None:
        raise Refused(
            "fleet.lb.acme is null: the load balancers do not order certificates",
            f"who stores one in {settings.lb.certificate_parameter or 'SSM'} renews it"
            if settings.lb.certificate_parameter
            else "",
            "Nothing was changed",
            "set fleet.lb.acme, then fab fleet.configure --limit lb",
        )
    with reached(settings) as (runner, snapshot):
        names = [host.name for host in snapshot.by_role(ROLE)]
        confirmed(
            f"{settings.prefix}: a certificate for {settings.domain} is ordered from"
            f" {settings.lb.acme.directory}, and {' and '.join(names)} serve it; no connection is"
            " cut. Authorities limit how many are given for a name in a week"
        )
        with (
            Lock(settings, LOCK, reason=COMMAND) as lock,
            recorded(settings, COMMAND, said, total=3) as steps,
        ):
            run = Order(settings, runner, names, steps, guard=lock.check)
            steps.result = run.run()
        return steps.result


class Order:
    """Asks the load balancers for an order, and sees it through."""

    def __init__(
        self,
        settings: Settings,
        runner: Runner,
        names: list[str],
        steps: Steps,
        *,
        guard: Callable[[], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._runner, self._names = settings, runner, names
        self._steps, self._guard, self._now = steps, guard, now

    def run(self) -> dict[str, Any]:
        """As ``order``, without the question."""
        began = time.monotonic()
        old = self._serials()
        mine = Request(uuid4().hex, holder().rpartition(":")[0], self._now())
        self._guard()
        with self._steps.step("ask for it"):
            self._put(mine)
            self._taken_up(mine)
        with self._steps.step("order"):
            self._demand_given(mine)
        with self._steps.step(f"serve on {' and '.join(self._names)}"):
            new = self._demand_served(old)
        return {
            "changed": True,
            "hosts": self._names,
            "old": sorted(set(old.values()) - {""}),
            "new": new,
            "seconds": round(time.monotonic() - began, 1),
        }

    def _taken_up(self, mine: Request) -> None:
        try:
            until(
                lambda: self._attempts().request == mine.id,
                seconds=TAKEN_SECONDS,
                every=EVERY_SECONDS,
            )
        except DeadlineError:
            self._put(Request())
            raise HostFailed(
                f"no load balancer began to order within {TAKEN_SECONDS:.0f} s",
                "the one that has the address does it; the request was taken back",
                "The certificate that is served stays",
                LOGS,
            ) from None

    def _demand_given(self, mine: Request) -> None:
        def ended() -> Attempts | None:
            found = self._attempts()
            return None if found.request == mine.id and found.why == CUT_OFF else found

        try:
            found = until(ended, seconds=ORDER_SECONDS, every=EVERY_SECONDS)
        except DeadlineError:
            why = f"it did not end within {ORDER_SECONDS:.0f} s"
        else:
            why = found.why if found.failures else ""
        if why:
            raise HostFailed(
                f"no new certificate: {why}", "", "The certificate that is served stays", LOGS
            )

    def _demand_served(self, old: dict[str, str]) -> str:
        def new() -> str:
            found = set(self._serials().values())
            return found.pop() if len(found) == 1 and not found & set(old.values()) else ""

        try:
            return until(new, seconds=SERVED_SECONDS, every=EVERY_SECONDS)
        except DeadlineError:
            now = ", ".join(f"{name} {serial}" for name, serial in self._serials().items())
            raise HostFailed(
                f"it is ordered and stored, and not served by all: {now}",
                "the old one would come back with the address",
                next=LOGS,
            ) from None

    def _serials(self) -> dict[str, str]:
        runtimes = {name: Runtime(name, over_ssh(self._runner, name)) for name in self._names}
        found = {name: runtime.certificates() for name, runtime in runtimes.items()}
        return {name: one[0].serial if one else "" for name, one in found.items()}

    def _attempts(self) -> Attempts:
        name = self._settings.parameter(ROLE, "acme/attempts")
        with described(self._settings, f"read {name}"):
            found = client(self._settings, "ssm").get_parameters(Names=[name])["Parameters"]
        return Attempts(**json.loads(found[0]["Value"])) if found else Attempts()

    def _put(self, request: Request) -> None:
        name = self._settings.parameter(ROLE, "acme/request")
        with described(self._settings, f"store {name}"):
            client(self._settings, "ssm").put_parameter(
                Name=name, Value=json.dumps(asdict(request)), Type="String", Overwrite=True
            )


def _report(settings: Settings, runner: Runner, name: str) -> dict[str, Any]:
    """What the service on a load balancer said last; {} where there is none."""
    if settings.lb.acme is None:
        return {}
    try:
        found = json.loads(runner.run(name, f"cat {REPORT}", sudo=True).stdout)
    except (FlotillaError, ValueError) as error:
        why = error.what if isinstance(error, FlotillaError) else str(error)
        return {"trouble": f"flotilla-certificate has said nothing: {why}"}
    return found if isinstance(found, dict) else {}


def _shown(one: Certificate, now: float) -> dict[str, Any]:
    return {
        "serial": one.serial,
        "issuer": one.issuer,
        "names": one.names,
        "file": one.file,
        "days_left": round((one.ends_at - now) / rules.DAY, 1),
    }
