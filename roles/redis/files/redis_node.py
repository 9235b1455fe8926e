#!/usr/bin/python3
"""What a Redis host does for itself: choose its role, answer health checks, tell its state.

    redis_node.py start redis|sentinel   before either starts; exit 1 means: wait, and try again
    redis_node.py remember               after Redis started: have it note its role on disk
    redis_node.py health                 HTTP service, GET /primary: 200 or 503 with the reason
    redis_node.py status                 one JSON object on stdout
    redis_node.py hasten                 after Sentinel started: have it try lost connections sooner
    redis_node.py apply                  bring running services to the files Ansible owns
    redis_node.py unread                 names of the settings that only a restart would bring
    redis_node.py sessions --user USER   from which addresses an account is used now, as JSON
    redis_node.py plain                  {"plain": true} while Redis here answers without TLS
    redis_node.py secure                 have such a Redis speak TLS and nothing else, at once
    redis_node.py certificate            have Redis and its Sentinel take the host's certificate
    redis_node.py rebuild                throw this replica's data away and copy the primary's
    redis_node.py save                   this replica's data as one checked file, for a backup
    redis_node.py restore --backup ID    replace the group's data by what was fetched to it
    redis_node.py move [--to HOST]       make another host the primary, as planned; on the primary

No role is ever written into a file that Ansible owns: who is primary is a fact of run time.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import redis
import redis_backup
import redis_health
import redis_move
import redis_rebuild
import redis_restore
import redis_rules as rules
import redis_settings
import redis_tls
from redis.backoff import NoBackoff
from redis.retry import Retry

SETTINGS = Path("/etc/redis/flotilla.json")
OWNED = Path("/etc/redis/flotilla.conf")
HOME = Path("/var/lib/redis")
DATA = HOME / "data"
ROLE = Path("/run/redis/role.conf")
LEAF = Path("/etc/flotilla/tls/leaf.pem")
AUTHORITY = Path("/etc/flotilla/tls/authority.pem")

ASK_TIMEOUT_SECONDS = 0.4
# For what makes this host's own Redis fork (up to 0.2 s a gigabyte) or write a file to a slow disk.
WORK_TIMEOUT_SECONDS = 30.0
# How long a start looks for a majority. Long enough for Sentinels that boot at the same time.
START_SECONDS = 12.0
# How long a Sentinel that knows of no good replica is asked again.
CHOOSE_SECONDS = 10.0


@dataclass(frozen=True)
class Settings:
    """/etc/redis/flotilla.json: this host, its cluster, and the accounts to ask with."""

    name: str
    cluster: str
    hosts: dict[str, str]
    initial: str
    port: int
    sentinel_port: int
    health_port: int
    monitor_user: str
    monitor_password: str
    operator_user: str
    operator_password: str
    sentinel: dict[str, str]

    @property
    def address(self) -> str:
        """This host's private address."""
        return self.hosts[self.name]


def load() -> Settings:
    """The settings. Raises OSError, ValueError or TypeError when the file is not right."""
    return Settings(**json.loads(SETTINGS.read_text()))


def connect(
    settings: Settings,
    address: str,
    port: int,
    *,
    operator: bool = False,
    seconds: float = ASK_TIMEOUT_SECONDS,
    **encryption: Any,
) -> Any:
    """A client of the Redis or Sentinel there; it connects at the first command.

    Whoever is there has to prove that the fleet's authority knows it by that address.
    """
    who = (settings.operator_user, settings.operator_password)
    if not operator:
        who = (settings.monitor_user, settings.monitor_password)
    options: dict[str, Any] = {
        "host": address,
        "port": port,
        "username": who[0],
        "password": who[1],
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "decode_responses": True,
        # Its own retries wait for seconds; whoever asks here asks again soon anyhow.
        "retry": Retry(NoBackoff(), 0),
        "lib_name": None,
        "lib_version": None,
    }
    if encryption:
        return redis.Redis(**options, **encryption)
    return redis_tls.client(AUTHORITY, **options)


def at_work(settings: Settings, **encryption: Any) -> Any:
    """This host's Redis with the operator's rights, for what takes its time."""
    return connect(
        settings,
        settings.address,
        settings.port,
        operator=True,
        seconds=WORK_TIMEOUT_SECONDS,
        **encryption,
    )


def ask_sentinel(client: Any, cluster: str) -> rules.Word:
    """Whom this Sentinel names."""
    try:
        answer = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", cluster)
    except redis.exceptions.ConnectionError as error:
        return rules.Word(silent="refused" not in str(error))
    except redis.exceptions.RedisError:
        return rules.Word(silent=True)
    return rules.Word(names=str(answer[0]) if answer else "")


def ask_all(settings: Settings) -> dict[str, rules.Word]:
    """What every Sentinel says now, asked at the same time."""
    words: dict[str, rules.Word] = {}

    def ask(name: str, address: str) -> None:
        client = connect(settings, address, settings.sentinel_port)
        words[name] = ask_sentinel(client, settings.cluster)
        client.close()

    threads = [threading.Thread(target=ask, args=host) for host in settings.hosts.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {name: words[name] for name in settings.hosts}


# --- start ---------------------------------------------------------------------------------------


def is_empty() -> bool:
    """Does this host hold no data?"""
    return not rules.has_data(DATA)


def settle(look: Callable[[], rules.Start]) -> rules.Start:
    """Look until there is a firm answer, or START_SECONDS are over."""
    deadline = time.monotonic() + START_SECONDS
    while (found := look()).role in ("keep", "wait") and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def put(path: Path, text: str) -> None:
    """A file for Redis alone, whole or not at all."""
    draft = path.with_suffix(".new")
    draft.write_text(text)
    draft.chmod(0o640)
    shutil.chown(draft, "redis", "redis")
    draft.rename(path)


def start_redis(settings: Settings) -> int:
    """Write the role Redis starts with into a file of this boot."""
    DATA.mkdir(mode=0o750, exist_ok=True)
    shutil.chown(DATA, "redis", "redis")
    if not (HOME / "redis.conf").exists():
        put(HOME / "redis.conf", "# Redis writes here what it must remember; see flotilla.conf.\n")
    initial = settings.hosts[settings.initial]

    def look() -> rules.Start:
        words = ask_all(settings)
        named = {word.names for word in words.values() if word.names}
        return rules.start(
            words,
            me=settings.address,
            initial=initial,
            empty=is_empty(),
            serving={one for one in named if is_primary(settings, one)},
        )

    found = settle(look)
    sys.stderr.write(f"start as {found.role}: {found.reason}\n")
    if found.role == "wait":
        return 1
    role = {
        "primary": "replicaof no one\n",
        "replica": f"replicaof {found.primary} {settings.port}\n",
        "keep": "",
    }
    put(ROLE, role[found.role])
    return 0


def start_sentinel(settings: Settings) -> int:
    """Give a Sentinel without memory its first configuration; it owns the file from then on."""
    path = HOME / "sentinel.conf"
    encrypted = redis_tls.sentinel_lines(settings.sentinel_port, LEAF, AUTHORITY)
    if path.exists():
        # It is not running now. How it is reached is ours; everything else there is its own.
        text = path.read_text()
        if (wanted := rules.reached(text, encrypted)) != text:
            put(path, wanted)
        return 0
    initial = settings.hosts[settings.initial]
    first = connect(settings, initial, settings.port)
    found = settle(
        lambda: rules.monitored(ask_all(settings), initial=initial, initial_role=own_role(first))
    )
    sys.stderr.write(f"sentinel: {found.role}: {found.reason}\n")
    if found.role == "wait":
        return 1
    quorum = settings.sentinel["quorum"]
    lines = [
        *encrypted,
        f"bind {settings.address} 127.0.0.1",
        f"dir {HOME}",
        "aclfile /etc/redis/sentinel.acl",
        f"sentinel announce-ip {settings.address}",
        f"sentinel monitor {settings.cluster} {found.primary} {settings.port} {quorum}",
        # It learns of replicas from the primary, which may be away for good: without them it would
        # be elected again and again, find nobody to promote, and keep those from it that know.
        *(
            f"sentinel known-replica {settings.cluster} {address} {settings.port}"
            for address in settings.hosts.values()
            if address != found.primary
        ),
        *(f"sentinel {k} {settings.cluster} {v}" for k, v in sentinel_options(settings).items()),
        f"sentinel sentinel-user {settings.operator_user}",
        f"sentinel sentinel-pass {settings.operator_password}",
    ]
    put(path, "\n".join(lines) + "\n")
    return 0


def remember(settings: Settings) -> int:
    """Have Redis note its role in its own file.

    A start that finds no majority of Sentinels keeps that role. Without the note a replica that was
    never told anything since its first start would come back as a primary.
    """
    at_work(settings).config_rewrite()
    return 0


def hasten(settings: Settings) -> int:
    """Have this host's Sentinel try a lost connection again soon."""
    redis_settings.hasten(
        connect(settings, settings.address, settings.sentinel_port, operator=True)
    )
    return 0


def failover(settings: Settings) -> int:
    """Have this host's Sentinel make a replica the primary, whatever the primary is like.

    Exit 0 it is at it, or was told and did not answer in time; 3 it would not.
    """
    sentinel = connect(
        settings,
        settings.address,
        settings.sentinel_port,
        operator=True,
        seconds=WORK_TIMEOUT_SECONDS,
    )
    end = time.monotonic() + CHOOSE_SECONDS
    while True:
        try:
            sentinel.execute_command("SENTINEL", "FAILOVER", settings.cluster)
        except redis.exceptions.TimeoutError:
            return 0
        except redis.exceptions.RedisError as error:
            if str(error).startswith("INPROG"):
                return 0
            # Of what it asks of replicas each second, one answer was late.
            if str(error).startswith("NOGOODSLAVE") and time.monotonic() < end:
                time.sleep(0.5)
                continue
            sys.stderr.write(f"Sentinel: {error}\n")
            return 3
        return 0


def sentinel_options(settings: Settings) -> dict[str, str]:
    """What SENTINEL SET knows besides the quorum, by its own names."""
    options = {key: value for key, value in settings.sentinel.items() if key != "quorum"}
    accounts = {"auth-user": settings.operator_user, "auth-pass": settings.operator_password}
    return {**options, **accounts}


def is_primary(settings: Settings, address: str) -> bool:
    """Whether the Redis there says so."""
    return own_role(connect(settings, address, settings.port)) == "master"


# --- health --------------------------------------------------------------------------------------


def own_role(client: Any) -> str:
    """The first word of ROLE, empty when Redis does not answer."""
    try:
        return str(client.execute_command("ROLE")[0])
    except redis.exceptions.RedisError:
        return ""


def health(settings: Settings) -> int:
    """Serve until stopped."""
    clients = {
        name: connect(settings, address, settings.sentinel_port)
        for name, address in settings.hosts.items()
    }
    own = connect(settings, settings.address, settings.port)
    role = redis_health.Watch(lambda: own_role(own), "")
    sentinels = {
        name: redis_health.Watch(
            lambda c=client: ask_sentinel(c, settings.cluster), rules.Word(silent=True)
        )
        for name, client in clients.items()
    }

    def verdict() -> dict[str, Any]:
        words = {name: watch.word() for name, watch in sentinels.items()}
        said = role.word()
        is_primary, reason = rules.offered(said, words, me=settings.address)
        names = {name: word.names or None for name, word in words.items()}
        return {"primary": is_primary, "reason": reason, "role": said or None, "sentinels": names}

    server = ThreadingHTTPServer(
        (settings.address, settings.health_port), redis_health.handler(verdict)
    )
    server.daemon_threads = True
    server.serve_forever()
    return 0


# --- status and apply ----------------------------------------------------------------------------

INFO = {
    "replication": ("role", "master_link_status", "master_host", "connected_slaves",
                    "master_repl_offset", "slave_repl_offset", "min_slaves_good_slaves",
                    "master_sync_in_progress", "slave_priority"),
    "memory": ("used_memory", "maxmemory"),
    "persistence": ("loading", "aof_enabled", "aof_last_write_status", "aof_last_bgrewrite_status"),
    "clients": ("connected_clients",),
    "server": ("redis_version", "uptime_in_seconds"),
}  # fmt: skip


def status(settings: Settings) -> int:
    """One JSON object: this Redis, whom each Sentinel names, whether a failover could be agreed."""
    client = connect(settings, settings.address, settings.port)
    found: dict[str, Any] = {"name": settings.name, "address": settings.address, "error": None}
    try:
        for section, keys in INFO.items():
            info = client.info(section)
            found |= {key: info.get(key) for key in keys}
        found["keys"] = sum(db["keys"] for db in client.info("keyspace").values())
    except redis.exceptions.RedisError as error:
        found["error"] = str(error)
    place = redis_tls.Place(settings.address, LEAF, AUTHORITY)
    found["certificate"] = None
    with contextlib.suppress(redis_tls.TlsError):
        found["certificate"] = redis_tls.lasts(place, (settings.port, settings.sentinel_port))
    words = ask_all(settings)
    found["sentinels"] = {name: word.names or None for name, word in words.items()}
    sentinel = connect(settings, settings.address, settings.sentinel_port)
    found |= {"quorum_error": None, "unseen": None, "held": None}
    try:
        found["held"] = held(settings, sentinel)
        found["unseen"] = unseen(settings, sentinel)
        sentinel.execute_command("SENTINEL", "CKQUORUM", settings.cluster)
    except redis.exceptions.RedisError as error:
        found["quorum_error"] = str(error)
    json.dump(found, sys.stdout)
    sys.stdout.write("\n")
    return 0


def held(settings: Settings, sentinel: Any) -> int | None:
    """The milliseconds its Sentinel waits, where a restore that was cut off has left others."""
    row = redis_move.pairs(sentinel.execute_command("SENTINEL", "MASTER", settings.cluster))
    waits = row["down-after-milliseconds"]
    return int(waits) if waits == str(redis_restore.HOLD_MS) else None


def unseen(settings: Settings, sentinel: Any) -> list[str]:
    """What this host's Sentinel takes to be down, or has never heard of."""
    primary, replicas, others = (
        sentinel.execute_command("SENTINEL", what, settings.cluster)
        for what in ("MASTER", "REPLICAS", "SENTINELS")
    )
    return rules.unseen(
        settings.hosts,
        [redis_move.pairs(row) for row in (primary, *replicas)],
        [redis_move.pairs(row) for row in others],
        me=settings.name,
    )


def apply(settings: Settings) -> int:
    """Set on the running services what the owned files say, without a restart.

    Exit 0 when all of it holds now; 2 when something needs a restart, named on stderr.
    """
    client = at_work(settings)
    later = redis_settings.apply(client, redis_settings.owned_lines(OWNED.read_text()))
    sentinel = connect(settings, settings.address, settings.sentinel_port, operator=True)
    options = {"quorum": settings.sentinel["quorum"], **sentinel_options(settings)}
    redis_settings.apply_sentinel(sentinel, settings.cluster, options)
    redis_settings.hasten(sentinel)
    if later:
        sys.stderr.write(f"redis: a restart is needed for: {'; '.join(later)}\n")
    return 2 if later else 0


def unread(settings: Settings) -> int:
    """The names of the owned settings that the running Redis does not have, one a line."""
    client = at_work(settings)
    found = redis_settings.unread(client, redis_settings.owned_lines(OWNED.read_text()))
    sys.stdout.write("".join(f"{name}\n" for name in found))
    return 0


def sessions(settings: Settings, user: str) -> int:
    """The addresses that this account's connections come from, without ports, as a JSON list."""
    client = at_work(settings)
    found = {row["addr"].rpartition(":")[0] for row in client.client_list() if row["user"] == user}
    sys.stdout.write(json.dumps(sorted(found)) + "\n")
    return 0


def plain(settings: Settings) -> int:
    """Whether Redis here still answers without TLS, as one JSON object."""
    json.dump({"plain": redis_tls.is_plain(_unencrypted(settings))}, sys.stdout)
    sys.stdout.write("\n")
    return 0


def secure(settings: Settings) -> int:
    """Have a Redis that answers without TLS speak TLS and nothing else, at once.

    Only with all of the group, and while no Sentinel runs: see tasks/secure.yml.
    """
    client = _unencrypted(settings)
    if redis_tls.is_plain(client):
        redis_tls.secure(client, redis_settings.owned_lines(OWNED.read_text()))
        sys.stdout.write("speaks TLS now\n")
    return 0


def _unencrypted(settings: Settings) -> Any:
    """To this host itself: what is said does not leave it."""
    return connect(settings, settings.address, settings.port, operator=True, ssl=False)


def certificate(settings: Settings) -> int:
    """Have Redis and its Sentinel take the host's certificate; a line for each that did.

    Exit 0 when both have it, or do not run; 1 when it has to be tried again, with the reason.
    """
    place = redis_tls.Place(settings.address, LEAF, AUTHORITY)
    # What is served may have ended, which is what is mended here; and nobody else has this address.
    client = at_work(settings, **redis_tls.unverified())
    if redis_tls.is_stale(place, settings.port):
        redis_tls.reload(client, place)
        sys.stdout.write("Redis took the certificate\n")
    if not redis_tls.is_stale(place, settings.sentinel_port):
        return 0
    # One that nobody believes is missed by nobody; and where all are so, each would wait for the
    # others for ever.
    is_trusted = redis_tls.is_trusted(place, AUTHORITY, settings.sentinel_port)
    why = rules.needed(ask_all(settings), me=settings.name) if is_trusted else ""
    if why:
        sys.stderr.write(f"the Sentinel keeps its old certificate for now: {why}\n")
        return 1
    redis_tls.restart_sentinel(place, settings.sentinel_port)
    sys.stdout.write("the Sentinel took the certificate\n")
    return 0


def places(settings: Settings) -> redis_move.Places:
    """Connections to all of them, with the operator's rights."""
    found = settings.hosts.items()
    return redis_move.Places(
        settings.name,
        settings.cluster,
        settings.hosts,
        settings.port,
        {n: connect(settings, a, settings.port, operator=True) for n, a in found},
        {n: connect(settings, a, settings.sentinel_port, operator=True) for n, a in found},
    )


def move(settings: Settings, to: str | None) -> int:
    """Move the primary's role; exit codes as ``redis_move.ended``."""
    down_after = int(settings.sentinel["down-after-milliseconds"]) / 1000
    run = redis_move.Move(places(settings), down_after=down_after, say=redis_move.say)
    return redis_move.ended(lambda: run.run(to))


def rebuild(settings: Settings) -> int:
    """Replace this replica's data by a copy of the primary's."""
    disk = redis_rebuild.Disk(DATA, HOME / "redis.conf", put)
    named = rules.named_by_majority(ask_all(settings))
    run = redis_rebuild.Rebuild(places(settings), disk, named=named)
    return redis_move.ended(run.run)


def save(settings: Settings) -> int:
    """Save this replica's data into a file, for a backup."""
    folder = HOME / "backup"
    folder.mkdir(mode=0o750, exist_ok=True)
    client = at_work(settings)
    file = folder / "dump.rdb"
    file.unlink(missing_ok=True)
    free = shutil.disk_usage(folder).free
    return redis_move.ended(
        lambda: redis_backup.save(client, host=settings.name, data=DATA, file=file, free=free)
    )


def restore(settings: Settings, backup: str) -> int:
    """Replace the data of the group by what was fetched to this host."""

    def own(path: Path) -> None:
        shutil.chown(path, "redis", "redis")

    run = redis_restore.Swap(
        places(settings),
        redis_restore.Disk(DATA, own),
        named=rules.named_by_majority(ask_all(settings)),
        wait_ms=settings.sentinel["down-after-milliseconds"],
    )

    def alone() -> Any:
        with redis_restore.alone(HOME):
            return run.run(backup)

    return redis_move.ended(alone)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(description="what a Redis host does for itself")
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="choose the role before a start")
    start.add_argument("what", choices=("redis", "sentinel"))
    actions = {
        "health": health,
        "status": status,
        "apply": apply,
        "unread": unread,
        "remember": remember,
        "hasten": hasten,
        "failover": failover,
        "plain": plain,
        "secure": secure,
        "certificate": certificate,
        "rebuild": rebuild,
        "save": save,
    }
    for name, action in actions.items():
        commands.add_parser(name, help=(action.__doc__ or "").partition("\n")[0])
    asking = commands.add_parser("sessions", help="from which addresses an account is used")
    asking.add_argument("--user", required=True, help="the account")
    moving = commands.add_parser("move", help="make another host the primary, as planned")
    moving.add_argument("--to", help="its name (default: the nearest replica)")
    restoring = commands.add_parser("restore", help=(restore.__doc__ or "").partition("\n")[0])
    restoring.add_argument("--backup", required=True, help="the id of what was fetched")
    chosen = parser.parse_args(arguments)
    if chosen.command == "certificate" and not SETTINGS.exists():
        # The timer of certificates came before the first configuration: there is no Redis yet.
        return 0
    settings = load()
    os.umask(0o027)
    if chosen.command == "start":
        return start_redis(settings) if chosen.what == "redis" else start_sentinel(settings)
    told: dict[str, Callable[[], int]] = {
        "sessions": lambda: sessions(settings, chosen.user),
        "move": lambda: move(settings, chosen.to),
        "restore": lambda: restore(settings, chosen.backup),
    }
    if chosen.command in told:
        return told[chosen.command]()
    try:
        return actions[chosen.command](settings)
    except redis_tls.TlsError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
