"""The service on each load balancer: serve what is stored, and order where the address is.

Both follow SSM; the one that has the Elastic IP orders, and an attempt that is written down keeps
the other one from it should the address move meanwhile. Killed at any moment it goes on from what
SSM and HAProxy have.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from flotilla import files
from flotilla.agent.patience import METADATA
from flotilla.aws.lean import Api
from flotilla.aws.own_role import METADATA_URL, OwnRole
from flotilla.certificate.follow import Follower, current
from flotilla.certificate.order import Authority, LimitedError, Orderer, Place
from flotilla.certificate.store import Shared, Store
from flotilla.errors import FlotillaError, HostFailed
from flotilla.hosts import haproxy
from flotilla.rules import acme as rules
from flotilla.rules import haproxy_file
from flotilla.rules.acme import Decision, Issued

# A token is served at most so long after it was stored, and a certificate too.
EVERY_SECONDS = 5.0
JITTER = 0.2
# A write of ours and a read of it may meet different copies in SSM.
AWS_SECONDS = 5.0

log = logging.getLogger("flotilla.certificate")


@dataclass(slots=True)
class Report:
    """What `fab lb.certificate` and `fab fleet.status` read: times in seconds since the epoch.

    ``trouble`` is why the stored certificate is not served, "" if it is; ``order`` what is said of
    the next order, which begins at ``order_at``; ``failed`` why the last one brought nothing.
    """

    at: float = 0.0
    serial: str = ""
    trouble: str = ""
    order: str = ""
    order_at: float = 0.0
    failed: str = ""
    is_ordering: bool = False


class Ordering(Protocol):
    """Orders a certificate; ``order.Orderer`` is one."""

    def run(self) -> Issued:
        """Order and store it. Raises FlotillaError."""


class Service:
    """One turn after the other. ``is_owner`` says whether clients' address is here, and raises
    FlotillaError where nobody knows.
    """

    def __init__(
        self,
        store: Store,
        follower: Follower,
        orderer: Ordering,
        domain: str,
        report: Path,
        *,
        is_owner: Callable[[], bool],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._follower, self._orderer = store, follower, orderer
        self._domain, self._report_file = domain, report
        self._is_owner, self._now = is_owner, now
        self._pool = ThreadPoolExecutor(1, "order")
        self._order: Future[None] | None = None
        self._shared: Shared | None = None
        self._report = Report()
        self._said = ""

    def turn(self) -> None:
        """Look once, and do what there is to do. Raises nothing of ours."""
        now = self._now()
        report = Report(at=now, is_ordering=self.is_ordering)
        troubles = []
        try:
            self._shared = self._store.read()
            self._consider(self._shared, report, now)
        except FlotillaError as error:
            troubles.append(error.what)
        try:
            # Also by what was read last: a token ends when it is over, whether SSM answers or not.
            if self._shared:
                report.serial = self._follower.follow(self._shared, now)
        except FlotillaError as error:
            troubles.append(error.what)
        report.trouble = "; ".join(troubles)
        self._tell(report)

    @property
    def is_ordering(self) -> bool:
        """Whether an order is under way here."""
        return self._order is not None and not self._order.done()

    def _consider(self, shared: Shared, report: Report, now: float) -> None:
        found = current(shared.certificate)
        decision = rules.decide(found, self._domain, shared.attempts, shared.request, now)
        report.order, report.order_at = decision.why, decision.at
        report.failed = shared.attempts.why if shared.attempts.failures else ""
        if decision.is_due(now) and not self.is_ordering and self._is_owner():
            self._begin(shared, decision, now)
            report.is_ordering = True

    def _begin(self, shared: Shared, decision: Decision, now: float) -> None:
        attempts = rules.begun(shared.attempts, shared.request, now)
        # Where this cannot be written, nothing is ordered: the next turn would order again.
        self._store.put("acme/attempts", attempts)
        log.info("ordering a certificate for %s: %s", self._domain, decision.why)
        self._order = self._pool.submit(self._run, attempts)

    def _run(self, attempts: rules.Attempts) -> None:
        try:
            found = self._orderer.run()
        except FlotillaError as error:
            limited = isinstance(error, LimitedError)
            ended = replace(attempts, why=error.what, limited=limited)
            log.warning("no certificate: %s", error.what)
        except Exception as error:
            # What nobody foresaw must not order again and again either.
            ended = replace(attempts, why=f"{type(error).__name__}: {error}")
            log.exception("no certificate")
        else:
            ended = replace(attempts, failures=0, why="")
            log.info("certificate %s by %s is stored", found.serial, found.issuer)
        try:
            self._store.put("acme/attempts", ended)
        except FlotillaError as error:
            # It counts as failed then, and what is stored is served all the same.
            log.warning("how the order ended was not stored: %s", error.what)

    def _tell(self, report: Report) -> None:
        if report.trouble != self._said:
            log.info("%s", report.trouble or f"certificate {report.serial or 'none yet'}")
        self._said = report.trouble
        try:
            files.replace(self._report_file, json.dumps(asdict(report)) + "\n", mode=0o644)
        except FlotillaError as error:
            log.warning("%s", error.what)


class Fleet:
    """This load balancer among the others: whether it has the address, and where they answer."""

    def __init__(
        self, api: Api, role: OwnRole, address: str, config: Path, *, is_proxied: bool
    ) -> None:
        self._api, self._role, self._address = api, role, address
        self._config, self._is_proxied = config, is_proxied

    def is_owner(self) -> bool:
        """Whether the Elastic IP of that name is with this instance."""
        wanted = {"Filter.1.Name": "tag:Name", "Filter.1.Value.1": self._address}
        found = self._api.ec2("DescribeAddresses", wanted)
        owners = [one.text for one in found.findall(".//{*}instanceId")]
        return bool(owners) and self._role.text("instance-id") in owners

    def places(self) -> list[Place]:
        """This one first. The others are those of HAProxy's configuration."""
        try:
            peers = haproxy_file.peers(self._config.read_text(encoding="utf-8"))
        except OSError as error:
            raise HostFailed(f"{self._config} cannot be read: {error}") from error
        here = Place("this load balancer", "127.0.0.1")
        addresses = [one.rpartition(":")[0] for one in peers]
        return [here, *(Place(one, one, is_proxied=self._is_proxied) for one in addresses)]


def main(environment: Mapping[str, str] = os.environ) -> None:
    """Parse the command line of the unit and run until stopped."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fleet", required=True)
    parser.add_argument("--env", required=True)
    parser.add_argument("--domain", required=True, help="the name to have a certificate for")
    parser.add_argument("--directory", required=True, help="the authority's directory, a URL")
    parser.add_argument("--email", required=True, help="whom the authority may write to")
    parser.add_argument("--proxied", action="store_true", help="port 80 wants a PROXY header")
    parser.add_argument("--certificate", type=Path, default=Path("/etc/haproxy/edge.pem"))
    parser.add_argument("--config", type=Path, default=Path("/etc/haproxy/haproxy.cfg"))
    parser.add_argument("--folder", type=Path, default=Path("/var/lib/flotilla-certificate"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    role = OwnRole(environment.get(METADATA, METADATA_URL))
    endpoint = environment.get("AWS_ENDPOINT_URL")
    api = Api(environment.get("AWS_REGION", ""), role, endpoint_url=endpoint, seconds=AWS_SECONDS)
    store = Store(api, options.fleet, options.env)
    runtime = haproxy.Runtime("haproxy", haproxy.local(Path(haproxy.SOCKET)))
    edge = f"{options.fleet}-{options.env}-edge"
    fleet = Fleet(api, role, edge, options.config, is_proxied=options.proxied)
    service = Service(
        store,
        Follower(runtime, options.domain, certificate=options.certificate),
        Orderer(store, Authority(options.directory, options.email), options.domain, fleet.places),
        options.domain,
        options.folder / "report.json",
        is_owner=fleet.is_owner,
    )
    while True:
        service.turn()
        time.sleep(EVERY_SECONDS * (1 + JITTER * (2 * random.random() - 1)))  # noqa: S311


if __name__ == "__main__":
    main()
