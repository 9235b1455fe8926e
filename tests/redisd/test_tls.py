"""TLS between real servers: who is believed, who is refused, and a renewal that nobody notices."""

from __future__ import annotations

import importlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redisd.group import (
    CLUSTER,
    HOSTS,
    PORT,
    SENTINEL_PORT,
    ZONE,
    Group,
    NoImageError,
    Trust,
    redis_node,
    running,
)
from redisd.operators import Hands, operator
from redisd.test_move import there, writing

from flotilla.errors import HostFailed
from flotilla.redis.operate import TOOL
from flotilla.rules.access import refused as refused_lines
from flotilla.wait import until

pytestmark = pytest.mark.timeout(240)
tls = redis_node.redis_tls
pairs = redis_node.redis_move.pairs
RedisError = redis_node.redis.exceptions.RedisError
PORTS = (PORT, SENTINEL_PORT)


def place(group: Group, name: str) -> Any:
    return tls.Place(HOSTS[name], group.folder / name / "leaf.pem", redis_node.AUTHORITY)


def credulous(group: Group, name: str) -> Any:
    """An operator who believes whoever is there."""
    settings = group.settings(name)
    return redis_node.connect(settings, HOSTS[name], PORT, operator=True, **tls.unverified())


def give(group: Group, name: str, leaf: bytes) -> None:
    """Have that Redis serve this, whatever it is."""
    place(group, name).leaf.write_bytes(leaf)
    tls.reload(credulous(group, name), place(group, name))


def refused(group: Group, name: str) -> str:
    """Why a client does not believe a server."""
    with pytest.raises(RedisError) as error:
        group.app(name, socket_timeout=2.0).ping()
    return str(error.value)


def link(group: Group, name: str) -> str:
    return str(group.client(name).info("replication")["master_link_status"])


def told(log: Path) -> list[tuple[str, int]]:
    """What the journal would tell an audit of it."""
    found = map(refused_lines, log.read_text(errors="replace").splitlines())
    return [one for one in found if one]


def epoch(group: Group) -> int:
    """How often a replica was made primary."""
    seen = group.sentinel("redis-3").execute_command("SENTINEL", "MASTER", CLUSTER)
    return int(pairs(seen)["config-epoch"])


def test_no_port_of_any_host_answers_without_tls_and_each_refusal_is_a_line(group: Group) -> None:
    for name, address in HOSTS.items():
        for port in PORTS:
            with socket.create_connection((address, port), 2) as plain:
                plain.sendall(b"PING\r\n")
                try:
                    said = plain.recv(100)
                except ConnectionResetError:
                    said = b""
            assert b"PONG" not in said
            assert b"NOAUTH" not in said, "it would talk to somebody with a password"
        log = group.folder / name / "log"
        lines = until(
            lambda log=log: found if len(found := told(log)) >= len(PORTS) else None, seconds=5
        )
        assert lines == [("connection without TLS from 127.0.0.1", 1)] * len(PORTS)
    found = [group.client(name).config_get("*port") for name in HOSTS]
    assert {(one["port"], one["tls-port"]) for one in found} == {("0", str(PORT))}


def test_nobody_is_believed_whose_certificate_has_ended_or_is_another_authoritys_or_names(
    group: Group,
) -> None:
    old = datetime.now(UTC) - timedelta(days=8)
    group.authority.issuer = group.authority.issued(old - timedelta(days=1))
    give(group, "redis-2", group.authority.leaf("redis-2", now=old))
    assert "certificate has expired" in refused(group, "redis-2")
    # Its issuer names the root that signed it, so another one of that name is not even tried.
    assert "unable to get local issuer" in _given(group, Trust().leaf("redis-2"))
    wrong = group.authority.leaf("redis-2", addresses=[HOSTS["redis-3"]])
    assert "IP address mismatch" in _given(group, wrong)


def _given(group: Group, leaf: bytes) -> str:
    give(group, "redis-2", leaf)
    return refused(group, "redis-2")


def test_a_replica_follows_no_primary_of_another_authority_and_one_of_any_name(
    group: Group,
) -> None:
    """Redis compares no name on its links: what keeps other hosts out is the authority."""
    give(group, "redis-1", Trust().leaf("redis-1"))
    credulous(group, "redis-1").execute_command("CLIENT", "KILL", "TYPE", "REPLICA")
    until(lambda: {link(group, n) for n in ("redis-2", "redis-3")} == {"down"}, seconds=5)
    time.sleep(2.5)
    assert {link(group, n) for n in ("redis-2", "redis-3")} == {"down"}
    other = group.authority.leaf("redis-1", names=[f"other.{ZONE}"], addresses=[])
    give(group, "redis-1", other)
    until(lambda: {link(group, n) for n in ("redis-2", "redis-3")} == {"up"}, seconds=20)


class Holder:
    """One client on one connection to the primary, which it never opens again."""

    def __init__(self, group: Group) -> None:
        self._client = group.app(group.primary())
        self._over = threading.Event()
        self.count, self.error = 0, ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._id = self._client.client_id()

    def _run(self) -> None:
        try:
            while not self._over.wait(0.002):
                # No write: a busy machine's replicas lag, and the primary then takes none.
                self._client.get("held")
                self.count += 1
            assert self._client.client_id() == self._id, "it was cut, and connected again"
        except Exception as error:
            self.error = repr(error)

    @contextmanager
    def holding(self) -> Iterator[Holder]:
        self._thread.start()
        yield self
        self._over.set()
        self._thread.join(10)


def test_a_renewal_under_load_drops_no_connection_and_moves_no_primary(
    group: Group, hands: Hands
) -> None:
    failovers = epoch(group)
    with writing(group) as writer, Holder(group).holding() as held:
        for name in HOSTS:
            group.certify(name)
            said = hands.run(name, f"{TOOL} certificate").stdout
            assert said == "Redis took the certificate\nthe Sentinel took the certificate\n"
            assert not any(tls.is_stale(place(group, name), port) for port in PORTS)
            assert hands.run(name, f"{TOOL} certificate").stdout == "", "nothing to do any more"
        until(group.is_whole, seconds=20)
        count = held.count
        until(lambda: held.error or held.count > count + 20, seconds=10)
    assert held.error == ""
    assert set(writer.acked) <= there(group)
    assert [line for line in hands.did if "redis-server" in line] == []
    assert hands.did == [f"{name}: restart redis-sentinel" for name in HOSTS]
    assert (epoch(group), group.primary()) == (failovers, "redis-1")


def test_how_long_a_certificate_was_to_last_is_what_the_host_was_told(group: Group) -> None:
    """It is valid from before it was made."""
    here = place(group, "redis-1")
    assert tls.lasts(here, PORTS)["hours"] is None
    here.leaf.with_name("tls.json").write_text('{"hours": 168}')
    found = tls.lasts(here, PORTS)
    assert found["hours"] == 168
    assert 160 < found["hours_left"] <= 168
    assert 700 < found["issuer_days_left"] <= 730


def test_a_host_whose_redis_is_not_configured_yet_has_nobody_to_tell(
    group: Group, hands: Hands
) -> None:
    settings = hands.home("redis-3") / "flotilla.json"
    content = settings.read_text()
    settings.unlink()
    done = hands.run("redis-3", f"{TOOL} certificate")
    settings.write_text(content)
    assert (done.rc, done.stdout) == (0, "")


def test_a_redis_whose_certificate_has_ended_takes_the_new_one(group: Group, hands: Hands) -> None:
    """A host that was frozen for a week; its own tools would not believe it either."""
    old = datetime.now(UTC) - timedelta(days=8)
    good, group.authority.issuer = group.authority.issuer, group.authority.issued(old)
    give(group, "redis-3", group.authority.leaf("redis-3", now=old))
    assert "expired" in refused(group, "redis-3")
    group.authority.issuer = good
    group.certify("redis-3")
    assert hands.run("redis-3", f"{TOOL} certificate").stdout.startswith("Redis took")
    assert group.app("redis-3").ping()


def test_sentinels_whose_certificates_have_all_ended_take_new_ones(
    group: Group, hands: Hands
) -> None:
    """A lab that was asleep for a week: none of them believes another one's word."""
    old = datetime.now(UTC) - timedelta(days=8)
    good, group.authority.issuer = group.authority.issuer, group.authority.issued(old)
    for name in HOSTS:
        give(group, name, group.authority.leaf(name, now=old))
        group.sentinels[name].end()
        group.sentinels[name].start()
    until(lambda: all(tls._served(HOSTS[n], SENTINEL_PORT) is not None for n in HOSTS), seconds=20)
    group.authority.issuer = good
    for name in HOSTS:
        group.certify(name)
        assert "Sentinel took" in hands.run(name, f"{TOOL} certificate").stdout
    until(group.is_whole, seconds=40)


def test_no_sentinel_goes_away_for_its_certificate_while_another_one_is_away(
    group: Group, hands: Hands
) -> None:
    group.sentinels["redis-3"].end()
    group.certify("redis-1")
    with pytest.raises(HostFailed, match=r"keeps its old certificate.*redis-3 does not answer"):
        hands.run("redis-1", f"{TOOL} certificate")
    assert hands.did == []
    assert not tls.is_stale(place(group, "redis-1"), PORT), "Redis needs no restart, and has it"
    hands.run("redis-3", "systemctl start redis-sentinel")
    until(group.is_whole, seconds=30)
    assert "Sentinel took" in hands.run("redis-1", f"{TOOL} certificate").stdout


def test_a_file_that_is_no_certificate_leaves_the_old_one_in_use(
    group: Group, hands: Hands
) -> None:
    place(group, "redis-2").leaf.write_text("junk")
    with pytest.raises(HostFailed, match="holds no certificate"):
        hands.run("redis-2", f"{TOOL} certificate")
    assert group.app("redis-2").ping()


@pytest.mark.parametrize(("trusted", "visits"), [("own", 1), ("other", None)])
def test_an_application_counts_visits_at_a_redis_that_proves_its_name_and_at_no_other(
    group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: str, visits: int | None
) -> None:
    """Its name leads to a proxy on its own host, and the servers behind that have it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples" / "guestbook"))
    sessions = importlib.import_module("guestbook.sessions")
    settings = importlib.import_module("guestbook.settings")
    found = socket.getaddrinfo
    led = {ZONE: HOSTS["redis-1"]}
    monkeypatch.setattr(
        "socket.getaddrinfo", lambda host, *more, **also: found(led.get(host, host), *more, **also)
    )
    (tmp_path / "ca.pem").write_text(
        (group.authority if trusted == "own" else Trust()).root.public()
    )
    env = {
        "DATABASE_PASSWORD": "x",
        "SECRET_KEY": "x",
        "CACHE_PASSWORD": "app",
        "CACHE_ADDRESS": f"{ZONE}:{PORT}",
        "CACHE_CA": str(tmp_path / "ca.pem"),
    }
    assert sessions.Sessions(settings.read(env)).visit(None).visits == visits


def test_a_group_without_tls_moves_to_it_at_once_and_keeps_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the role: no Sentinel, then all servers, then the Sentinels."""
    try:
        with (
            running(tmp_path, plain=True) as group,
            operator(group, tmp_path, monkeypatch) as (hands, _),
        ):
            clients = {name: _plain(name) for name in HOSTS}
            until(lambda: _follow(clients), seconds=40)
            clients["redis-1"].rpush("ledger", *range(1000))
            assert clients["redis-1"].wait(2, 5000) == 2
            for name in HOSTS:
                assert hands.run(name, f"{TOOL} plain").stdout == '{"plain": true}\n'
                hands.run(name, "systemctl stop redis-sentinel")
            for name in HOSTS:
                owned = hands.home(name) / "flotilla.conf"
                owned.write_text((hands.home(name) / "flotilla.conf.tls").read_text())
            for name in HOSTS:
                assert hands.run(name, f"{TOOL} secure").stdout == "speaks TLS now\n"
                assert hands.run(name, f"{TOOL} plain").stdout == '{"plain": false}\n'
            for name in HOSTS:
                hands.run(name, "systemctl start redis-sentinel")
            group.settle()
            assert group.primary() == "redis-1"
            assert there(group) == set(range(1000))
            for client in clients.values():
                with pytest.raises(RedisError):
                    client.ping()
            for name in HOSTS:
                assert hands.run(name, f"{TOOL} unread").stdout == ""
    except NoImageError as error:
        pytest.skip(str(error))


def _plain(name: str) -> Any:
    return redis_node.redis.Redis(host=HOSTS[name], port=PORT, username="app", password="app")


def _follow(clients: dict[str, Any]) -> bool:
    try:
        found = clients["redis-1"].info("replication")
    except RedisError:
        return False
    return bool(found.get("min_slaves_good_slaves") == len(HOSTS) - 1)
