"""Passwords of MySQL are changed while an application logs in all the time: on every member, also
killed half-way, and the binary logs hold none of them. Replicas and watchers get theirs while
clients write, and in a failover.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import pymysql
import pytest
from mysqld.agents import Agents
from mysqld.commits import io_state
from mysqld.operators import operator
from mysqld.trio import NAMES, Trio
from mysqld.writers import Writers, held
from rotating import Application, Killed, Rotated, rotate, words

from flotilla.aws import secrets as ssm
from flotilla.errors import HostFailed, Unreachable
from flotilla.mysql import operate as mysql
from flotilla.mysql import steps
from flotilla.mysql.ensure import Ensure
from flotilla.mysql.session import Session
from flotilla.mysql.steps import clients
from flotilla.rules.mysql import Verb
from flotilla.rules.secrets import ROTATED, SUFFIXES
from flotilla.secrets import hosts as edge
from flotilla.settings import Settings
from flotilla.wait import until

log = logging.getLogger(__name__)

# Servers start three times, and everybody logs in everywhere after each step.
pytestmark = pytest.mark.timeout(900)

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
            # As a command's do; what outlives a server is of no use to the next one.
            for seat in opened.cluster.seats.values():
                seat.server.close()

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


# --- what watchers and replicas hold


REPLICA, WATCHER = "mysql-replication", "mysql-watcher"


class Acknowledgers:
    """``with Acknowledgers(trio) as seen:`` how many acknowledge to the primary, looked at often.

    ``least`` is the fewest there were in so many ``looks``.
    """

    def __init__(self, trio: Trio) -> None:
        self._session = trio.primary.session()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.least = clients(self._session)
        self.looks = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._session.close()

    def _look(self) -> None:
        while not self._stopped.wait(0.01):
            with suppress(Unreachable):  # a busy machine
                self.least = min(self.least, clients(self._session))
                self.looks += 1


@pytest.fixture
def agents(made: Servers, api: str) -> Iterator[Agents]:
    """A watcher beside each server, and mysql-1 is primary."""
    with Agents(made.trio, api) as running:
        try:
            running.await_whole("mysql-1", seconds=120)
            yield running
        finally:
            log.info("%s", running.logs())


def reconnected(trio: Trio, name: str) -> None:
    """A replica logs in anew, with what it keeps."""
    trio.rows(name, "STOP REPLICA IO_THREAD")
    trio.rows(name, "START REPLICA IO_THREAD")
    until(lambda: io_state(trio, trio[name]) == "ON", seconds=20, every=0.05)


def used(agents: Agents) -> list[dict[str, Any]]:
    return [agents[name].ask("/secrets")[1] for name in NAMES]


def test_replicas_log_in_anew_one_by_one_and_no_commit_goes_without_its_acknowledgement(
    made: Servers, agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    trio, write_secret, renew = made.trio, ssm.write, steps.renew_password
    first = value_of(made, "replication_password")

    def killing(*args: Any, **more: Any) -> Any:
        write_secret(*args, **more)
        raise Killed

    def killing_renewal(*args: Any) -> None:
        renew(*args)
        raise Killed

    with Writers(trio) as writers, Acknowledgers(trio) as seen:
        # Dead after every write, and after each of the two replicas.
        monkeypatch.setattr(ssm, "write", killing)
        for step in range(6):
            if step == MOVE:
                monkeypatch.setattr(steps, "renew_password", killing_renewal)
                for _ in trio.replicas:
                    with pytest.raises(Killed):
                        rotate(made, REPLICA)
                    # Its source may not have noticed yet that it is there again.
                    until(lambda: acknowledging(trio) == len(trio.replicas), seconds=20)
                monkeypatch.setattr(steps, "renew_password", renew)
            with pytest.raises(Killed):
                rotate(made, REPLICA)
            now = value_of(made, "replication_password")
            assert words(made, REPLICA, now) == [["accepted"]] * 3
        monkeypatch.setattr(ssm, "write", write_secret)
        assert rotate(made, REPLICA)["steps"] == ["refuse"]
    assert seen.looks > 100
    assert seen.least >= 1
    acked = {write.id for write in writers.stop()}
    assert len(acked) > 100
    assert not acked - held(trio, trio.primary.name)
    (row,) = trio.rows(trio.primary.name, _UNACKNOWLEDGED)
    assert row["unacknowledged"] == 0
    now = value_of(made, "replication_password")
    assert words(made, REPLICA, now, first) == [["accepted", "refused"]] * 3
    for replica in trio.replicas:
        reconnected(trio, replica.name)
    assert in_any_log(trio, now) == []
    assert not any(value in agents.logs() for value in (now, first))
    with trio.cluster() as cluster:
        assert Ensure(made.settings, cluster).plan().steps == ()


_UNACKNOWLEDGED = """
SELECT CAST(VARIABLE_VALUE AS SIGNED) AS unacknowledged FROM performance_schema.global_status
WHERE VARIABLE_NAME = 'Rpl_semi_sync_source_no_tx'
"""
# The write after which MOVE is what comes next.
MOVE = 4


def acknowledging(trio: Trio) -> int:
    session = trio.primary.session()
    try:
        return clients(session)
    finally:
        session.close()


@pytest.mark.parametrize("name", [REPLICA, WATCHER])
def test_a_failover_between_two_steps(
    made: Servers, agents: Agents, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    trio, write_secret = made.trio, ssm.write
    parameter = ROTATED[name].parameter
    first = value_of(made, parameter)

    def killing(*args: Any, **more: Any) -> Any:
        write_secret(*args, **more)
        # Clients are given the new value, and no watcher has it yet.
        if args[3].suffix == ".next" and args[3].value is None:
            raise Killed

    monkeypatch.setattr(ssm, "write", killing)
    with pytest.raises(Killed):
        rotate(made, name)
    monkeypatch.setattr(ssm, "write", write_secret)
    fail_over(trio, agents)
    done = rotate(made, name)
    assert done["steps"] == ["move", "drop", "refuse"]
    now = value_of(made, parameter)
    assert words(made, name, now, first) == [["accepted", "refused"]] * 3
    assert {one[ROTATED[name].account] for one in used(agents)} == {2}
    logged_in_anew(trio, ROTATED[name].account)
    assert not any(first in agents[one].log or now in agents[one].log for one in NAMES)


def logged_in_anew(trio: Trio, account: str) -> None:
    """The account's sessions on the primary end, and whoever had them logs in again."""
    before = sessions_of(trio, account)
    assert before
    for number in before:
        with suppress(HostFailed):  # it ended by itself
            trio.rows(trio.primary.name, f"KILL {number}")
    until(lambda: len(sessions_of(trio, account) - before) >= len(trio.replicas), seconds=60)


def sessions_of(trio: Trio, account: str) -> set[int]:
    rows = trio.rows(
        trio.primary.name,
        "SELECT PROCESSLIST_ID AS id FROM performance_schema.threads WHERE PROCESSLIST_USER = %s",
        account,
    )
    return {row["id"] for row in rows}


def fail_over(trio: Trio, agents: Agents) -> None:
    """The primary is killed, somebody else takes over, and it comes back as a replica."""
    old = trio.primary.name
    trio[old].kill()
    new = agents.await_primary(old, seconds=60)
    trio[old].start()
    trio[old].ready()
    assert agents.await_whole(new, seconds=120) == new


def test_a_watcher_that_does_not_say_what_it_uses_keeps_the_old_value_alive(
    made: Servers, agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "_READ_AGAIN", edge._READ_AGAIN.replace("15.0", "3.0"))
    first = value_of(made, "watcher_password")
    agents["mysql-3"].stop()
    with pytest.raises(HostFailed, match=r"mysql-3: its watcher does not use version 2: .*refused"):
        rotate(made, WATCHER)
    now = value_of(made, "watcher_password")
    assert words(made, WATCHER, now, first) == [["accepted"] * 2] * 3
    agents["mysql-3"].start()
    until(lambda: "flotilla_watcher" in agents["mysql-3"].ask("/secrets")[1], seconds=60)
    assert rotate(made, WATCHER)["steps"] == ["move", "drop", "refuse"]
    assert words(made, WATCHER, now, first) == [["accepted", "refused"]] * 3


def test_a_replica_that_was_left_with_a_refused_password_is_made_whole(trio: Trio) -> None:
    replica = trio.replicas[0]
    trio.rows(replica.name, "STOP REPLICA")
    # The applier runs, or its relay log would go.
    trio.rows(replica.name, "START REPLICA SQL_THREAD")
    trio.rows(replica.name, "CHANGE REPLICATION SOURCE TO SOURCE_PASSWORD = %s", "of another time")
    trio.rows(replica.name, "START REPLICA IO_THREAD")
    until(lambda: io_state(trio, replica) == "CONNECTING", seconds=20, every=0.05)
    with trio.cluster() as cluster:
        plan = Ensure(trio.settings, cluster).plan()
    assert [(step.verb, step.member) for step in plan.steps] == [
        (Verb.RENEW, replica.name),
        (Verb.RESUME, replica.name),
    ]
    trio.ensure()
    assert io_state(trio, replica) == "ON"


def test_the_only_replica_that_acknowledges_is_left_alone(trio: Trio) -> None:
    one, other = trio.replicas
    trio.rows(other.name, "STOP REPLICA IO_THREAD")
    session = trio.primary.session()
    try:
        until(lambda: clients(session) == 1, seconds=20)
        with pytest.raises(HostFailed, match=f"{one.name} is the only replica"):
            steps.await_spare(session, one.name)
    finally:
        session.close()
