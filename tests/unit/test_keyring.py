"""A watcher reads its passwords again while it runs, and keeps what it has while SSM is silent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pymysql
import pytest

from flotilla.agent.keyring import Keyring, Password
from flotilla.errors import Unreachable
from flotilla.hosts.mysql import Server
from flotilla.mysql.accounts import REPLICATION, WATCHER


class Parameters:
    """SSM, as far as a watcher reads it."""

    def __init__(self) -> None:
        self.values = {WATCHER: Password("old", 1), REPLICATION: Password("its", 4)}
        self.error: Unreachable | None = None

    def read(self) -> dict[str, Password]:
        if self.error:
            raise self.error
        return dict(self.values)


@pytest.fixture
def ssm() -> Parameters:
    return Parameters()


@pytest.fixture
def ring(ssm: Parameters) -> Keyring:
    return Keyring(ssm.read)


def test_what_is_written_is_used_from_the_next_reading_on(ssm: Parameters, ring: Keyring) -> None:
    ssm.values[WATCHER] = Password("new", 2)
    assert ring.password(WATCHER) == "old"
    ring.turn()
    assert ring.password(WATCHER) == "new"
    assert ring.secrets().passwords == {WATCHER: "new", REPLICATION: "its"}
    assert ring.versions() == {WATCHER: 2, REPLICATION: 4}


def test_what_cannot_be_read_is_held_on_to_and_said_once(
    ssm: Parameters, ring: Keyring, caplog: pytest.LogCaptureFixture
) -> None:
    ssm.error = Unreachable("SSM does not answer")
    ring.turn()
    ring.turn()
    assert ring.versions() == {WATCHER: 1, REPLICATION: 4}
    assert len(caplog.records) == 1


def test_without_a_first_reading_there_is_no_ring(ssm: Parameters) -> None:
    ssm.error = Unreachable("SSM does not answer")
    with pytest.raises(Unreachable):
        Keyring(ssm.read)


def test_no_value_is_logged_or_shown(
    ssm: Parameters, ring: Keyring, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    ssm.values[REPLICATION] = Password("a-new-secret", 5)
    ring.turn()
    assert f"{REPLICATION}: version 5" in caplog.text
    assert "a-new-secret" not in caplog.text + repr(ssm.values)


def test_a_session_is_opened_with_the_password_of_that_moment(
    ssm: Parameters, ring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def connection(**options: Any) -> Any:
        seen.append(options["password"])
        raise pymysql.err.OperationalError(2013, "gone")

    monkeypatch.setattr(pymysql.connections, "Connection", connection)
    server = Server("mysql-1", Stream, WATCHER, password=lambda: ring.password(WATCHER))
    turn: list[Callable[[], None]] = [lambda: None, ring.turn]
    ssm.values[WATCHER] = Password("new", 2)
    for act in turn:
        act()
        with pytest.raises(Unreachable):
            server.query("SELECT 1")
    assert seen == ["old", "new"]


class Stream:
    """Nobody at the other end."""

    def settimeout(self, _: float) -> None:
        """It takes none."""

    def close(self) -> None:
        """It was not open."""
