"""The sample application: what its visitors see when databases come and go.

Sessions use a real Redis where one is installed. MySQL servers are scripted here, one for each
port; tests/lab has the real ones.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import pymysql
import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from ports import free_port

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "guestbook"
sys.path.insert(0, str(EXAMPLE))

from guestbook import database as db  # noqa: E402
from guestbook import entries, web  # noqa: E402
from guestbook.settings import Address, Settings, SettingsError, read  # noqa: E402

ENV = {"DATABASE_PASSWORD": "x", "CACHE_PASSWORD": "secret", "SECRET_KEY": "k"}
WRITER, READER = 3306, 3307


def gone() -> pymysql.err.OperationalError:
    return pymysql.err.OperationalError(2013, "Lost connection to MySQL server during query")


class Servers:
    """What is behind each port: statements that fail in this order, then rows."""

    def __init__(self) -> None:
        self.rows: dict[int, list[dict[str, Any]]] = {WRITER: [], READER: []}
        self.errors: dict[int, list[Exception]] = {WRITER: [], READER: []}
        self.down: set[int] = set()
        self.statements: list[tuple[int, str]] = []
        self.connected: list[int] = []

    def connect(self, *, port: int, **_: object) -> Connection:
        self.connected.append(port)
        if port in self.down:
            raise pymysql.err.OperationalError(2003, "Can't connect to MySQL server")
        return Connection(self, port)


class Connection:
    def __init__(self, servers: Servers, port: int) -> None:
        self.servers, self.port, self.stamp = servers, port, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def cursor(self) -> Connection:
        return self

    def execute(self, sql: str, _: object = ()) -> None:
        self.servers.statements.append((self.port, sql))
        self.stamp = "@@global.gtid_executed" in sql
        if self.port in self.servers.down:
            raise gone()
        if self.servers.errors[self.port]:
            raise self.servers.errors[self.port].pop(0)

    def fetchone(self) -> dict[str, Any]:
        return {"server": f"uuid-of-{self.port}", "gtid_executed": "a:1-5,\nb:1"}

    def fetchall(self) -> list[dict[str, Any]]:
        return list(self.servers.rows[self.port])

    def close(self) -> None:
        pass


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Servers:
    made = Servers()
    monkeypatch.setattr(pymysql, "connect", made.connect)
    return made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(servers: Servers, clock: Clock) -> db.Database:
    return db.Database(read(ENV), clock=clock, sleep=clock.sleep)


def test_reads_go_to_a_replica_and_writes_to_the_primary(database, servers) -> None:
    servers.rows[READER] = [{"n": 1}]
    assert database.read("SELECT n") == [{"n": 1}]
    stamp = database.insert("INSERT ...", ("id",))
    assert stamp == db.Stamp("uuid-of-3306", "a:1-5,b:1")
    assert [port for port, _ in servers.statements] == [READER, WRITER, WRITER]


def test_without_a_replica_the_primary_answers(database, servers) -> None:
    servers.down.add(READER)
    servers.rows[WRITER] = [{"n": 1}]
    assert database.read("SELECT n") == [{"n": 1}]


def test_a_connection_cut_while_idle_costs_one_new_connection_and_no_error(
    database, servers, clock
) -> None:
    database.read("SELECT 1")
    servers.errors[READER] = [gone()]
    database.read("SELECT 1")
    assert servers.connected == [READER, READER]
    assert clock.now == 0


def test_one_connection_serves_many_threads_one_after_the_other(database, servers) -> None:
    threads = [threading.Thread(target=database.read, args=("SELECT 1",)) for _ in range(8)]
    for thread in threads:
        thread.start()
        thread.join()
    assert servers.connected == [READER]


def test_requests_at_the_same_time_have_a_connection_each(database, servers) -> None:
    both = threading.Barrier(2, timeout=5)

    def work(_: object) -> None:
        both.wait()

    threads = [
        threading.Thread(target=database._retry, args=(read(ENV).reader, work, 0)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert servers.connected == [READER, READER]


def test_a_break_costs_one_new_connection_however_many_were_idle(database, servers, clock) -> None:
    database.warm(3)
    servers.errors[READER] = [gone()]
    database.read("SELECT 1")
    assert servers.connected.count(READER) == 4
    database.read("SELECT 1")
    assert servers.connected.count(READER) == 4
    assert clock.now == 0


def test_a_warm_process_opens_nothing_for_its_first_requests(database, servers) -> None:
    database.warm(2)
    assert sorted(servers.connected) == [WRITER, WRITER, READER, READER]
    database.read("SELECT 1")
    database.insert("INSERT ...", ("id",))
    assert len(servers.connected) == 4


def test_a_process_starts_while_the_database_is_away(database, servers) -> None:
    servers.down.update({WRITER, READER})
    database.warm(2)
    servers.down.clear()
    servers.rows[READER] = [{"n": 1}]
    assert database.read("SELECT n") == [{"n": 1}]


@pytest.mark.parametrize("code", [1040, 1053, 1290, 1836, 2006, 2013, 3032])
def test_a_write_outlives_a_failover_shorter_than_the_patience(
    database, servers, clock, code: int
) -> None:
    servers.errors[WRITER] = [pymysql.err.OperationalError(code, "moving")] * 20
    database.insert("INSERT ...", ("id",))
    assert 0 < clock.now < 3


def test_a_write_is_given_up_when_the_patience_is_over(database, servers, clock) -> None:
    servers.down.add(WRITER)
    with pytest.raises(db.UnavailableError, match=r"127\.0\.0\.1:3306"):
        database.insert("INSERT ...", ("id",))
    assert clock.now == pytest.approx(3, abs=0.1)


def test_an_insert_that_is_there_already_counts_as_done(database, servers) -> None:
    servers.errors[WRITER] = [gone(), pymysql.err.IntegrityError(1062, "Duplicate entry")]
    assert database.insert("INSERT ...", ("id",)).server == "uuid-of-3306"


@pytest.mark.parametrize(
    "error",
    [
        pymysql.err.ProgrammingError(1064, "syntax"),
        pymysql.err.IntegrityError(1452, "foreign key"),
        pymysql.err.DataError(1406, "too long"),
    ],
)
def test_our_own_mistakes_are_not_tried_again(database, servers, error: Exception) -> None:
    servers.errors[WRITER] = [error]
    with pytest.raises(type(error)):
        database.insert("INSERT ...", ("id",))
    assert len(servers.statements) == 1


def test_what_a_replica_lacks_is_asked_of_the_primary(database, servers) -> None:
    servers.rows[READER] = [{"id": "one-1111"}]
    servers.rows[WRITER] = [{"id": "two-2222"}]
    found = entries.by_ids(database, ["one-1111", "two-2222"])
    assert [row["id"] for row in found] == ["one-1111", "two-2222"]
    assert servers.statements[-1][1].count("%s") == 1


def test_a_visitor_sees_their_own_entry_though_replicas_lag(database, servers) -> None:
    servers.rows[WRITER] = [{"id": "mine-111"}]
    assert entries.latest(database, must_include="mine-111") == [{"id": "mine-111"}]
    assert entries.latest(database) == []


@given(st.dictionaries(st.sampled_from(["id", "author", "text"]), st.text(max_size=1100)))
def test_an_entry_that_is_taken_fits_its_columns(fields: dict[str, str]) -> None:
    try:
        entry_id, author, text = entries.clean(fields)
    except entries.InvalidError:
        return
    assert entries.ID.match(entry_id)
    assert 0 < len(author) <= 64
    assert 0 < len(text) <= 1000


@pytest.fixture(scope="module")
def redis_port() -> Iterator[int]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed here")
    port = free_port()
    lines = [f"port {port}", "bind 127.0.0.1", 'save ""', "appendonly no"]
    lines.append("user app on >secret ~* +@all -@dangerous")
    process = subprocess.Popen(
        ["redis-server", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stdin
    process.stdin.write("\n".join(lines))
    process.stdin.close()
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    yield port
    process.terminate()
    process.wait(10)


Open = Callable[[int], FlaskClient]


@pytest.fixture
def visitor(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Open:
    """A browser whose sessions are kept at a port."""
    monkeypatch.setattr(db.time, "sleep", lambda _: None)

    def open_at(port: int) -> FlaskClient:
        env = ENV | {"CACHE_ADDRESS": f"127.0.0.1:{port}", "DATABASE_PATIENCE_SECONDS": "0.05"}
        return web.create(read(env)).test_client()

    return open_at


def test_a_visitor_is_remembered_and_counted(visitor: Open, redis_port: int) -> None:
    browser = visitor(redis_port)
    assert "session: 1." in browser.get("/").text
    browser.post("/login", data={"name": "Ada"})
    page = browser.get("/").text
    assert 'value="Ada"' in page
    assert "session: 3." in page
    assert "session: 1." in visitor(redis_port).get("/").text, "another browser is another visitor"


def test_without_redis_the_page_is_served_to_a_stranger(visitor: Open) -> None:
    answer = visitor(free_port()).get("/")
    assert answer.status_code == 200
    assert "Sessions are away" in answer.text


def test_alive_asks_nobody_and_ready_names_who_is_missing(
    visitor: Open, servers: Servers, redis_port: int
) -> None:
    browser = visitor(redis_port)
    assert browser.get("/readyz").json["ready"] is True
    servers.down.add(WRITER)
    assert browser.get("/healthz").status_code == 200
    answer = browser.get("/readyz")
    assert answer.status_code == 503
    assert answer.json["checks"]["database_replica"] == "ok"
    assert "3306" in answer.json["checks"]["database_primary"]


def test_a_stored_entry_is_acknowledged_with_the_server_that_stored_it(visitor: Open) -> None:
    answer = visitor(free_port()).post("/api/entries", json={"id": "12345678", "text": "hello"})
    assert answer.status_code == 200
    assert answer.json == {
        "id": "12345678",
        "acked": True,
        "server": "uuid-of-3306",
        "gtid_executed": "a:1-5,b:1",
    }


def test_an_entry_that_cannot_be_stored_is_503_and_kept_in_the_form(
    visitor: Open, servers: Servers
) -> None:
    servers.down.add(WRITER)
    browser = visitor(free_port())
    body = {"id": "12345678", "text": "precious words"}
    assert browser.post("/api/entries", json=body).status_code == 503
    answer = browser.post("/entries", data=body)
    assert answer.status_code == 503
    assert "precious words" in answer.text
    assert 'value="12345678"' in answer.text, "sent again, it must be the same entry"


@pytest.mark.parametrize("body", [None, [], {"id": "short", "text": "x"}, {"id": "12345678"}])
def test_what_is_no_entry_is_400(visitor: Open, body: object) -> None:
    assert visitor(free_port()).post("/api/entries", json=body).status_code == 400


def test_the_page_shows_what_was_written_as_text(visitor: Open, servers: Servers) -> None:
    created = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    servers.rows[READER] = [{"id": "x", "author": "Eve", "text": "<b>hi</b>", "created": created}]
    page = visitor(free_port()).get("/").text
    assert "&lt;b&gt;hi&lt;/b&gt;" in page
    assert "2026-01-02 03:04:00" in page


def test_missing_secrets_and_odd_addresses_are_named() -> None:
    with pytest.raises(SettingsError, match="SECRET_KEY"):
        read({**ENV, "SECRET_KEY": ""})
    with pytest.raises(SettingsError, match="CACHE_ADDRESS is 'redis'"):
        read({**ENV, "CACHE_ADDRESS": "redis"})


def test_the_version_is_that_of_the_release(tmp_path: Path) -> None:
    (tmp_path / "VERSION").write_text("7\n")
    settings: Settings = read(ENV, release=tmp_path)
    assert settings.version == "7"
    assert settings.reader == Address("127.0.0.1", READER)


def test_the_same_sources_and_version_are_the_same_bytes(monkeypatch, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("guestbook_build", EXAMPLE / "build.py")
    assert spec
    assert spec.loader
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    monkeypatch.setattr(build, "wheels", list)
    digests = [hashlib.sha256(build.pack(build.contents(v))).hexdigest() for v in ("1", "1", "2")]
    assert digests[0] == digests[1] != digests[2]
    assert {"VERSION", "guestbook/web.py", "static/style.css"} <= set(build.contents("1"))
