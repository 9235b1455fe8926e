"""MySQL Group Replication on a fleet's database hosts, for as long as it takes to measure it.

Single-primary mode, on the same hosts, with the same packages, sizes and durability, behind the
same HAProxy: only what decides who is primary is exchanged. Our own servers are stopped meanwhile
with their data where it is; the group has a data directory of its own, which goes with it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flotilla.drill.commands import told
from flotilla.drill.subject import START_SECONDS, Alive, View, answers, awaited, revived
from flotilla.errors import FlotillaError
from flotilla.hosts.mysql import Server
from flotilla.mysql.accounts import Secrets
from flotilla.mysql.cluster import Seat
from flotilla.mysql.session import Session
from flotilla.settings import Settings
from flotilla.snapshot import Host

DATA = "/var/lib/mysql-group"
CONFIG = "/etc/mysql/group.cnf"
DROP_IN = "/etc/systemd/system/mysql.service.d/zz-group.conf"
HEALTH = "bench-group-health.service"
HEALTH_CODE = "/usr/local/lib/bench-group-health.py"
HEALTH_PORT = 3380
ACCOUNT = "group_member"
SETUP_SECONDS = 120.0
JOIN_SECONDS = 60.0
# A member that does not come back by itself within this is helped, as a human would.
PATIENCE_SECONDS = 45.0

# Ours and the distribution's, but for who may write: memory, durability, binary logs.
_KEPT = (
    *("server_id", "report_host", "bind_address", "admin_address", "admin_port", "mysqlx"),
    *("skip_name_resolve", "local_infile", "gtid_mode", "enforce_gtid_consistency", "log_bin"),
    *("log_replica_updates", "binlog_expire_logs_seconds", "replica_preserve_commit_order"),
    *("sync_binlog", "innodb_flush_log_at_trx_commit", "max_connections"),
    *("innodb_buffer_pool_size", "innodb_redo_log_capacity", "innodb_log_buffer_size"),
    *("table_open_cache", "table_definition_cache", "key_buffer_size", "temptable_max_ram"),
)
_OUR_FILE = "/etc/mysql/mysql.conf.d/zz-flotilla.cnf"
_UNITS = "flotilla-mysql-agent.service flotilla-mysql-watcher.service"

_DROP_IN_TEXT = f"""\
[Service]
ExecStart=
ExecStart=/usr/sbin/mysqld --defaults-file={CONFIG}
"""
_HEALTH_TEXT = f"""\
[Unit]
Description=Says whether this server is the primary of its replication group
[Service]
ExecStart=/usr/bin/python3 {HEALTH_CODE} {{port}}
Restart=always
RestartSec=0.2
Nice=-5
[Install]
WantedBy=multi-user.target
"""
_CLEAR = f"rm -rf {DATA} {CONFIG} {DROP_IN} /etc/systemd/system/{HEALTH} {HEALTH_CODE}"
_BLANK = f"""\
rm -rf {DATA} && install -d -o mysql -g mysql -m 0750 {DATA} &&
mysqld --no-defaults --user=mysql --initialize-insecure --datadir={DATA}
"""
_MEMBERS = """
SELECT MEMBER_ID AS uuid, MEMBER_ROLE AS role, MEMBER_STATE AS state, @@GLOBAL.server_uuid AS me,
  @@GLOBAL.super_read_only AS closed
FROM performance_schema.replication_group_members
"""
_RECOVERY = """
CHANGE REPLICATION SOURCE TO SOURCE_USER = %s, SOURCE_PASSWORD = %s
FOR CHANNEL 'group_replication_recovery'
"""
_APPLICATION = "SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, DROP, INDEX"


def settings_file(
    ours: str, host: Host, seeds: Sequence[Host], name: str, extra: Mapping[str, object]
) -> str:
    """The [mysqld] section of a member: what it shares with ``ours``, and the group's own."""
    kept = [line for line in ours.splitlines() if _is_kept(line.partition("=")[0].strip())]
    group = {
        "group_name": name,
        "start_on_boot": "OFF",
        "local_address": f"{host.private_ip}:3306",
        "group_seeds": ",".join(f"{seed.private_ip}:3306" for seed in seeds),
        # On the server's own port: no other one is open between the hosts.
        "communication_stack": "MYSQL",
        "recovery_use_ssl": "ON",
        "ssl_mode": "REQUIRED",
        **extra,
    }
    lines = [
        "[mysqld]",
        "user = mysql",
        f"datadir = {DATA}",
        "socket = /run/mysqld/mysqld.sock",
        "pid_file = /run/mysqld/mysqld.pid",
        f"log_error = {DATA}/error.log",
        "plugin_load_add = group_replication.so",
        *kept,
        *(f"group_replication_{key} = {value}" for key, value in group.items()),
    ]
    return "\n".join(lines) + "\n"


def _is_kept(name: str) -> bool:
    return name in _KEPT or name.startswith("performance_schema_")


class Group:
    """A replication group on the database hosts; a ``Subject`` of a drill."""

    def __init__(
        self,
        settings: Settings,
        opened: Session,
        known: Secrets,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        self._settings, self._opened, self._known = settings, opened, known
        self._hosts = {host.name: host for host in opened.snapshot.by_role("mysql")}
        self._extra = extra or {}
        self._name = str(uuid.uuid4())
        self._password = uuid.uuid4().hex
        self._seats: Mapping[str, Seat] = opened.cluster.seats

    @contextmanager
    def standing(self) -> Iterator[None]:
        """The group instead of our cluster, for as long as the block lasts."""
        try:
            self._all(lambda host: self._root(host, f"systemctl disable --now {_UNITS} || true"))
            self._all(self._install)
            self._form()
            yield
        finally:
            self._all(self._remove)
            told(self._settings, "mysql.ensure", "--yes")

    # --- what a drill asks of it ------------------------------------------------------------------

    def view(self, but: str = "") -> View:
        """The group as its members tell. ``term`` is 0: it has none."""
        rows = {name: self._ask(name) for name in self._hosts if name != but}
        names = {str(found[0]["me"]): name for name, found in rows.items() if found}
        primaries = [name for name, found in rows.items() if _mine(found, "PRIMARY")]
        others = {
            name: _state(found)
            for name, found in rows.items()
            if name not in primaries and not _mine(found, "SECONDARY")
        }
        why = "; ".join(f"{name}: {state}" for name, state in sorted(others.items()))
        if len(primaries) != 1:
            why = f"{len(primaries)} members are primary; {why}"
        return View(primaries[0] if len(primaries) == 1 else "", 0, why, names)

    def arm(self) -> None:
        """Nothing holds up a failover of a group."""

    def give(self, to: str) -> None:
        """A planned change of primary."""
        server = self.server(to)
        server.query(
            "SELECT group_replication_set_as_primary(@@GLOBAL.server_uuid)", seconds=JOIN_SECONDS
        )

    def server(self, name: str) -> Server:
        """A session as root."""
        return self._seats[name].server

    def mend(self, old: str, alive: Alive, *, is_emptied: bool = False) -> list[str]:
        """Wait for the member to come back by itself; else help it, at last by beginning anew."""
        words: list[str] = []

        def settled() -> bool:
            if revived(self._settings, self._opened.runner, self._hosts[old]):
                words.append("stopped")
                alive(old)
            return not is_emptied and not self.view().why

        for word, help_it in (
            ("rejoined", lambda: None),
            ("started by hand", lambda: self._join(old)),
            ("rebuilt", lambda: self._again(old)),
        ):
            try:
                help_it()
                awaited(settled, PATIENCE_SECONDS, f"the group is whole ({word})")
            except FlotillaError:
                continue
            return [*words, word if self.view().primary != old else "kept"]
        self._form_anew()
        return [*words, "the group was formed anew"]

    # --- how it is made ---------------------------------------------------------------------------

    def _install(self, host: Host) -> None:
        ours = self._opened.runner.run(host, f"cat {_OUR_FILE}", sudo=True).stdout
        seeds = list(self._hosts.values())
        text = settings_file(ours, host, seeds, self._name, self._extra)
        self._root(host, "systemctl stop mysql.service")
        self._root(host, _BLANK)
        health = Path(__file__).with_name("group_health.py").read_text()
        for path, content in (
            (CONFIG, text),
            (DROP_IN, _DROP_IN_TEXT),
            (HEALTH_CODE, health),
            (f"/etc/systemd/system/{HEALTH}", _HEALTH_TEXT.format(port=HEALTH_PORT)),
        ):
            self._opened.runner.put(host, content.encode(), path)
        self._root(host, "systemctl daemon-reload && systemctl start mysql.service")
        self._account(host.name)
        self._root(host, f"systemctl enable --now {HEALTH}")

    def _account(self, name: str) -> None:
        """The account that members meet each other with, made on each: no group is there yet."""
        grants = "REPLICATION SLAVE, CONNECTION_ADMIN, BACKUP_ADMIN, GROUP_REPLICATION_STREAM"
        # The session was on the server before this one.
        self.server(name).close()
        self.server(name).batch(
            [
                "SET GLOBAL super_read_only = OFF",
                "SET SESSION sql_log_bin = 0",
                (f"CREATE USER '{ACCOUNT}'@'%%' IDENTIFIED BY %s REQUIRE SSL", (self._password,)),
                f"GRANT {grants} ON *.* TO '{ACCOUNT}'@'%'",
                "SET SESSION sql_log_bin = 1",
                (_RECOVERY, (ACCOUNT, self._password)),
            ],
            seconds=SETUP_SECONDS,
        )

    def _form(self) -> None:
        first, *others = self._hosts
        self.server(first).batch(
            [
                "SET GLOBAL group_replication_bootstrap_group = ON",
                "START GROUP_REPLICATION",
                "SET GLOBAL group_replication_bootstrap_group = OFF",
                "SET PERSIST group_replication_start_on_boot = ON",
            ],
            seconds=SETUP_SECONDS,
        )
        awaited(lambda: _mine(self._ask(first), "PRIMARY"), JOIN_SECONDS, f"{first} is primary")
        self._application(first)
        for name in others:
            self._join(name)
        awaited(lambda: not self.view().why, JOIN_SECONDS, "the group is whole")

    def _application(self, name: str) -> None:
        """The database and the user that the application and the ledger have."""
        chosen = self._settings.mysql
        who = f"'{chosen.user}'@'%%'"
        self.server(name).batch(
            [
                f"CREATE DATABASE `{chosen.database}`",
                (f"CREATE USER {who} IDENTIFIED BY %s", (self._known.passwords[chosen.user],)),
                f"GRANT {_APPLICATION} ON `{chosen.database}`.* TO {who.replace('%%', '%')}",
            ],
            seconds=SETUP_SECONDS,
        )

    def _join(self, name: str) -> None:
        self.server(name).batch(
            [
                "STOP GROUP_REPLICATION",
                "START GROUP_REPLICATION",
                "SET PERSIST group_replication_start_on_boot = ON",
            ],
            seconds=SETUP_SECONDS,
        )

    def _again(self, name: str) -> None:
        """A blank member, which fetches everything from the others."""
        host = self._hosts[name]
        self._root(host, "systemctl stop mysql.service")
        self._root(host, _BLANK)
        self._root(host, "systemctl start mysql.service")
        self._account(name)
        self._join(name)

    def _form_anew(self) -> None:
        """Nobody has a majority any more, and nobody will: everything from the beginning."""
        self._all(lambda host: self._root(host, f"systemctl stop mysql.service; {_BLANK}"))
        self._all(lambda host: self._root(host, "systemctl start mysql.service"))
        for name in self._hosts:
            self._account(name)
        self._form()

    def _remove(self, host: Host) -> None:
        runner = self._opened.runner
        if not revived(self._settings, runner, host):
            awaited(lambda: answers(runner, host), START_SECONDS, f"{host.name} answers SSH")
        self._root(host, f"systemctl disable --now {HEALTH} || true; systemctl stop mysql.service")
        self._root(host, f"{_CLEAR}; systemctl daemon-reload; systemctl start mysql.service")
        self._root(host, f"systemctl enable --now {_UNITS} || true")

    # --- small things -----------------------------------------------------------------------------

    def _ask(self, name: str) -> list[Mapping[str, Any]]:
        """A member's view of its group; nothing where it does not answer."""
        try:
            return list(self.server(name).query(_MEMBERS, seconds=2.0))
        except FlotillaError:
            return []

    def _all(self, work: Callable[[Host], None]) -> None:
        with ThreadPoolExecutor(len(self._hosts)) as pool:
            for done in [pool.submit(work, host) for host in self._hosts.values()]:
                done.result()

    def _root(self, host: Host, command: str) -> None:
        self._opened.runner.run(host, command, sudo=True, seconds=SETUP_SECONDS)


def _mine(rows: Sequence[Mapping[str, Any]], role: str) -> bool:
    """Whether a member calls itself ONLINE in this role; a primary also takes writes, with most."""
    own = next((row for row in rows if row["uuid"] == row["me"]), None)
    if own is None or (own["role"], own["state"]) != (role, "ONLINE"):
        return False
    reached = sum(row["state"] != "UNREACHABLE" for row in rows)
    return role != "PRIMARY" or (not own["closed"] and 2 * reached > len(rows))


def _state(rows: Sequence[Mapping[str, Any]]) -> str:
    own = next((row for row in rows if row["uuid"] == row["me"]), None)
    return f"{own['state']} {own['role']}".strip() if own else "no answer"
