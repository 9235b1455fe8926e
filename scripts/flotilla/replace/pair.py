"""The load balancers as an exchange acts on them: EC2, the playbook, keepalived, the address."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from flotilla import configure, inventory
from flotilla.aws import edge, scaling
from flotilla.aws.session import client, described
from flotilla.aws.waiters import instances_in_state
from flotilla.errors import FlotillaError, HostFailed, Unreachable
from flotilla.hosts import access
from flotilla.hosts.haproxy import Runtime, over_ssh
from flotilla.hosts.ssh import Runner
from flotilla.provision import ready
from flotilla.provision.world import World
from flotilla.replace import template
from flotilla.rules.replace_pair import Balancer
from flotilla.settings import Settings
from flotilla.snapshot import Host, Snapshot
from flotilla.wait import DeadlineError, until

ROLE = "lb"
# keepalived and the address service after their configuration; HAProxy's checks of its servers.
FIT_SECONDS = 60.0
# NGINX's own tests of the same move took 5 to 6 s.
MOVE_SECONDS = 60.0
GONE_SECONDS = 300.0
COMMAND_SECONDS = 20.0
# Two reads: of two claims in the same second both "succeed".
CONFIRMATIONS = 2
# What its address service saw last, when it is there, and whom its keepalived knows. A new host has
# neither yet: that is an answer, not an error.
_ASK = (
    "cat /run/flotilla-address/state.json 2>/dev/null || echo '{}'; date +%s; "
    "cat /etc/keepalived/keepalived.conf 2>/dev/null || true"
)
# Should we be killed half-way. Taken back once it has been started: left alone, it fired up to two
# minutes later, and its start cancelled the stop of the next move ("Job for keepalived.service
# canceled", in the 13th of 13 moves 76 s apart).
_BACK = "flotilla-keepalived-back"
_NO_TIMER = f"systemctl stop {_BACK}.timer 2>/dev/null || true"
_TIMER = (
    f"{_NO_TIMER}; systemd-run --quiet --collect --unit={_BACK} --on-active={MOVE_SECONDS:g}"
    " --timer-property=AccuracySec=1s systemctl start keepalived"
)
_ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b")
_STALE_SECONDS = 30.0


class Told:
    """What one load balancer says of itself."""

    def __init__(self, text: str) -> None:
        state, _, rest = text.partition("\n")
        clock, _, configuration = rest.partition("\n")
        seen = json.loads(state or "{}")
        self.vrrp = str(seen.get("vrrp", "UNKNOWN"))
        self.is_fresh = int(clock or 0) - float(seen.get("at", 0)) < _STALE_SECONDS
        self.knows = frozenset(_ADDRESS.findall(configuration))

    @property
    def takes_part(self) -> bool:
        """Whether it could take the address over, or has it."""
        return self.is_fresh and self.vrrp in {"MASTER", "BACKUP"}


class Pair:
    """Two load balancers, three while one is exchanged."""

    def __init__(
        self,
        settings: Settings,
        *,
        say: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = settings
        self._say = say
        self._sleep = sleep

    def look(self) -> list[Balancer]:
        """Every load balancer that runs, as EC2, it itself and the others see it."""
        owners = edge.owners(self._settings)
        with self._reached() as (runner, snapshot):
            hosts = snapshot.by_role(ROLE)
            told = {host.name: self._told(runner, host) for host in hosts}
            serving = {host.name: self._serves(runner, host) for host in hosts}
        return [
            Balancer(
                name=host.name,
                instance_id=host.instance_id,
                zone=host.zone,
                image_id=host.image_id,
                fit=serving[host.name] and is_known(host, told),
                owner=host.instance_id in owners,
            )
            for host in hosts
        ]

    def launch(self, name: str, zone: str, image_id: str) -> None:
        """Start one and wait until it answers SSH."""
        template.start(self._settings, ROLE, image_id, name=name, zone=zone)
        ready.await_ssh(World(self._settings))

    def configure(self, unfit: Sequence[Balancer]) -> None:
        """Make them fit. Those that serve are told of the newcomers first.

        A keepalived that starts before the master knows it hears no advert, takes itself for the
        master and claims the address: it would move twice, and every move cuts all connections.
        """
        new = {host.instance_id for host in unfit}
        snapshot = self._fresh()
        known = [h for h in snapshot.by_role(ROLE) if h.instance_id not in new]
        # nginx believes the addresses of load balancers it knows.
        configure.under_lock(self._settings, [*known, *snapshot.by_role("app")], say=self._say)
        if new:
            joining = [h for h in snapshot.by_role(ROLE) if h.instance_id in new]
            configure.under_lock(self._settings, joining, say=self._say)
        self._until_fit(new or {host.instance_id for host in known})

    def _until_fit(self, instances: set[str]) -> None:
        waiting: list[str] = []

        def fit() -> bool:
            waiting[:] = [h.name for h in self.look() if h.instance_id in instances and not h.fit]
            return not waiting

        try:
            until(fit, seconds=FIT_SECONDS, every=1.0, sleep=self._sleep)
        except DeadlineError as error:
            raise HostFailed(
                f"{', '.join(waiting)} could not serve {error.seconds:g} s after the playbook",
                why="its HAProxy has no server up, or keepalived takes no part",
                next=f"fab fleet.logs {','.join(waiting)} --unit keepalived",
            ) from None

    def move(self, source: Balancer) -> None:
        """Move the address away from ``source``, and wait until that one can take over again."""
        self.give_away(source)
        self._until_fit({source.instance_id})
        self._until_moved(source)

    def give_away(self, source: Balancer) -> None:
        """Move the address away from ``source``, in whatever state that one is.

        Its keepalived runs again afterwards, also when we are killed in the middle: then its host
        starts it by itself.
        """
        with self._reached() as (runner, _):
            self._tell(runner, source.name, _TIMER)
            self._tell(runner, source.name, "systemctl stop keepalived")
            try:
                self._until_moved(source)
            finally:
                self._tell(runner, source.name, f"systemctl start keepalived && {{ {_NO_TIMER}; }}")
        self._until_moved(source)

    def _until_moved(self, source: Balancer) -> None:
        reads, seen = 0, [""]

        def moved() -> bool:
            nonlocal reads
            seen[:] = edge.owners(self._settings)
            reads = reads + 1 if len(seen) == 1 and seen != [source.instance_id] else 0
            return reads >= CONFIRMATIONS

        try:
            until(moved, seconds=MOVE_SECONDS, every=0.5, sleep=self._sleep)
        except DeadlineError as error:
            raise HostFailed(
                f"after {error.seconds:g} s the Elastic IP is with {', '.join(seen) or 'nobody'}",
                next="fab fleet.logs lb --unit flotilla-address",
            ) from None

    def end(self, host: Balancer, idle_seconds: float) -> None:
        """Terminate one that has not got the address, once no client is on it."""
        if edge.owners(self._settings) == [host.instance_id]:
            raise HostFailed(f"{host.name} has the Elastic IP; it is not ended")
        self._until_idle(host, idle_seconds)
        with described(self._settings, f"terminate {host.name}"):
            client(self._settings, "ec2").terminate_instances(InstanceIds=[host.instance_id])
        instances_in_state(self._settings, [host.instance_id], "terminated", seconds=GONE_SECONDS)

    def _until_idle(self, host: Balancer, seconds: float) -> None:
        """The address is gone, so nobody new comes; who is still there is given some time."""
        with self._reached() as (runner, _):
            runtime = Runtime(host.name, over_ssh(runner, host.name))

            def idle() -> bool:
                rows = runtime.stat("edge")
                return all(not int(row.get("scur") or 0) for row in rows)

            try:
                until(idle, seconds=seconds, every=0.5, sleep=self._sleep)
            except (DeadlineError, Unreachable, HostFailed):
                return

    def rename(self, host: Balancer, name: str) -> None:
        """Give it its name, and see that EC2 has it."""
        tags = [{"Key": "Name", "Value": name}]
        with described(self._settings, f"name {host.instance_id} {name}"):
            client(self._settings, "ec2").create_tags(Resources=[host.instance_id], Tags=tags)
        try:
            until(
                lambda: self._fresh().host(host.instance_id).name == name,
                seconds=FIT_SECONDS,
                sleep=self._sleep,
            )
        except DeadlineError:
            raise FlotillaError(f"EC2 does not show the name {name} of {host.name}") from None

    def launch_from(self, image_id: str) -> None:
        """The image that whoever launches a load balancer uses from now on."""
        version = template.version_of(self._settings, ROLE, image_id)
        scaling.make_default(self._settings, ROLE, version)

    def settle(self) -> None:
        """Make every load balancer and application host forget those that are gone."""
        self.configure(())

    def _fresh(self) -> Snapshot:
        snapshot = inventory.load(
            self._settings, max_age_seconds=inventory.max_age(self._settings), refresh=True
        )
        access.prepare(self._settings, snapshot)
        return snapshot

    @contextmanager
    def _reached(self) -> Iterator[tuple[Runner, Snapshot]]:
        snapshot = self._fresh()
        with Runner(self._settings, snapshot) as runner:
            yield runner, snapshot

    def _tell(self, runner: Runner, host: str, command: str) -> None:
        runner.run(host, command, sudo=True, seconds=COMMAND_SECONDS)

    def _told(self, runner: Runner, host: Host) -> Told | None:
        try:
            done = runner.run(host, _ASK, sudo=True, seconds=COMMAND_SECONDS)
            return Told(done.stdout)
        except (Unreachable, HostFailed, ValueError):
            return None

    def _serves(self, runner: Runner, host: Host) -> bool:
        """Whether its HAProxy has a server in rotation."""
        try:
            servers = Runtime(host.name, over_ssh(runner, host.name)).servers()
        except (Unreachable, HostFailed):
            return False
        return any(server.is_serving for server in servers.values())


def is_known(host: Host, told: dict[str, Told | None]) -> bool:
    """Whether it takes part in VRRP, and everybody who does knows it."""
    mine = told[host.name]
    others = [one for name, one in told.items() if name != host.name and one and one.knows]
    return bool(mine and mine.takes_part) and all(host.private_ip in o.knows for o in others)
