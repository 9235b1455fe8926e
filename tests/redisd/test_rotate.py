"""Passwords of Redis are changed while an application logs in all the time; killed anywhere, the
same command goes on, and the old password is refused in the end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from redisd.group import HOSTS, PORT, SENTINEL_PORT, Group, _rendered, _values, redis_node
from redisd.operators import Hands, _host
from rotating import Application, Killed, Rotated, rotate, words

from flotilla.aws import secrets as ssm
from flotilla.aws.session import client
from flotilla.deploy.journal import Journal
from flotilla.errors import HostFailed, Refused
from flotilla.hosts.ssh import Result
from flotilla.rules.secrets import ROTATED, also_accepted
from flotilla.secrets import hosts as edge
from flotilla.settings import Settings
from flotilla.snapshot import Host
from flotilla.wait import until

_APPLY = f"{edge.TOOL} apply"
ACCOUNTS = ("app", "replication", "sentinel", "monitor")
FIRST = {account: f"the-first-password-of-{account}" for account in ACCOUNTS}
APP = replace(
    _host("redis-1"), name="app-1", role="app", instance_id="i-app", private_ip="127.0.0.1"
)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """With the parameters of Redis, and the locks' table that the account has."""
    for account, value in FIRST.items():
        name = settings.parameter("redis", f"{account}_password")
        client(settings, "ssm").put_parameter(Name=name, Value=value, Type="SecureString")
    return settings


class Reader(Application):
    """It reads from the primary."""

    def __init__(self, group: Group, environment: Path) -> None:
        super().__init__(environment, FIRST["app"])
        self._primary = HOSTS[group.primary_name]

    def ask(self) -> None:
        try:
            with redis_node.redis_tls.client(
                redis_node.AUTHORITY,
                host=self._primary,
                port=PORT,
                username="app",
                password=self.password,
            ) as r:
                # No write: a busy machine's replicas lag, and the primary then takes none.
                r.get("k")
            self.logins += 1
        except redis_node.redis.exceptions.RedisError as error:
            self.failures.append(f"{type(error).__name__} {error}")


@dataclass(frozen=True)
class Servers(Rotated):
    """With what the playbook does to these hosts."""

    group: Group
    hands: Hands

    def _configure(self, role: str) -> None:
        found = ssm.of_roles(self.settings, ["redis"])
        if role == "app":
            self.app.give(found["redis/app_password"])
        else:
            configured(self.group, self.hands, found)

    def run(self, host: Host, command: str, **options: Any) -> Result:
        """On the application's host this machine's shell, elsewhere what an operator has."""
        if host.role != "redis":
            return super().run(host, command, **options)
        command = command.replace("/etc/redis", str(self.group.folder / host.name))
        return self.hands.run(host, command, **options)


def configured(group: Group, hands: Hands, found: dict[str, str], **also: list[str]) -> None:
    """Every host as role redis makes it, with the passwords in SSM."""
    also |= {
        key.removeprefix("redis/").removesuffix("_password"): values
        for key, values in also_accepted(found).items()
    }
    for name in HOSTS:
        home = hands.home(name)
        values = _values(name) | {"redis_also_accepted": also}
        values |= {f"redis_{one}_password": found[f"redis/{one}_password"] for one in ACCOUNTS}
        for file in ("users.acl", "sentinel.acl"):
            (home / file).write_text(_rendered(f"{file}.j2", values))
        lines = (home / "flotilla.conf").read_text().splitlines()
        keep = [line for line in lines if not line.startswith("masterauth")]
        (home / "flotilla.conf").write_text(
            "\n".join([*keep, f"masterauth {values['redis_replication_password']}"]) + "\n"
        )
        mine = asdict(group.settings(name))
        mine["monitor_password"] = values["redis_monitor_password"]
        if "sentinel" not in also or also["sentinel"] != ["sentinel"]:
            mine["operator_password"] = values["redis_sentinel_password"]
        (home / "flotilla.json").write_text(json.dumps(mine))
        # It gives a server 0.4 s to answer, which a machine full of tests may not have.
        until(lambda n=name: hands.run(n, _APPLY, check=False).rc in {0, 2}, seconds=60, every=0.5)


@pytest.fixture
def made(
    group: Group, hands: Hands, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Servers]:
    """Three hosts with the first passwords, and an application that reads."""
    monkeypatch.setattr(edge, "PORTS", {"redis": PORT})
    monkeypatch.setattr(edge, "SENTINEL_PORT", SENTINEL_PORT)
    group.primary_name = group.primary()
    client(settings, "ssm").put_parameter(
        Name=settings.parameter("authority", "certificate"),
        Value=group.authority.root.public(),
        Type="String",
    )
    found = {f"redis/{account}_password": value for account, value in FIRST.items()}
    configured(group, hands, found, sentinel=["sentinel"])
    configured(group, hands, found)
    hosts = (*(_host(name) for name in HOSTS), APP)
    with Reader(group, tmp_path / "environment") as app:
        yield Servers(settings, ROTATED["redis-app"], "redis-app", print, hosts, app, group, hands)


def value_of(made: Servers, account: str) -> str:
    return ssm.of_roles(made.settings, ["redis"])[f"redis/{account}_password"]


@pytest.mark.timeout(900)
def test_the_application_s_password_is_changed_and_it_never_fails_wherever_a_run_is_killed(
    made: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [0]

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    write_line, write_secret = Journal.write, ssm.write

    def line(self: Journal, *args: Any, **more: Any) -> None:
        write_line(self, *args, **more)
        count()

    def secret(*args: Any, **more: Any) -> Any:
        done = write_secret(*args, **more)
        count()
        return done

    monkeypatch.setattr(Journal, "write", line)
    monkeypatch.setattr(ssm, "write", secret)
    # Each is the next line of the journal or change in SSM that it is killed after: at its begin,
    # after each change, and after accept and move, which leave none.
    for patience in (1, 3, 3, 5, 3, 3, 3, 5, 3, 3):
        left[0] = patience
        with pytest.raises(Killed):
            rotate(made, "redis-app")
        assert made.app.failures == []
    left[0] = 0
    before = made.app.logins
    until(lambda: made.app.logins > before + 20, seconds=10)
    assert made.app.failures == []
    assert not made.app.is_stale
    now = value_of(made, "app")
    assert words(made, "redis-app", now, FIRST["app"]) == [["accepted", "refused"]] * 3
    assert set(ssm.of_roles(made.settings, ["redis"])) == {f"redis/{a}_password" for a in ACCOUNTS}


@pytest.mark.parametrize("name", ["redis-monitor", "redis-replication", "redis-sentinel"])
def test_what_hosts_of_redis_use_themselves_is_changed_under_them(made: Servers, name: str) -> None:
    account = ROTATED[name].account
    rotate(made, name)
    now = value_of(made, account)
    assert now != FIRST[account]
    seats = 6 if ROTATED[name].sentinels else 3
    assert words(made, name, now, FIRST[account]) == [["accepted", "refused"]] * seats
    for host in HOSTS:
        until(lambda h=host: _is_well(made, h), seconds=30, every=0.5)
    replica = next(host for host in HOSTS if host != made.group.primary_name)
    # A link that is made anew logs in with what the host has been given.
    who = json.loads((made.hands.home(replica) / "flotilla.json").read_text())
    with redis_node.redis_tls.client(
        redis_node.AUTHORITY,
        host=HOSTS[made.group.primary_name],
        port=PORT,
        username="sentinel",
        password=who["operator_password"],
    ) as primary:
        primary.execute_command("CLIENT", "KILL", "TYPE", "replica")
    until(lambda: _follows(made, replica), seconds=20)
    assert made.app.failures == []


def _is_well(made: Servers, host: str) -> bool:
    told = json.loads(made.hands.run(host, f"{edge.TOOL} status").stdout)
    return (told["error"], told["quorum_error"], told["unseen"]) == (None, None, [])


def _follows(made: Servers, replica: str) -> bool:
    told = json.loads(made.hands.run(replica, f"{edge.TOOL} status").stdout)
    return bool(told["master_link_status"] == "up")


def test_a_stranger_s_old_password_is_not_dropped_and_a_host_that_was_not_given_the_new_stops_it(
    made: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The application's host is known by 127.0.0.1; a stranger comes from somewhere else.
    primary = HOSTS[made.group.primary_name]
    stranger = redis_node.redis_tls.Verified(
        host=primary,
        port=PORT,
        username="app",
        password=FIRST["app"],
        ssl_ca_certs=str(redis_node.AUTHORITY),
    )
    stranger._connect = lambda: stranger._wrap_socket_with_ssl(_from("127.99.0.9", primary))
    stranger.connect()
    with pytest.raises(Refused, match=r"127\.99\.0\.9 on redis-1.*--strangers-ready"):
        rotate(made, "redis-app")
    assert words(made, "redis-app", FIRST["app"], value_of(made, "app")) == [["accepted"] * 2] * 3
    with monkeypatch.context() as patched:
        patched.setattr(Servers, "_stale", lambda _: ["app-1"])
        with pytest.raises(HostFailed, match="app-1: its application was started before"):
            rotate(made, "redis-app", strangers_ready=True)
    assert rotate(made, "redis-app", strangers_ready=True)["steps"] == ["move", "drop", "refuse"]
    stranger.disconnect()


def _from(source: str, to: str) -> Any:
    import socket

    return socket.create_connection((to, PORT), 5, source_address=(source, 0))


def test_no_password_is_in_an_argument_the_journal_or_what_is_said(
    made: Servers, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[str] = []
    run = Servers.run
    made.hands.did.clear()

    def seen(self: Servers, host: Host, command: str, **options: Any) -> Result:
        commands.append(command)
        return run(self, host, command, **options)

    Servers.run = seen  # type: ignore[method-assign]
    try:
        rotate(made, "redis-app")
    finally:
        Servers.run = run  # type: ignore[method-assign]
    told = capsys.readouterr().out + " ".join(commands)
    told += "".join(path.read_text() for path in made.settings.scratch.rglob("*.jsonl"))
    for value in (FIRST["app"], value_of(made, "app")):
        assert value not in told
        assert hashlib.sha256(value.encode()).hexdigest() not in told
