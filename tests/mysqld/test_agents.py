"""Watchers on three real servers: who takes over, who does not, and what comes back."""

from __future__ import annotations

import contextlib
import logging
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pymysql
import pytest
from mysqld.agents import Agents
from mysqld.server import Mysqld
from mysqld.trio import NAMES, Trio
from mysqld.writers import TABLE, Writers, held

from flotilla.errors import FlotillaError
from flotilla.mysql.steps import stream_to
from flotilla.rules.mysql_state import Pause
from flotilla.wait import DeadlineError, until

log = logging.getLogger(__name__)

CPU_PERCENT = 1.0
MEMORY_MIB = 40.0


@pytest.fixture
def agents(trio: Trio, api: str) -> Iterator[Agents]:
    """A watcher beside each server, and mysql-1 is primary."""
    with Agents(trio, api) as running:
        try:
            running.await_whole("mysql-1", seconds=60)
            yield running
        finally:
            log.info("%s", running.logs())


def nothing_is_lost(trio: Trio, clients: Writers) -> None:
    """Every row that any server said OK to is on the primary."""
    acked = {write.id for write in clients.stop()}
    assert acked
    assert not acked - held(trio, trio.primary.name)


def stays(agents: Agents, name: str, seconds: float) -> None:
    """For so long, nobody else is primary, and no record says so."""
    with pytest.raises(DeadlineError):
        agents.await_primary(name, seconds=seconds)


def test_a_killed_primary_is_replaced_and_comes_back_as_a_replica(trio, agents):
    with Writers(trio) as clients:
        until(lambda: len(clients.acked) > 50, seconds=10)
        clients.stop()  # a commit that nobody acknowledged would keep it apart
    trio["mysql-1"].kill()
    new = agents.await_primary("mysql-1")
    nothing_is_lost(trio, clients)
    with Writers(trio) as others:
        until(lambda: len(others.acked) > 50, seconds=10)
    assert trio.record.term == 2
    trio["mysql-1"].start()
    assert agents.await_whole(new, seconds=60) == new
    (past,) = until(lambda: trio.records.state().past, seconds=10)
    assert (past.term, past.old, past.new) == (2, "mysql-1", new)
    # Half of replica_net_timeout is what a CHANGE leaves behind that does not name the period: then
    # a living source is silent for longer than a watcher waits.
    assert {heartbeat(trio, replica.name) for replica in trio.replicas} == {1.0}
    # Whoever followed the old primary and whoever was it have the new one prove its address.
    assert {verified(trio, replica.name) for replica in trio.replicas} == {("YES", "TLS")}


def verified(trio: Trio, name: str) -> tuple[str, str]:
    """Whether a replica verifies, and what its stream is to its source."""
    (mine,) = trio.rows(
        name,
        "SELECT SSL_VERIFY_SERVER_CERTIFICATE AS verifies"
        " FROM performance_schema.replication_connection_configuration",
    )
    streams = trio.rows(
        trio.primary.name,
        "SELECT DISTINCT CONNECTION_TYPE AS kind FROM performance_schema.threads"
        " WHERE PROCESSLIST_COMMAND LIKE 'Binlog Dump%%'",
    )
    return mine["verifies"], "/".join(row["kind"].removeprefix("SSL/") for row in streams)


def heartbeat(trio: Trio, name: str) -> float:
    """How often a replica has its source say that it lives, in seconds."""
    rows = trio.rows(
        name,
        "SELECT HEARTBEAT_INTERVAL AS period"
        " FROM performance_schema.replication_connection_configuration",
    )
    return float(rows[0]["period"])


def test_of_a_primary_that_is_back_at_once_and_its_successor_one_serves(trio, agents):
    with Writers(trio) as clients:
        until(lambda: len(clients.acked) > 50, seconds=10)
        trio["mysql-1"].kill()
        trio["mysql-1"].start()
        trio["mysql-1"].ready()
        (now,) = until(agents.primaries, seconds=20)
        moment = time.monotonic()
        until(lambda: len(clients.since(moment)) > 50, seconds=10)
        nothing_is_lost(trio, clients)
    assert (trio.record.term, trio.primary.name) == (1 if now == "mysql-1" else 2, now)
    # It follows, unless it died with a commit that nobody had acknowledged.
    until(
        lambda: (
            "only it holds" in why_out(trio, "mysql-1")
            or now == "mysql-1"
            or agents["mysql-1"].ask("/replica")[0] == 200
        ),
        seconds=60,
    )


def test_one_replica_alone_promotes_nobody_until_the_other_is_back(trio, agents):
    with Writers(trio) as clients:
        until(lambda: len(clients.acked) > 50, seconds=10)
        # The other one alone acknowledges from now on, so it alone has what is written last.
        trio["mysql-3"].kill()
        moment = time.monotonic()
        until(lambda: len(clients.since(moment)) > 50, seconds=10)
        trio["mysql-2"].kill()
        trio["mysql-1"].kill()
        trio["mysql-3"].start()
        stays(agents, "mysql-1", 8)
        trio["mysql-2"].start()
        assert agents.await_primary("mysql-1", seconds=60) == "mysql-2"
        nothing_is_lost(trio, clients)


def test_a_frozen_primary_is_replaced_and_closed_when_it_goes_on(trio, agents):
    with Writers(trio) as clients:
        until(lambda: len(clients.acked) > 50, seconds=10)
        trio["mysql-1"].freeze()
        new = agents.await_primary("mysql-1")
        trio["mysql-1"].thaw()
        # For as long as nobody has closed it, it takes writes that nobody acknowledges.
        until(lambda: closed(trio, "mysql-1"), seconds=10)
        assert agents.primaries() == [new]
        nothing_is_lost(trio, clients)
    until(lambda: agents["mysql-1"].ask("/primary")[1].get("duty"), seconds=10)


def closed(trio: Trio, name: str) -> bool:
    """Whether a server takes no application's write."""
    return bool(trio.rows(name, "SELECT @@GLOBAL.super_read_only AS closed")[0]["closed"])


def test_what_only_the_old_primary_has_is_kept_apart(trio, agents):
    with Writers(trio) as clients:
        until(lambda: len(clients.acked) > 50, seconds=10)
        clients.stop()
    for name in ("mysql-2", "mysql-3"):
        agents[name].freeze()
        trio.rows(name, "STOP REPLICA IO_THREAD")
    database = trio.settings.mysql.database
    unacknowledged = f"INSERT INTO {database}.{TABLE} VALUES (-1, @@server_uuid)"
    threading.Thread(target=tried, args=(trio, "mysql-1", unacknowledged), daemon=True).start()
    until(lambda: waiting(trio, "mysql-1"), seconds=10)
    # Nobody has acknowledged it, and yet it is there when the server comes back.
    trio["mysql-1"].kill()
    for name in ("mysql-2", "mysql-3"):
        agents[name].thaw()
    new = agents.await_primary("mysql-1")
    nothing_is_lost(trio, clients)
    trio["mysql-1"].start()
    trio["mysql-1"].ready()
    until(lambda: "only it holds" in why_out(trio, "mysql-1"), seconds=60)
    assert -1 in held(trio, "mysql-1")
    assert -1 not in held(trio, new)
    assert agents["mysql-1"].ask("/replica")[0] == 503
    assert agents.primaries() == [new]


def tried(trio: Trio, name: str, sql: str) -> None:
    """Do it on a server, whatever comes of it."""
    with contextlib.suppress(FlotillaError):
        trio.rows(name, sql)


def waiting(trio: Trio, name: str) -> int:
    """How many commits of a server wait for an acknowledgement."""
    rows = trio.rows(name, "SHOW GLOBAL STATUS LIKE 'Rpl_semi_sync_source_wait_sessions'")
    return int(rows[0]["Value"])


def why_out(trio: Trio, name: str) -> str:
    """Why a member is kept out of the cluster, "" where it is not."""
    return trio.records.state().barred.get(trio[name].instance_id, "")


def test_a_second_failover_waits_for_a_human(trio, agents):
    trio["mysql-1"].kill()
    second = agents.await_primary("mysql-1")
    trio["mysql-1"].start()
    agents.await_whole(second, seconds=60)
    trio[second].kill()
    stays(agents, second, 6)
    assert "blocked" in agents.logs()
    trio.records.acknowledge()
    assert agents.await_primary(second) != second
    assert trio.record.term == 3


def test_nothing_happens_by_itself_during_a_pause(trio, agents):
    trio.records.pause(Pause("ann", "disks", time.time() + 600))
    trio["mysql-1"].kill()
    stays(agents, "mysql-1", 6)
    assert "paused by ann" in agents.logs()
    trio.records.pause(None)
    agents.await_primary("mysql-1")


def test_a_replica_that_was_left_behind_another_one_holds_up_no_failover(trio, agents):
    """A switchover leaves it so whose operator is killed after the first replica was turned."""
    # They would turn it back.
    for name in NAMES:
        agents[name].stop()
    with trio.cluster() as cluster:
        cluster.server("mysql-3").batch(stream_to(trio["mysql-2"].address))
    trio["mysql-1"].kill()
    for name in NAMES:
        agents[name].start()
    new = agents.await_primary("mysql-1")
    trio["mysql-1"].start()
    assert agents.await_whole(new, seconds=60) == new


def test_a_cluster_that_lost_its_power_serves_again_by_itself(trio, agents):
    for name in NAMES:
        trio[name].kill()
        agents[name].stop()
    for name in NAMES:
        trio[name].start()
        agents[name].start()
    assert agents.await_whole(seconds=60) == "mysql-1"
    assert trio.record.term == 1


def test_a_restarted_replica_acknowledges_again_by_itself(trio, agents):
    trio["mysql-3"].kill()
    trio["mysql-3"].start()
    agents.await_whole("mysql-1", seconds=60)
    until(lambda: acknowledgers(trio, "mysql-1") == 2, seconds=20)


def acknowledgers(trio: Trio, name: str) -> int:
    """How many replicas acknowledge to a server."""
    rows = trio.rows(name, "SHOW GLOBAL STATUS LIKE 'Rpl_semi_sync_source_clients'")
    return int(rows[0]["Value"])


def test_a_replica_that_somebody_opened_is_closed(trio, agents):
    trio.rows("mysql-2", "SET GLOBAL read_only = OFF")
    until(lambda: closed(trio, "mysql-2"), seconds=5)
    assert agents["mysql-2"].ask("/primary")[0] == 503
    agents.await_whole("mysql-1", seconds=30)


def test_a_server_without_a_free_connection_is_alive(trio, agents):
    user = trio.settings.mysql.user
    password = trio.secrets.passwords[user]
    held_open = []
    with contextlib.suppress(pymysql.err.OperationalError):
        while len(held_open) < 1000:
            held_open.append(trio["mysql-1"].client(user, password))
    assert 1 < len(held_open) < 1000
    stays(agents, "mysql-1", 4)
    assert agents["mysql-1"].ask("/primary")[0] == 200
    # Also a watcher that has to connect anew finds its way in.
    agents["mysql-2"].stop()
    agents["mysql-2"].start()
    until(lambda: agents["mysql-2"].ask("/watch")[1].get("reach") == "answers", seconds=20)
    for connection in held_open:
        connection.close()


def test_what_a_killed_watcher_began_is_done_by_another_one(trio, agents):
    trio["mysql-1"].kill()
    journals = "agent-*/failovers/*"
    journal = until(lambda: next(trio.folder.glob(journals), None), seconds=10, every=0.002)
    # Nobody acknowledges any more, and nobody is promoted yet.
    until(lambda: '"done", "act": "revoke"' in journal.read_text(), seconds=10, every=0.001)
    began = journal.parents[1].name.removeprefix("agent-")
    agents[began].stop()
    log.info("%s", journal.read_text())
    agents[began].start()  # as systemd does
    new = agents.await_primary("mysql-1", seconds=60)
    trio["mysql-1"].start()
    assert agents.await_whole(new, seconds=60) == new


def test_a_primary_without_room_on_its_disk_is_replaced(trio, agents):
    small = trio["mysql-1"]
    for name in NAMES:
        agents[name].stop()
    small.stop()
    with in_little_room(small):
        small.start()
        small.ready()
        for name in NAMES:
            agents[name].start()
        agents.await_whole("mysql-1", seconds=60)
        with Writers(trio) as clients:
            until(lambda: len(clients.acked) > 50, seconds=10)
            fill(small.data / "filler")
            # It answers all the time, and a commit may take long: it is given half a minute.
            stays(agents, "mysql-1", 15)
            assert "it answers, but no commit has ended" in agents.logs()
            agents.await_primary("mysql-1", seconds=60)
            nothing_is_lost(trio, clients)
        small.kill()


@contextlib.contextmanager
def in_little_room(server: Mysqld) -> Iterator[None]:
    """A stopped server's files on a disk of their own."""
    files = server.data.with_name("files")
    server.data.rename(files)
    server.data.mkdir()
    place = str(server.data)
    mount = ["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", place]
    subprocess.run(mount, check=True)
    try:
        shutil.copytree(files, server.data, dirs_exist_ok=True)
        shutil.rmtree(files)
        yield
    finally:
        server.kill()
        subprocess.run(["umount", "-l", place], check=True)


def fill(path: Path) -> None:
    """Leave no room on its disk."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))


def test_a_watcher_that_sleeps_through_its_failover_changes_nothing_after(trio, agents):
    trio["mysql-1"].kill()
    journals = "agent-*/failovers/*"
    journal = until(lambda: next(trio.folder.glob(journals), None), seconds=10, every=0.002)
    sleeper = journal.parents[1].name.removeprefix("agent-")
    agents[sleeper].freeze()
    lines = journal.read_text().count("\n")
    log.info("%s sleeps after line %s", sleeper, lines)
    # Its lease runs out, and the clocks' skew; then the other one does it all.
    new = agents.await_primary("mysql-1", seconds=60)
    state = trio.records.state()
    agents[sleeper].thaw()
    time.sleep(5)
    assert trio.records.state().record == state.record
    assert agents.primaries() == [new]
    trio["mysql-1"].start()
    assert agents.await_whole(new, seconds=60) == new


def test_without_the_api_the_primary_goes_on_and_nobody_takes_over(trio, agents, api):
    agents.cut_off()
    stays(agents, "mysql-1", 8)
    assert agents["mysql-1"].ask("/primary")[0] == 200, "a replica vouches for it"
    trio["mysql-1"].kill()
    stays(agents, "mysql-1", 4)
    agents.connect()
    agents.await_primary("mysql-1")


def test_a_primary_that_hears_of_nobody_says_no(trio, agents):
    agents.cut_off()
    for name in ("mysql-2", "mysql-3"):
        trio[name].freeze()
    until(lambda: agents["mysql-1"].ask("/primary")[0] == 503, seconds=15)
    assert "neither the record nor another member" in agents["mysql-1"].ask("/primary")[1]["why"]
    agents.connect()
    for name in ("mysql-2", "mysql-3"):
        trio[name].thaw()
    agents.await_whole("mysql-1", seconds=30)


def test_a_healthy_cluster_costs_little(agents):
    before = {name: agents[name].cpu_seconds for name in NAMES}
    start = time.monotonic()
    while time.monotonic() - start < 20:
        # Three application hosts ask both questions twice a second.
        for name in NAMES:
            for path in ("/primary", "/replica") * 3:
                agents[name].ask(path)
        time.sleep(0.45)
    seconds = time.monotonic() - start
    used = {n: 100 * (agents[n].cpu_seconds - before[n]) / seconds for n in NAMES}
    memory = {n: agents[n].memory_mib for n in NAMES}
    log.info("%% of a core: %s; MiB: %s", used, memory)
    assert max(used.values()) <= CPU_PERCENT
    assert max(memory.values()) <= MEMORY_MIB
