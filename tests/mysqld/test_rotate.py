"""Passwords of MySQL are changed while an application logs in all the time: on every member, also
killed half-way, and the binary logs hold none of them.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import pymysql
import pytest
from mysqld.operators import operator
from mysqld.trio import Trio

from flotilla import secrets as capability
from flotilla.aws import secrets as ssm
from flotilla.hosts.ssh import Result
from flotilla.mysql import operate as mysql
from flotilla.mysql.ensure import Ensure
from flotilla.mysql.session import Session
from flotilla.rules.secrets import ROTATED, SUFFIXES
from flotilla.secrets import hosts as edge
from flotilla.settings import Settings
from flotilla.snapshot import Host, Snapshot
from flotilla.wait import until

APP = "an application's"


class Killed(BaseException):
    """Nothing handles it, as nothing handles a SIGKILL."""


class Application:
    """A client that was started with a password, and logs in anew for every query, everywhere."""

    def __init__(self, trio: Trio, environment: Path) -> None:
        self._trio, self.environment = trio, environment
        self.logins, self.failures = 0, []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def start(self) -> None:
        """Or start again, with what the environment says by now."""
        self.password = self.environment.read_text().strip()

    @property
    def is_stale(self) -> bool:
        return self.password not in self.environment.read_text()

    def __enter__(self) -> Self:
        self.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stopped.wait(0.02):
            for server in self._trio.servers.values():
                try:
                    user = self._trio.settings.mysql.user
                    pymysql.connect(
                        host=server.address, user=user, password=self.password, connect_timeout=10
                    ).close()
                    self.logins += 1
                except pymysql.err.MySQLError as error:
                    self.failures.append((server.name, str(error)))


@dataclass(frozen=True)
class Servers(edge.Fleet):
    """The fleet's own ways, with what the playbook and a deploy do to the application's host."""

    trio: Trio
    hosts: tuple[Host, ...]
    app: Application

    def _configure(self, role: str) -> None:
        assert role == "app"
        found = ssm.of_roles(self.settings, ["mysql"])
        self.app.environment.write_text(found["mysql/app_password"] + "\n")

    def _stale(self) -> list[str]:
        return ["app-1"] if self.app.is_stale else []

    def _restart_application(self) -> None:
        self.app.start()

    @contextmanager
    def _runner(self) -> Iterator[Any]:
        yield self, Snapshot(time.time(), self.hosts)

    def run(self, host: Host, command: str, **options: Any) -> Result:
        command = command.replace("/etc/app/environment", str(self.app.environment))
        done = subprocess.run(
            ["sh", "-c", command],
            input=options["stdin"],
            capture_output=True,
            text=True,
            check=False,
        )
        return Result(host.name, done.stdout, done.stderr, done.returncode, 0.0)


@pytest.fixture
def made(trio: Trio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    """A whole cluster, and an application that logs in to all of it."""
    environment = tmp_path / "environment"
    environment.write_text(f"{APP}\n")
    with operator(trio, tmp_path) as (opened, _), Application(trio, environment) as app:

        @contextmanager
        def session(_: Settings, *, fresh: bool) -> Iterator[Session]:
            yield opened

        monkeypatch.setattr(mysql, "session", session)
        monkeypatch.setattr(edge, "session", session)
        members = opened.snapshot.by_role("mysql")
        host = replace(members[0], name="app-1", role="app", instance_id="i-app")
        yield Servers(
            trio.settings, ROTATED["mysql-app"], "mysql-app", print, trio, (*members, host), app
        )


def rotate(made: Servers, name: str = "mysql-app") -> dict[str, Any]:
    secret = ROTATED[name]
    return capability.rotate(
        made.settings,
        name,
        confirmed=print,
        said=print,
        hosts=lambda *_: replace(made, secret=secret, name=name),
    )


def words(made: Servers, name: str, *values: str) -> list[list[str]]:
    return [list(said) for said in replace(made, secret=ROTATED[name]).logins(values).values()]


def value_of(made: Servers, parameter: str) -> str:
    return ssm.of_roles(made.settings, ["mysql"])[f"mysql/{parameter}"]


def in_any_log(trio: Trio, value: str) -> list[str]:
    """The files of the servers, logs and relay logs among them, that hold a value in clear."""
    files = (path for server in trio.servers.values() for path in server.folder.rglob("*"))
    logs = [
        p
        for p in files
        if p.is_file() and ("binlog" in p.name or "relay" in p.name or p.suffix == ".log")
    ]
    assert logs
    return [str(path) for path in logs if value.encode() in path.read_bytes()]


def test_the_application_s_password_is_changed_everywhere_and_it_never_fails(
    made: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_secret = ssm.write

    def killing(*args: Any, **more: Any) -> Any:
        write_secret(*args, **more)
        raise Killed

    # Dead after every write but the last, which ends it.
    for _ in range(6):
        monkeypatch.setattr(ssm, "write", killing)
        with pytest.raises(Killed):
            rotate(made)
        # Whoever makes the cluster whole meanwhile leaves it as it is.
        made.trio.ensure()
        assert words(made, "mysql-app", made.app.password) == [["accepted"]] * 3
        assert made.app.failures == []
    monkeypatch.setattr(ssm, "write", write_secret)
    assert rotate(made)["steps"] == ["refuse"]
    now = value_of(made, "app_password")
    assert now != APP
    assert made.app.password == now
    assert words(made, "mysql-app", now, APP) == [["accepted", "refused"]] * 3
    before = made.app.logins
    until(lambda: made.app.logins > before + 12, seconds=20)
    assert made.app.failures == []
    assert in_any_log(made.trio, now) == []
    found = ssm.of_roles(made.settings, ["mysql"])
    assert not [name for name in found if name.endswith(SUFFIXES)]
    with made.trio.cluster() as cluster:
        assert Ensure(made.settings, cluster).plan().steps == ()


def test_a_run_that_died_before_clients_were_given_the_new_value_goes_on_with_that_value(
    made: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = value_of(made, "monitor_password")
    write_secret = ssm.write

    def killing(*args: Any, **more: Any) -> Any:
        if args[3].suffix == ".previous":
            raise Killed
        return write_secret(*args, **more)

    monkeypatch.setattr(ssm, "write", killing)
    with pytest.raises(Killed):
        rotate(made, "mysql-monitor")
    following = value_of(made, "monitor_password.next")
    assert words(made, "mysql-monitor", first, following) == [["accepted"] * 2] * 3
    monkeypatch.setattr(ssm, "write", write_secret)
    rotate(made, "mysql-monitor")
    assert words(made, "mysql-monitor", following, first) == [["accepted", "refused"]] * 3


def test_a_second_password_that_somebody_gave_by_hand_is_taken_away(made: Servers) -> None:
    user = made.settings.mysql.user
    made.trio.rows(
        made.trio.primary.name,
        f"ALTER USER '{user}'@'%%' IDENTIFIED BY %s RETAIN CURRENT PASSWORD",
        "by-hand",
    )
    assert words(made, "mysql-app", "by-hand", APP)[0] == ["accepted", "accepted"]
    with made.trio.cluster() as cluster:
        Ensure(made.settings, cluster).apply(nullcontext)
    until(
        lambda: words(made, "mysql-app", APP, "by-hand") == [["accepted", "refused"]] * 3,
        seconds=20,
    )
    assert made.app.failures == []
