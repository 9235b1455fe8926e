"""Look at a whole fleet from every side at once, and never wait long for a side that is dead."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Self

from flotilla import inventory
from flotilla.aws import dynamo, lease
from flotilla.aws import images as image_edge
from flotilla.aws.session import client, described
from flotilla.backup.glance import backups, redis_backups
from flotilla.errors import FlotillaError, Unreachable
from flotilla.hosts import access
from flotilla.inventory import store
from flotilla.mysql import status as mysql_status
from flotilla.mysql.cluster import Cluster
from flotilla.mysql.store import records
from flotilla.rules import images as image_rules
from flotilla.rules import status_world as rules
from flotilla.rules.redis import Member
from flotilla.settings import Settings
from flotilla.snapshot import Host, Snapshot
from flotilla.status import asking, page
from flotilla.status.once import OnceRunner

# A host that is gone costs this much; the rest is asked at the same time.
CONNECT_SECONDS = 3.0
# After this, what has not answered is named and left behind.
DEADLINE_SECONDS = 8.0
# Where nobody has answered by then, the machine that asks is the slow one as likely as the fleet:
# a whole fleet called silent is an alarm worth some more seconds. A bastion that is dead costs
# none of them, its connection fails by itself.
PATIENCE_SECONDS = 8.0
# A healthy EC2 lists a thousand hosts in less.
LIST_SECONDS = 4.0
# Each new host costs a call to EC2 for its console.
NEW_HOSTS = 16
LOCK = "deploy"


class Late(Unreachable):
    """There was no answer when the time was over."""


class Looking:
    """Looks again and again, on connections that stay open. Use it as a context."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._runner: OnceRunner | None = None
        self._hosts: tuple[str, ...] = ()
        self._source = asking.SOURCE.read_text(encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._runner:
            self._runner.close()

    def look(self) -> rules.World:
        """The fleet now. Raises Unreachable when its hosts cannot be listed at all."""
        settings = self._settings
        snapshot = _listed(settings)
        access.prepare(settings, snapshot, seconds=0, most=NEW_HOSTS)
        runner = self._connected(snapshot)
        hosts = [host for host in snapshot.hosts if host.is_active]
        work: dict[str, Callable[[], Any]] = {
            f"host {host.name}": partial(self._ask, runner, host) for host in hosts
        }
        work |= {
            f"page {host.name}": partial(_page, runner, snapshot, host)
            for host in hosts
            if host.role == "lb"
        }
        work["mysql"] = lambda: _mysql(settings, runner, snapshot)
        work["backups"] = lambda: backups(settings)
        work["redis backups"] = lambda: redis_backups(settings)
        work["images"] = lambda: image_edge.ours(settings)
        work["edge"] = lambda: _edge(settings)
        work["lock"] = lambda: lease.read(dynamo.locks(settings), LOCK)
        asked = tuple(name for name in work if name.startswith("host "))
        found = at_once(work, seconds=DEADLINE_SECONDS, one_of=asked, patience=PATIENCE_SECONDS)
        return _world(settings, snapshot, found)

    def _connected(self, snapshot: Snapshot) -> OnceRunner:
        """The runner for these hosts; a new one when hosts came, went or changed."""
        hosts = tuple(host.instance_id for host in snapshot.hosts if host.is_active)
        if self._runner is None or hosts != self._hosts:
            if self._runner:
                self._runner.close()
            self._runner = OnceRunner(self._settings, snapshot, connect_seconds=CONNECT_SECONDS)
            self._hosts = hosts
        self._runner.forget()
        return self._runner

    def _ask(self, runner: OnceRunner, host: Host) -> tuple[Mapping[str, Any], float]:
        command = asking.command(self._settings, host.role)
        result = runner.run(
            host,
            command,
            sudo=True,
            stdin=self._source,
            seconds=DEADLINE_SECONDS + PATIENCE_SECONDS,
        )
        # The probe takes its time when it starts; by then half of the way is behind it.
        return asking.parsed(host, result.stdout), time.time() - result.seconds / 2


def at_once(
    work: Mapping[str, Callable[[], Any]],
    *,
    seconds: float,
    one_of: Collection[str] = (),
    patience: float = 0.0,
) -> dict[str, Any | FlotillaError]:
    """Do everything at the same time; by name, the answer or the error in its place.

    What takes longer than ``seconds`` is left behind and answered by an error that says so. Where
    none of ``one_of`` has come to an end by then, all get ``patience`` more seconds.
    """
    answers: dict[str, Any] = {}

    def do(name: str, act: Callable[[], Any]) -> None:
        try:
            answers[name] = act()
        except FlotillaError as error:
            answers[name] = error

    # Daemon threads and no pool: a pool is waited for when the program ends.
    threads = [
        threading.Thread(target=do, args=item, name=item[0], daemon=True) for item in work.items()
    ]
    for thread in threads:
        thread.start()
    _join(threads, seconds)
    if one_of and not any(name in answers for name in one_of):
        _join(threads, patience)
        seconds += patience
    late = Late(f"no answer within {seconds:g} s")
    done = dict(answers)
    return {name: done.get(name, late) for name in work}


def _join(threads: list[threading.Thread], seconds: float) -> None:
    """Wait for all of them, ``seconds`` at most altogether."""
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _listed(settings: Settings) -> Snapshot:
    """The hosts as EC2 has them now, or the last list with a warning when EC2 does not answer.

    An API that accepts calls and never answers is waited for a minute by boto3; not here.
    """
    work = {"list": lambda: inventory.load(settings, refresh=True)}
    found = at_once(work, seconds=LIST_SECONDS)["list"]
    if isinstance(found, Snapshot):
        return found
    stored = store.read(settings)
    if stored is None or not isinstance(found, Late):
        found.what = f"the fleet's hosts could not be listed: {found.what}"
        found.next = found.next or settings.aws.hint
        raise found
    age = stored.snapshot.age_seconds(time.time())
    warning = f"the list of hosts is {age:.0f} s old: EC2 gave {found.what}. {settings.aws.hint}"
    return replace(stored.snapshot, warning=warning)


def _mysql(settings: Settings, runner: OnceRunner, snapshot: Snapshot) -> dict[str, Any]:
    with Cluster.of(runner, snapshot.by_role("mysql")) as cluster:
        return mysql_status.status(cluster, records(settings))


def _page(runner: OnceRunner, snapshot: Snapshot, host: Host) -> rules.Traffic | None:
    bastion = access.gateway(snapshot.hosts)
    if bastion is None or not host.private_ip:
        return None
    command = page.command(host.private_ip, 2)
    return page.traffic(host.name, runner.run(bastion, command, seconds=3).stdout)


def _edge(settings: Settings) -> tuple[str, str]:
    """The Elastic IP of the load balancers and the instance that has it; "" for none."""
    with described(settings, "look up the edge address"):
        found = client(settings, "ec2").describe_addresses(
            Filters=[{"Name": "tag:Name", "Values": [settings.name_of("edge")]}]
        )["Addresses"]
    return (found[0]["PublicIp"], found[0].get("InstanceId") or "") if found else ("", "")


def _world(settings: Settings, snapshot: Snapshot, found: Mapping[str, Any]) -> rules.World:
    now = time.time()
    images = found["images"]
    listed = [] if isinstance(images, FlotillaError) else images
    answers = {host.name: found.get(f"host {host.name}") for host in snapshot.hosts}
    heard = {name: one[0] for name, one in answers.items() if isinstance(one, tuple)}
    edge = (None, None) if isinstance(found["edge"], FlotillaError) else found["edge"]
    caches = {h.name: asking.cache(h, heard[h.name]) for h in _role(snapshot, "redis", heard)}
    mysql = found["mysql"]
    broken = isinstance(mysql, FlotillaError)
    saved = found["redis backups"]
    return rules.World(
        fleet=settings.prefix,
        wanted={role: tier.count for role, tier in settings.tiers.items()},
        hosts=tuple(_host(host, listed, answers[host.name], now) for host in snapshot.hosts),
        inventory_age_seconds=max(0.0, now - snapshot.fetched_at),
        inventory_warning=snapshot.warning or "",
        inventory_problems=snapshot.problems,
        edge_address=edge[0],
        edge_owner=edge[1],
        balancers=tuple(
            asking.balancer(host, heard[host.name], _figures(found[f"page {host.name}"]))
            for host in _role(snapshot, "lb", heard)
        ),
        apps=tuple(asking.application(h, heard[h.name]) for h in _role(snapshot, "app", heard)),
        mysql=None if broken else mysql,
        mysql_error=_unnamed(mysql) if broken else "",
        redis=tuple(one for one in caches.values() if isinstance(one, Member)),
        redis_errors={name: one for name, one in caches.items() if isinstance(one, str)},
        api_error=next(
            (_unnamed(found[k]) for k in ("images", "edge") if isinstance(found[k], FlotillaError)),
            "",
        ),
        lock=_lock(found["lock"], now),
        at=now,
        backups=found["backups"] if isinstance(found["backups"], rules.Backups) else None,
        redis_backups=saved if isinstance(saved, rules.RedisBackups) else None,
    )


def _role(snapshot: Snapshot, role: str, heard: Mapping[str, Any]) -> list[Host]:
    return [host for host in snapshot.by_role(role) if host.name in heard]


def _host(host: Host, images: list[image_rules.Image], answer: Any, now: float) -> rules.Host:
    image = next((one for one in images if one.image_id == host.image_id), None)
    newest = image_rules.latest_tested(images, host.role)
    is_older = image and newest and newest.created_at > image.created_at
    silent = isinstance(answer, FlotillaError)
    return rules.Host(
        name=host.name,
        instance_id=host.instance_id,
        role=host.role,
        zone=host.zone,
        state=host.state,
        age_seconds=max(0.0, now - host.launched_at.timestamp()),
        image_id=host.image_id,
        image=image,
        newer=newest if is_older else None,
        report=asking.report(answer[0], now=answer[1]) if isinstance(answer, tuple) else None,
        silent=_unnamed(answer).removeprefix(f"{host.name}: ") if silent else "",
    )


def _figures(found: Any) -> rules.Traffic | None:
    return found if isinstance(found, rules.Traffic) else None


def _unnamed(error: FlotillaError) -> str:
    return error.what


def _lock(found: Any, now: float) -> str:
    if not isinstance(found, lease.Lease) or found.is_free(now):
        return ""
    since = datetime.fromtimestamp(found.acquired_at, UTC)
    return f"{found.holder} holds the lock for {found.reason} since {since:%H:%M:%S} UTC"
