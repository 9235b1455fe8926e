"""What must hold of a cluster after a failover, and ways to write to it on purpose."""

from __future__ import annotations

import time

from mysqld.trio import Trio
from mysqld.writers import TABLE, Writers, held

from flotilla.wait import until

_WRITABLE = "SELECT @@GLOBAL.read_only OR @@GLOBAL.offline_mode AS closed"


def writable(trio: Trio) -> list[str]:
    """Every running server that would take an application's write."""
    return [
        name
        for name, server in trio.servers.items()
        if server.is_running and not trio.rows(name, _WRITABLE)[0]["closed"]
    ]


def is_whole_without(trio: Trio, *gone: str) -> None:
    """One primary, by record and in fact; everybody else follows it and acknowledges."""
    primary = trio.primary
    assert writable(trio) == [primary.name]
    term = trio.rows(primary.name, "SELECT term, uuid FROM ops.term ORDER BY term DESC LIMIT 1")
    assert term == [{"term": trio.record.term, "uuid": trio.record.uuid}]
    for replica in trio.replicas:
        if replica.name in gone:
            continue
        rows = trio.rows(
            replica.name,
            "SELECT c.HOST AS host, s.SERVICE_STATE AS io, a.SERVICE_STATE AS applier"
            " FROM performance_schema.replication_connection_configuration c"
            " JOIN performance_schema.replication_connection_status s USING (CHANNEL_NAME)"
            " JOIN performance_schema.replication_applier_status a USING (CHANNEL_NAME)",
        )
        assert rows == [{"host": primary.address, "io": "ON", "applier": "ON"}]
    clients = trio.rows(primary.name, "SHOW GLOBAL STATUS LIKE 'Rpl_semi_sync_source_clients'")
    assert int(clients[0]["Value"]) == 2 - len(gone)


def nothing_is_lost(trio: Trio, clients: Writers) -> None:
    """Every row that any server said OK to is on the primary."""
    acked = {write.id for write in clients.stop()}
    assert acked
    assert not acked - held(trio, trio.primary.name)


def writes_go_on(clients: Writers) -> None:
    """A server tells them OK again."""
    moment = time.monotonic()
    until(lambda: len(clients.since(moment)) > 20, seconds=20)


def settled(trio: Trio) -> None:
    """A table with rows that everybody has applied."""
    with Writers(trio, count=1) as clients:
        until(lambda: len(clients.acked) > 5, seconds=20)
    for replica in trio.replicas:
        until(lambda r=replica: held(trio, r.name) == held(trio, "mysql-1"), seconds=10)


def commit(trio: Trio, number: int) -> None:
    user = trio.settings.mysql.user
    client = trio.primary.client(user, trio.secrets.passwords[user])
    table = f"{trio.settings.mysql.database}.{TABLE}"
    with client.cursor() as cursor:
        cursor.execute(f"INSERT INTO {table} VALUES (%s, @@server_uuid)", (number,))
    client.close()
