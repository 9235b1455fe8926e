"""Passwords of MySQL are changed while an application logs in all the time: on every member, also
killed half-way, and the binary logs hold none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pymysql
import pytest
from mysqld.operators import operator
from mysqld.trio import Trio
from rotating import Application, Killed, Rotated, rotate, words

from flotilla.aws import secrets as ssm
from flotilla.mysql import operate as mysql
from flotilla.mysql.ensure import Ensure
from flotilla.mysql.session import Session
from flotilla.rules.secrets import ROTATED, SUFFIXES
from flotilla.secrets import hosts as edge
from flotilla.settings import Settings
from flotilla.wait import until

APP = "an application's"


class Everywhere(Application):
    """It logs in to every member."""

    def __init__(self, trio: Trio, environment: Path) -> None:
        super().__init__(environment, APP)
        self._trio = trio

    def ask(self) -> None:
        user = self._trio.settings.mysql.user
        for server in self._trio.servers.values():
            try:
                pymysql.connect(
                    host=server.address, user=user, password=self.password, connect_timeout=10
                ).close()
                self.logins += 1
            except pymysql.err.MySQLError as error:
                self.failures.append(f"{server.name} {error}")


@dataclass(frozen=True)
class Servers(Rotated):
    """With what the playbook does to the application's host."""

    trio: Trio

    def _configure(self, role: str) -> None:
        assert role == "app"
        self.app.give(ssm.of_roles(self.settings, ["mysql"])["mysql/app_password"])


@pytest.fixture
def made(trio: Trio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    """A whole cluster, and an application that logs in to all of it."""
    application = Everywhere(trio, tmp_path / "environment")
    with operator(trio, tmp_path) as (opened, _), application as app:

        @contextmanager
        def session(_: Settings, *, fresh: bool) -> Iterator[Session]:
            yield opened

        monkeypatch.setattr(mysql, "session", session)
        monkeypatch.setattr(edge, "session", session)
        members = opened.snapshot.by_role("mysql")
        host = replace(members[0], name="app-1", role="app", instance_id="i-app")
        hosts = (*members, host)
        yield Servers(trio.settings, ROTATED["mysql-app"], "mysql-app", print, hosts, app, trio)


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
            rotate(made, "mysql-app")
        # Whoever makes the cluster whole meanwhile leaves it as it is.
        made.trio.ensure()
        assert words(made, "mysql-app", made.app.password) == [["accepted"]] * 3
        assert made.app.failures == []
    monkeypatch.setattr(ssm, "write", write_secret)
    assert rotate(made, "mysql-app")["steps"] == ["refuse"]
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
