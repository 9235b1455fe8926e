"""The hosts that take a secret, and those that use it: told, asked, and read back."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from flotilla import configure, deploy, inventory
from flotilla.agent.bundle import loaded
from flotilla.agent.logins import CARRY, Order
from flotilla.aws import secrets
from flotilla.errors import HostFailed, Refused
from flotilla.hosts.ssh import Result, Runner, prepare
from flotilla.mysql import operate as mysql
from flotilla.mysql import steps, store
from flotilla.mysql.recorded import Said
from flotilla.mysql.session import session
from flotilla.redis.operate import TOOL
from flotilla.rules.mysql_health import HEALTH_PORT
from flotilla.rules.secrets import Secret
from flotilla.settings import Settings
from flotilla.snapshot import Snapshot

PORTS = {"mysql": 3306, "redis": 6379}
SENTINEL_PORT = 26379
LOGIN_SECONDS = 60.0
STATUS_SECONDS = 15.0
_SESSIONS = """
SELECT DISTINCT PROCESSLIST_HOST AS address FROM performance_schema.threads
WHERE PROCESSLIST_USER = %s AND PROCESSLIST_HOST IS NOT NULL
"""
# On a server's host: have its watcher read the passwords again, until it uses this version.
WATCHER_SECONDS = 15.0
_READ_AGAIN = f"""\
import json, socket, sys, time
address, account, wanted = json.loads(sys.stdin.readline())
said, end = "", time.monotonic() + {WATCHER_SECONDS}
while time.monotonic() < end:
    try:
        with socket.create_connection((address, {HEALTH_PORT}), 1) as stream:
            stream.sendall(b"GET /secrets HTTP/1.0\\r\\n\\r\\n")
            status, _, body = stream.makefile("rb").read().partition(b"\\r\\n\\r\\n")
        found = json.loads(body) if status.split()[1] == b"200" else {{}}
        said = f"it uses version {{found[account]}}" if account in found else status.decode()[:20]
        if found.get(account) == wanted:
            print("yes")
            break
    except (OSError, ValueError, IndexError) as error:
        said = str(error)
    time.sleep(0.2)
else:
    print(said)
"""
_AWAY = "it does not run, and would come back with the old value"
_LOCAL = ("127.0.0.1", "localhost", "")


class Hosts(Protocol):
    """What a rotation does to hosts, and asks of them."""

    def away(self) -> Mapping[str, str]:
        """The hosts that would keep the old value because they do not run, with the reason."""

    def tell_servers(self) -> None:
        """Have every server accept what SSM says, and nothing else."""

    def tell_clients(self) -> None:
        """Have every client of the fleet use what SSM says, one after the other."""

    def logins(self, values: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """What every server says to each of these passwords."""

    def behind(self, new: str, old: str) -> Mapping[str, str]:
        """The hosts that do not use ``new``, or still hold ``old``, with the reason."""

    def sessions(self) -> Mapping[str, Sequence[str]]:
        """By server, the addresses the account is used from now."""

    def known(self) -> Sequence[str]:
        """The addresses of hosts that have the secret from us."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """The hosts of the fleet, by the run-books that configure and restart them."""

    settings: Settings
    secret: Secret
    name: str
    said: Said

    @property
    def account(self) -> str:
        """Whom the secret lets in."""
        return self.secret.account or self.settings.mysql.user

    def away(self) -> dict[str, str]:
        """See ``Hosts``: a MySQL server that is stopped gets accounts by replication later."""
        roles = {self.secret.users}
        if self.secret.role == "redis" or self.secret.watchers:
            roles.add(self.secret.role)
        with self._runner() as (_, snapshot):
            return {host.name: _AWAY for role in roles for host in snapshot.stopped(role)}

    def tell_servers(self) -> None:
        """See ``Hosts``: Redis by the playbook, MySQL by its primary."""
        if self.secret.role == "redis":
            self._configure("redis")
        else:
            mysql.ensure(self.settings, confirmed=lambda _: None, said=self.said)

    def tell_clients(self) -> None:
        """See ``Hosts``: by the playbook; the application is started again as a deploy does.

        Watchers first: one that lets its server follow somebody must not give it the old value.
        """
        if self.secret.users:
            self._configure(self.secret.users)
        if self.secret.users == "app":
            self._restart_application()
        if self.secret.watchers and not self._watchers_behind() and self.secret.streams:
            # One replica after the other, under the cluster's lease.
            mysql.ensure(self.settings, confirmed=lambda _: None, said=self.said)

    def logins(self, values: Sequence[str]) -> dict[str, Sequence[str]]:
        """See ``Hosts``: each server host asks its own services, by their private address.

        Redis keeps its accounts in a file of the host; those of MySQL come by replication.
        """
        found: dict[str, Sequence[str]] = {}
        command, package = loaded("flotilla.agent.logins", CARRY[self.secret.role])
        ports = [PORTS[self.secret.role], *([SENTINEL_PORT] if self.secret.sentinels else [])]
        authority = secrets.authority(self.settings)
        with self._runner() as (runner, snapshot):
            for host in snapshot.by_role(self.secret.role):
                targets = [(host.private_ip or "", port) for port in ports]
                order = Order(self.secret.role, self.account, values, targets, authority)
                stdin = f"{package}\n{json.dumps(asdict(order))}\n"
                told = runner.run(host, command, stdin=stdin, seconds=LOGIN_SECONDS).stdout
                said: dict[str, list[str]] = json.loads(told)
                found |= {f"{host.name}:{key.rpartition(':')[2]}": w for key, w in said.items()}
            away = snapshot.stopped("redis") if self.secret.role == "redis" else []
            found |= {host.name: [_AWAY] * len(values) for host in away}
        return found

    def behind(self, new: str, old: str) -> dict[str, str]:
        """See ``Hosts``: the file that holds it is searched, by values that are given as input.

        Watchers are asked for the version they use, replicas for the digest of what they keep.
        """
        if self.secret.watchers:
            return self._streams_behind() | self._watchers_behind()
        if not self.secret.users:
            return {}
        found: dict[str, str] = {}
        # Its count, not its exit code: sudo says 1 as well, of a password that it wants.
        search = f"grep -cFf /dev/stdin {self.secret.file}"
        with self._runner() as (runner, snapshot):
            found |= {host.name: _AWAY for host in snapshot.stopped(self.secret.users)}
            for host in snapshot.by_role(self.secret.users):
                answers = [
                    runner.run(host, search, stdin=f"{value}\n", sudo=True, check=False)
                    for value in (new, old)
                ]
                if why := _lacking(self.secret.file, *answers):
                    found[host.name] = why
        if self.secret.users == "app":
            stale = "its application was started before it was given the new value"
            found |= {name: stale for name in self._stale() if name not in found}
        return found

    def sessions(self) -> dict[str, list[str]]:
        """See ``Hosts``."""
        if self.secret.role == "mysql":
            with session(self.settings, fresh=True) as opened:
                seats = opened.cluster.seats
                rows = opened.cluster.each(
                    seats, lambda seat: seat.server.query(_SESSIONS, (self.account,))
                )
            return {
                name: [str(row["address"]).partition(":")[0] for row in answer]
                for name, answer in rows.items()
            }
        command = f"{TOOL} sessions --user {self.account}"
        with self._runner() as (runner, snapshot):
            return {
                host.name: json.loads(runner.run(host, command, sudo=True).stdout)
                for host in snapshot.by_role("redis")
            }

    def known(self) -> list[str]:
        """See ``Hosts``: the servers themselves, and the hosts that have the secret."""
        with self._runner() as (_, snapshot):
            roles = {self.secret.role, self.secret.users} - {""}
            hosts = [host for role in roles for host in snapshot.by_role(role)]
        return [*_LOCAL, *(host.private_ip for host in hosts if host.private_ip)]

    def _watchers_behind(self) -> dict[str, str]:
        """The hosts whose watcher does not use what SSM holds, each after it was told to."""
        role, parameter = self.secret.role, self.secret.parameter
        wanted = secrets.version(self.settings, role, parameter)
        command = f"exec python3 -c {shlex.quote(_READ_AGAIN)}"
        with self._runner() as (runner, snapshot):
            found = {host.name: _AWAY for host in snapshot.stopped(role)}
            for host in snapshot.by_role(role):
                order = json.dumps([host.private_ip or "", self.account, wanted])
                told = runner.run(
                    host, command, stdin=f"{order}\n", seconds=LOGIN_SECONDS, check=False
                )
                said = told.stdout.strip() or told.last_words
                if said != "yes":
                    found[host.name] = f"its watcher does not use version {wanted}: {said}"
        return found

    def _streams_behind(self) -> dict[str, str]:
        """The replicas that would log in to their source with another value."""
        if not self.secret.streams:
            return {}
        known = store.secrets(self.settings)
        with session(self.settings, fresh=True) as opened:
            seats = opened.cluster.seats
            right = opened.cluster.each(
                seats, lambda seat: steps.holds_password(seat.server, known)
            )
        stale = "it logs in to its source with the old value"
        return {name: stale for name, is_right in right.items() if not is_right}

    def _configure(self, role: str) -> None:
        configure.configure(self.settings, say=self.said, limit=role)

    def _stale(self) -> list[str]:
        """Application hosts that run what they were started with before."""
        return sorted(host for host, told in self._releases().items() if told["stale"])

    def _releases(self) -> dict[str, Any]:
        """What the release tool of each application host says."""
        with deploy.connect(self.settings) as (world, zones):
            return {
                host: world.releases.call(host, "status", seconds=STATUS_SECONDS) for host in zones
            }

    def _restart_application(self) -> None:
        """Deploy what runs once more: only hosts that need it are drained and restarted."""
        told = self._releases()
        if not any(one["stale"] for one in told.values()):
            return
        versions = {one["current"] for one in told.values() if one["current"]}
        if len(versions) != 1:
            raise Refused(
                f"application hosts run different releases: {', '.join(sorted(versions))}",
                "they are restarted by a deploy of the one release that all of them run",
                "Servers accept the old and the new value; clients go on with either",
                "fab deploy.run --version VERSION, then the same command again",
            )
        words = deploy.Words(versions.pop(), reason=f"fab secrets.rotate {self.name}")
        asked = deploy.request(self.settings, words)
        outcome = deploy.deploy(
            self.settings,
            asked.version,
            asked.options,
            confirmed=lambda made: self.said(deploy.described(made)),
            said=lambda step: self.said(f"{step.host} {step.name} {step.seconds:.1f} s"),
            terms=asked.terms,
        )
        self.said(outcome.line)
        if outcome.result not in {"done", "nothing to do"}:
            raise HostFailed(
                f"the application could not be restarted: {outcome.line}",
                untouched="Servers accept the old and the new value; clients go on with either",
                next="docs/runbooks/deploy-failed.md, then the same command again",
            )

    @contextmanager
    def _runner(self) -> Iterator[tuple[Runner, Snapshot]]:
        """SSH to the hosts there are now."""
        oldest = inventory.max_age(self.settings)
        snapshot = inventory.load(self.settings, max_age_seconds=oldest, refresh=True)
        prepare(self.settings, snapshot)
        with Runner(self.settings, snapshot) as runner:
            yield runner, snapshot


def _lacking(file: str, new: Result, old: Result) -> str:
    """What is wrong with a file, by grep's counts of the new and the old value; "" when nothing."""
    for answer in (new, old):
        if not answer.stdout.strip().isdecimal():
            return f"{file} could not be searched: {answer.last_words}"
    if int(new.stdout) == 0:
        return f"{file} does not hold the new value"
    return f"{file} holds the old value too" if int(old.stdout) else ""
