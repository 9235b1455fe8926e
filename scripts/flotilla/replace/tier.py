"""The application tier as an exchange of hosts acts on it: Auto Scaling, load balancers, hosts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from flotilla import inventory
from flotilla.aws import joining, scaling
from flotilla.deploy import connect
from flotilla.deploy.limits import Limits
from flotilla.deploy.shift import Shift
from flotilla.deploy.soak import Soak, Trial
from flotilla.deploy.world import Balancers
from flotilla.errors import FlotillaError, HostFailed, Unreachable
from flotilla.rules import replace as rules
from flotilla.rules.replace import Host
from flotilla.rules.rotation import FULL, MAINTENANCE, Server, why_not_idle, why_not_out
from flotilla.settings import Settings
from flotilla.snapshot import Host as Instance
from flotilla.wait import DeadlineError, until

# Auto Scaling waits for the load balancers before it ends a host, at most twice a drain.
FORGET_SECONDS = 240.0
STATUS_SECONDS = 15.0
SAMPLE_SECONDS = 0.25


class Scaled:
    """Hosts of an Auto Scaling group behind the load balancers."""

    def __init__(
        self,
        settings: Settings,
        role: str,
        balancers: Balancers,
        limits: Limits,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = settings
        self._role = role
        self._balancers = balancers
        self._shift = Shift(balancers, limits)
        self._sleep = sleep

    def look(self) -> tuple[list[Host], int]:
        """The hosts that run, and how many Auto Scaling has yet to launch."""
        group = scaling.group(self._settings, self._role)
        snapshot = inventory.load(
            self._settings, max_age_seconds=inventory.max_age(self._settings), refresh=True
        )
        servers = self._balancers.servers()
        staying = set(group.staying)
        found = [
            self._host(one, servers)
            for one in snapshot.by_role(self._role)
            if one.instance_id in staying
        ]
        unseen = len(staying) - len(found)
        return found, group.launching + unseen

    def _host(self, one: Instance, servers: Mapping[str, Mapping[str, Server]]) -> Host:
        views = {
            balancer: mine[one.name]
            for balancer, mine in servers.items()
            if one.name in mine and _leads_to(mine[one.name], one.private_ip)
        }
        return Host(
            name=one.name,
            instance_id=one.instance_id,
            zone=one.zone,
            image_id=one.image_id,
            state=rules.state(views, list(servers)),
        )

    def launch(self, count: int) -> None:
        """Want so many hosts more than run."""
        group = scaling.group(self._settings, self._role)
        desired = len(group.staying) + count
        scaling.resize(
            self._settings, self._role, desired=desired, largest=max(group.largest, desired)
        )

    def watch(self, hosts: Sequence[Host], peers: Sequence[Host]) -> None:
        """See whether hosts run the current release, and serve as well as their peers."""
        release = joining.read(self._settings, self._role, joining.RELEASE)
        wanted = str(release["version"]) if release else None
        with connect(self._settings) as (world, _):
            for host in hosts:
                status = world.releases.call(host.name, "status", seconds=STATUS_SECONDS)
                if status["current"] != wanted or not status["active"]:
                    raise HostFailed(
                        f"{host.name} runs {status['current'] or 'nothing'}, not {wanted}"
                    )
        names = [host.name for host in hosts]
        trial = Trial(judged=names[1:], peers=[peer.name for peer in peers])
        Soak(self._shift, sleep=self._sleep).watch(names[0], FULL, trial)

    def drain(self, host: Host) -> None:
        """Out of rotation wherever a load balancer has it, with no request in flight."""
        known = [lb for lb, mine in self._balancers.servers().items() if host.name in mine]
        if set(known) == set(self._balancers):
            self._shift.drain(host.name)
        elif known:
            self._leave(host.name, known)

    def _leave(self, name: str, known: Collection[str]) -> None:
        """A host that only some load balancers have: it never served on all of them."""
        self._balancers.order(name, "state maint", only=known)

        def is_out() -> bool:
            views = {
                lb: mine[name] for lb, mine in self._balancers.servers().items() if lb in known
            }
            return not (why_not_out(views, MAINTENANCE) or why_not_idle(views))

        try:
            until(is_out, seconds=self._shift.limits.drain, sleep=self._sleep)
        except DeadlineError as error:
            raise HostFailed(f"{name} was not idle after {error.seconds:g} s") from None

    def end(self, hosts: Collection[Host]) -> None:
        """Terminate hosts, want as many fewer, and see the load balancers forget them.

        Their names are free for others then: a new host would else be met by the old one's state.
        """
        for host in hosts:
            scaling.end(self._settings, self._role, host.instance_id)
        names = {host.name for host in hosts}
        left: set[str] = set()

        def forgotten() -> bool:
            nonlocal left
            left = {n for mine in self._balancers.servers().values() for n in mine if n in names}
            return not left

        try:
            until(forgotten, seconds=FORGET_SECONDS, every=0.5, sleep=self._sleep)
        except DeadlineError as error:
            raise FlotillaError(
                f"a load balancer still has {', '.join(sorted(left))} {error.seconds:g} s after "
                "that host was terminated",
                why="the load balancers follow EC2 by themselves, and one does not",
                next="fab fleet.logs lb --unit flotilla-discovery",
            ) from None

    def launch_from(self, version: str) -> None:
        """The launch template version for hosts from now on."""
        scaling.launch_from(self._settings, self._role, version)

    def why_not_launched(self) -> str:
        """What Auto Scaling says went wrong last; "" for nothing."""
        return scaling.last_failure(self._settings, self._role)

    def why_not_serving(self, host: Host) -> str:
        """What its load balancers say, and where the host says more."""
        seen = {
            lb: f"{mine[host.name].status} ({mine[host.name].check})"
            if host.name in mine
            else "unknown"
            for lb, mine in self._balancers.servers().items()
        }
        told = ", ".join(f"{what} on {lb}" for lb, what in sorted(seen.items()))
        return f"is {told}; its journal: fab fleet.logs {host.name} --unit flotilla-join"


def _leads_to(server: Server, address: str | None) -> bool:
    """Whether the server is this host, and not an earlier one with its name."""
    return not server.address or server.address.rpartition(":")[0] == address


class Fewest:
    """The fewest servers that were in rotation on every load balancer at any look."""

    def __init__(self, balancers: Balancers) -> None:
        self._balancers = balancers
        self._stopped = threading.Event()
        self.count: int | None = None

    def look(self) -> None:
        """Count now. A load balancer that does not answer is the exchange's business."""
        try:
            seen = self._balancers.servers()
        except (Unreachable, HostFailed):
            return
        up = [{s.name for s in mine.values() if s.is_serving} for mine in seen.values()]
        now = len(set.intersection(*up)) if up else 0
        self.count = now if self.count is None else min(self.count, now)

    def run(self) -> None:
        """Look until stopped."""
        while not self._stopped.wait(SAMPLE_SECONDS):
            self.look()

    def stop(self) -> None:
        """End ``run``."""
        self._stopped.set()


@contextmanager
def counted(balancers: Balancers) -> Iterator[Fewest]:
    """Count for as long as the block runs."""
    fewest = Fewest(balancers)
    with ThreadPoolExecutor(max_workers=1) as pool:
        running = pool.submit(fewest.run)
        try:
            yield fewest
        finally:
            fewest.stop()
            running.result()
