"""TLS between real servers: who is refused, who is believed, and a renewal that nobody notices."""

from __future__ import annotations

import errno
import json
import ssl
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pymysql
import pytest
from mysqld.checks import is_whole_without
from mysqld.server import Mysqld
from mysqld.trio import Trio
from mysqld.trust import OURS, ZONE, Trust, mysql_tls

from flotilla.agent.refusals import Refusals
from flotilla.agent.sessions import Sessions
from flotilla.agent.sessions import Trust as Believed
from flotilla.errors import HostFailed, Unreachable
from flotilla.mysql import clone, steps
from flotilla.mysql.accounts import WATCHER
from flotilla.mysql.ensure import Ensure
from flotilla.mysql.switchover import Move
from flotilla.rules.mysql_state import Place
from flotilla.wait import until

pytestmark = pytest.mark.timeout(600)
SECURE_TRANSPORT_REQUIRED = 3159


@pytest.fixture
def user(trio: Trio) -> tuple[str, str]:
    name = trio.settings.mysql.user
    return name, trio.secrets.passwords[name]


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    path = tmp_path / "authority.pem"
    path.write_text(OURS.root.public())
    return path


def root(server: Mysqld) -> Any:
    """What the host's own tool speaks to."""
    found = mysql_tls.connected(str(server.folder / "mysqld.sock"))
    assert found is not None
    return found


def give(server: Mysqld, served: bytes) -> str:
    """Have that server serve this; what the tool did."""
    server.served.write_bytes(served)
    return str(mysql_tls.serve(root(server), server.served, is_new=True))


def serial(server: Mysqld) -> int:
    """Of the certificate that a client is shown."""
    context = ssl.create_default_context(cadata=OURS.root.public())
    connection = server.client("monitor", _MONITOR, ssl=context)
    try:
        return int(connection._sock.getpeercert()["serialNumber"], 16)
    finally:
        connection.close()


_MONITOR = "a monitor's"


def watched(trio: Trio, authority: Path, name: str, *, called: str = "") -> list[Any]:
    """What a watcher is told by a server, which has to prove to be ``called``."""
    server = trio[name]
    place = Place(called or name, server.instance_id, server.address)
    sessions = Sessions(lambda: trio.secrets.passwords[WATCHER], Believed(authority, ZONE))
    session = sessions.server(place)
    try:
        return list(session.query("SELECT 1 AS one"))
    finally:
        session.close()


def stream(trio: Trio, name: str) -> tuple[str, str]:
    """State and last complaint of a replica's stream."""
    rows = trio.rows(
        name,
        "SELECT SERVICE_STATE AS io, LAST_ERROR_MESSAGE AS said"
        " FROM performance_schema.replication_connection_status",
    )
    return rows[0]["io"], rows[0]["said"]


def verifies(trio: Trio, name: str) -> bool:
    rows = trio.rows(
        name,
        "SELECT SSL_VERIFY_SERVER_CERTIFICATE AS verifies, SSL_CA_FILE AS ca"
        " FROM performance_schema.replication_connection_configuration",
    )
    return bool(rows == [{"verifies": "YES", "ca": str(trio[name].served)}])


def again(trio: Trio, name: str) -> None:
    """Have a replica connect anew."""
    session = trio[name].session()
    session.batch(["STOP REPLICA IO_THREAD", "START REPLICA IO_THREAD"], seconds=30)
    session.close()


def test_without_tls_nobody_is_let_in_once_nobody_needs_it(
    trio: Trio, user: tuple[str, str], tmp_path: Path
) -> None:
    server, file = trio.primary, tmp_path / "zz-flotilla-tls.cnf"
    plain = server.client(*user, ssl_disabled=True)
    assert mysql_tls.require(root(server), file, server.served) == [f"{user[0]} from 127.0.0.1"]
    assert not file.exists()
    server.client(*user, ssl_disabled=True).close()
    plain.close()
    until(lambda: not mysql_tls.plain(root(server), 0.0), seconds=10)
    assert mysql_tls.require(root(server), file, server.served, seconds=0.3) == []
    assert "require_secure_transport = ON" in file.read_text()
    with pytest.raises(pymysql.err.OperationalError) as refused:
        server.client(*user, ssl_disabled=True)
    assert refused.value.args[0] == SECURE_TRANSPORT_REQUIRED
    # The socket is no network, and whoever speaks TLS is let in; nothing is done a second time.
    assert trio.rows(server.name, "SELECT 1 AS one") == [{"one": 1}]
    server.client(*user, ssl=ssl.create_default_context(cadata=OURS.root.public())).close()
    assert mysql_tls.require(root(server), file, server.served) == []
    mysql_tls.allow(root(server), file)
    server.client(*user, ssl_disabled=True).close()
    assert not file.exists()


def test_a_full_disk_leaves_plain_connections_as_they_were(
    trio: Trio, user: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    server, file = trio.primary, tmp_path / "zz-flotilla-tls.cnf"
    until(lambda: not mysql_tls.plain(root(server), 0.0), seconds=10)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(mysql_tls.TlsError, match=r"No space left.*is as it was"):
            mysql_tls.require(root(server), file, server.served, seconds=0.3)
    assert not file.exists()
    server.client(*user, ssl_disabled=True).close()


def test_a_server_that_lets_root_not_in_says_so(trio: Trio) -> None:
    server = trio.replicas[0]
    inside = server.session()
    inside.batch(["SET sql_log_bin = 0", "SET GLOBAL super_read_only = OFF"])
    inside.batch(["ALTER USER root@localhost ACCOUNT LOCK"])
    try:
        with pytest.raises(mysql_tls.TlsError, match=r"lets root not in .*locked"):
            root(server)
    finally:
        inside.batch(["ALTER USER root@localhost ACCOUNT UNLOCK"])
        inside.close()


def test_who_was_refused_is_told_once_with_account_and_address(
    trio: Trio, user: tuple[str, str], authority: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The server's own log has no line of a connection without TLS."""
    server, name = trio.primary, user[0]
    place = Place(server.name, server.instance_id, server.address)
    sessions = Sessions(lambda: trio.secrets.passwords[WATCHER], Believed(authority, ZONE))
    refusals = Refusals(lambda: sessions.server(place))
    trusting = ssl.create_default_context(cadata=OURS.root.public())
    trio.rows(server.name, "SET GLOBAL require_secure_transport = ON")
    try:
        refusals.look()
        before = len(server.log)
        for account, why in ((user, "insecure"), (user, "insecure"), (("nobody_s", "x"), "denied")):
            with pytest.raises(pymysql.err.OperationalError, match=why):
                server.client(*account, ssl_disabled=True)
        assert "insecure" not in server.log[before:]
        with pytest.raises(pymysql.err.OperationalError, match="Access denied"):
            server.client(name, "not it", ssl=trusting)
        refusals.look()
        refusals.look()
    finally:
        trio.rows(server.name, "SET GLOBAL require_secure_transport = OFF")
    told = [json.loads(one.message) for one in caplog.records if one.name == "flotilla.refusals"]
    plain, wrong = "connection without TLS", "access denied"
    address = "127.0.0.1"
    assert {"refused": plain, "account": name, "from": address, "times": 2} in told
    assert {"refused": wrong, "account": name, "from": address, "times": 1} in told
    assert [sum(x["times"] for x in told if x["refused"] == y) for y in (plain, wrong)] == [2, 2]


def test_clients_are_refused_below_tls_1_3(trio: Trio, user: tuple[str, str]) -> None:
    old = ssl.create_default_context(cadata=OURS.root.public())
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(pymysql.err.OperationalError, match=r"(?i)protocol|ssl"):
        trio.primary.client(*user, ssl=old)


def test_a_renewal_is_served_at_once_and_cuts_nobody(
    trio: Trio, user: tuple[str, str], tmp_path: Path
) -> None:
    """On the port of clients and on that of watchers; the second time there is nothing to do."""
    server = trio.primary
    open_before = server.client(*user, ssl=ssl.create_default_context(cadata=OURS.root.public()))
    before = serial(server)
    home = OURS.home(tmp_path, server.name, server.address)
    assert mysql_tls.put(home, server.served)
    done = mysql_tls.serve(root(server), server.served, is_new=True)
    assert done.startswith("MySQL serves the certificate until ")
    assert serial(server) != before
    with open_before.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)
    assert not mysql_tls.put(home, server.served)
    assert mysql_tls.serve(root(server), server.served, is_new=False) == ""


@pytest.mark.parametrize("kind", ["junk", "ended"])
def test_what_is_no_good_leaves_the_old_certificate_in_use(trio: Trio, kind: str) -> None:
    server = trio.primary
    before = serial(server)
    old = datetime.now(UTC) - timedelta(days=8)
    text = b"junk" if kind == "junk" else OURS.served(server.name, server.address, old)
    with pytest.raises(mysql_tls.TlsError):
        give(server, text)
    assert serial(server) == before


def test_watchers_believe_the_host_they_asked_for_and_nobody_else(
    trio: Trio, authority: Path
) -> None:
    assert watched(trio, authority, "mysql-2") == [{"one": 1}]
    with pytest.raises(Unreachable, match="Hostname mismatch"):
        watched(trio, authority, "mysql-2", called="mysql-3")
    give(trio["mysql-2"], Trust().served("mysql-2", trio["mysql-2"].address))
    with pytest.raises(Unreachable, match="certificate verify failed"):
        watched(trio, authority, "mysql-2")


@pytest.mark.parametrize("kind", ["another authority", "another address"])
def test_a_replica_follows_nobody_who_cannot_prove_the_address(trio: Trio, kind: str) -> None:
    primary, replica = trio.primary, trio.replicas[0]
    assert all(verifies(trio, one.name) for one in trio.replicas)
    if kind == "another authority":
        served = Trust().served(primary.name, primary.address)
    else:
        served = OURS.served(primary.name, primary.address, addresses=[replica.address])
    give(primary, served)
    again(trio, replica.name)
    until(lambda: "certificate verify failed" in stream(trio, replica.name)[1], seconds=15)
    assert stream(trio, replica.name)[0] == "CONNECTING"
    give(primary, OURS.served(primary.name, primary.address))
    until(lambda: stream(trio, replica.name)[0] == "ON", seconds=15)


def test_a_copy_is_taken_from_no_stranger(trio: Trio) -> None:
    primary, replica = trio.primary, trio.replicas[0]
    give(primary, Trust().served(primary.name, primary.address))
    with trio.cluster() as cluster:
        clone.admit(cluster.server(primary.name), cluster.server(primary.name), "a copy's")
        clone.close(cluster.server(replica.name))
        with pytest.raises(HostFailed, match="certificate verify failed"):
            clone.copy(
                cluster.server(replica.name), primary.address, "a copy's", start=lambda: None
            )


def test_after_a_move_of_the_primary_everybody_verifies_the_new_one(trio: Trio) -> None:
    old = trio.primary.name
    with trio.cluster() as cluster:
        move = Move(trio.settings, cluster)
        move.apply(move.plan(), lambda _: nullcontext())
    assert trio.primary.name != old
    is_whole_without(trio)
    assert all(verifies(trio, one.name) for one in trio.replicas)


def test_a_group_from_before_moves_without_a_restart_and_a_second_run_changes_nothing(
    trio: Trio,
) -> None:
    """In the order of site.yml; `ensure` alone, too early, leaves it as it is."""
    for replica in trio.replicas:
        session = trio[replica.name].session()
        session.batch(["STOP REPLICA IO_THREAD", (steps.TRUST, ("", 0)), "START REPLICA"])
        session.close()
    for server in trio.servers.values():
        mysql_tls._set(
            root(server),
            {
                "ssl_ca": "ca.pem",
                "ssl_cert": "server-cert.pem",
                "ssl_key": "server-key.pem",
                "tls_version": "TLSv1.2,TLSv1.3",
            },
        )
    with trio.cluster() as cluster:
        assert Ensure(trio.settings, cluster).apply(lambda _: nullcontext()).steps == ()
    for server in trio.servers.values():
        assert mysql_tls.serve(root(server), server.served, is_new=False)
    with trio.cluster() as cluster:
        done = Ensure(trio.settings, cluster).apply(lambda _: nullcontext()).steps
        assert [(step.verb, step.member) for step in done] == [
            ("verify", replica.name) for replica in trio.replicas
        ]
        assert Ensure(trio.settings, cluster).apply(lambda _: nullcontext()).steps == ()
    assert all(verifies(trio, one.name) for one in trio.replicas)
    until(lambda: acknowledgers(trio) == 2, seconds=20)
    is_whole_without(trio)


def acknowledgers(trio: Trio) -> int:
    with trio.cluster([trio.primary.name]) as cluster:
        return steps.clients(cluster.server(trio.primary.name))


def test_a_primary_that_cannot_prove_its_address_is_followed_as_before(
    trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, replica = trio.primary, trio.replicas[0]
    session = replica.session()
    session.batch(["STOP REPLICA IO_THREAD", (steps.TRUST, ("", 0)), "START REPLICA"])
    session.close()
    give(primary, Trust().served(primary.name, primary.address))
    monkeypatch.setattr(steps, "CONNECT_SECONDS", 4.0)
    with trio.cluster() as cluster:
        ensure = Ensure(trio.settings, cluster)
        with pytest.raises(HostFailed, match="certificate verify failed"):
            ensure.apply(lambda _: nullcontext())
    until(lambda: stream(trio, replica.name)[0] == "ON", seconds=15)
