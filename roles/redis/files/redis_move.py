"""Move the role of the Redis primary, as planned: no acknowledged write is lost.

Runs on the host that is the primary, so that an operator whose connection ends has not ended it
half-way. Order and reasons:

1. The chosen replica gets the best priority, and the Sentinel that will be told has seen that.
2. The moment: a Sentinel learns of a promotion by INFO, which it sends a second after the last one
   it got. Told to fail over when that is nearly a second old, it learns of it at once; else writes
   would be paused for a second longer.
3. Writes are paused (CLIENT PAUSE), kept so by a thread, and the replica is waited for: from here
   on it lacks nothing.
4. SENTINEL FAILOVER. An answer that does not come is no refusal: writes stay paused until Sentinel
   says that it is not failing over. The old primary is made a replica as soon as the new one says
   that it is primary; Sentinel itself would leave it a primary for ten more seconds.
5. Only then do writes go on here, to be told that this is a replica.

Called off before step 4, everything is as it was. After it, nothing here takes a write until it is
known who is primary: the pause of a process that died ends by itself, and the host's health
endpoint offers it to nobody whom a majority of the Sentinels does not name.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import redis
import redis_rules as rules

# Redis ends a pause after this by itself; it is asked for again all the time.
PAUSE_MS = 3000
PAUSE_AGAIN_SECONDS = 0.5
CATCH_UP_SECONDS = 2.0
# A failover that does not get there: Sentinel gives up after its own failover-timeout.
PROMOTION_SECONDS = 30.0
# A promotion takes 0.2 s: only of one that takes longer is Sentinel asked whether it is at it.
SENTINEL_AGAIN_SECONDS = 0.5
FOLLOW_SECONDS = 30.0
POLL_SECONDS = 0.01
# Sentinel sends INFO every ten seconds, and twice that is its own idea of late.
SEEN_SECONDS = 21.0
# The account of applications in users.acl.
APPLICATION = "app"
BEST, USUAL = "1", "100"


class CalledOffError(Exception):
    """It was called off; everything is as it was. The message says why."""


class UnclearError(Exception):
    """It was begun and did not end; the message says what is known."""


@dataclass(frozen=True)
class Places:
    """Connections with the operator's rights: to Redis by host name, and to the Sentinels."""

    me: str
    cluster: str
    addresses: Mapping[str, str]
    port: int
    servers: Mapping[str, Any]
    sentinels: Mapping[str, Any]


@dataclass(frozen=True)
class Moved:
    """``paused_seconds`` is how long nobody's write was taken here."""

    old: str
    new: str
    paused_seconds: float
    seconds: float


class Move:
    """One planned move. ``say`` gets a line for each step.

    ``down_after``: the seconds after which a Sentinel takes this host to be dead. It may while
    writes are paused, and who calls a move off must not have been paused for so long.
    """

    def __init__(
        self,
        places: Places,
        *,
        down_after: float = 2 * CATCH_UP_SECONDS,
        say: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._places = places
        self._catch_up_seconds = min(CATCH_UP_SECONDS, down_after / 2)
        self._say = say
        self._clock = clock
        self._sleep = sleep
        self._me = places.servers[places.me]

    def look(self) -> list[rules.Candidate]:
        """The replicas, as this host and the Sentinels see them. Raises CalledOffError."""
        with told("this host"):
            replication = self._me.info("replication")
        if replication["role"] != "master":
            raise CalledOffError(f"{self._places.me} is no primary")
        self._demand_sentinels()
        found = []
        for name, address in self._places.addresses.items():
            if name == self._places.me:
                continue
            with told(name):
                info = self._places.servers[name].info("replication")
            follows = info["role"] == "slave" and info.get("master_host") == self._address
            found.append(
                rules.Candidate(
                    name,
                    address,
                    follows=follows and info.get("master_link_status") == "up",
                    behind=max(
                        0, replication["master_repl_offset"] - info.get("slave_repl_offset", 0)
                    ),
                )
            )
        return found

    def run(self, to: str | None) -> Moved:
        """Move. Raises CalledOffError with nothing changed, UnclearError."""
        started = self._clock()
        chosen = rules.candidate(self.look(), to)
        if isinstance(chosen, str):
            raise CalledOffError(chosen)
        with self._preferred(chosen):
            self._await_moment(chosen)
            paused = self._switch(chosen)
            self._settle(chosen)
        return Moved(self._places.me, chosen.name, round(paused, 3), self._clock() - started)

    @property
    def _address(self) -> str:
        return self._places.addresses[self._places.me]

    def _demand_sentinels(self) -> None:
        for name, sentinel in self._places.sentinels.items():
            with told(f"the Sentinel of {name}"):
                sentinel.execute_command("SENTINEL", "CKQUORUM", self._places.cluster)
                seen = pairs(sentinel.execute_command("SENTINEL", "MASTER", self._places.cluster))
            if seen["ip"] != self._address:
                raise CalledOffError(f"the Sentinel of {name} names {seen['ip']}")
            if "failover_in_progress" in seen["flags"]:
                raise CalledOffError(f"the Sentinel of {name} is failing over")

    @contextlib.contextmanager
    def _preferred(self, chosen: rules.Candidate) -> Iterator[None]:
        """Sentinel takes this replica, for as long as the block lasts."""
        server = self._places.servers[chosen.name]
        for name, other in self._places.servers.items():
            with told(name):
                # Of a move that was killed: Sentinel would choose between the two by its own rules.
                if other.config_get("replica-priority")["replica-priority"] == BEST:
                    other.config_set("replica-priority", USUAL)
        with told(chosen.name):
            server.config_set("replica-priority", BEST)
        try:
            yield
        finally:
            # Sentinel has servers write their configuration when it changes their role.
            with contextlib.suppress(redis.exceptions.RedisError):
                server.config_set("replica-priority", USUAL)
                server.config_rewrite()

    def _await_moment(self, chosen: rules.Candidate) -> None:
        """Wait until the Sentinel has seen the priority, and its next INFO is about to come."""
        self._say(f"wait until Sentinel has seen that {chosen.name} is to be next")
        end = self._clock() + SEEN_SECONDS
        while self._clock() < end:
            seen = self._seen(chosen)
            best = [ip for ip, row in seen.items() if row["slave-priority"] == BEST]
            if best == [chosen.address]:
                age = int(seen[chosen.address]["info-refresh"]) / 1000
                if rules.is_moment(age):
                    return
            self._sleep(POLL_SECONDS)
        raise CalledOffError(f"Sentinel did not look at {chosen.name} for {SEEN_SECONDS:g} s")

    def _seen(self, chosen: rules.Candidate) -> dict[str, dict[str, str]]:
        """What that Sentinel knows of the replicas, by address."""
        try:
            rows = self._sentinel(chosen).execute_command(
                "SENTINEL", "REPLICAS", self._places.cluster
            )
        except redis.exceptions.TimeoutError:
            return {}  # it is asked a hundred times a second, and may be busy once
        except redis.exceptions.RedisError as error:
            raise CalledOffError(f"the Sentinel: {error}") from error
        return {row["ip"]: row for row in map(pairs, rows)}

    def _sentinel(self, chosen: rules.Candidate) -> Any:
        """The one that is told: beside the new primary, whose answers it gets soonest."""
        return self._places.sentinels[chosen.name]

    def _switch(self, chosen: rules.Candidate) -> float:
        """From the pause to the end of this host's time as primary; how long that was."""
        new = self._places.servers[chosen.name]
        start = self._clock()
        with Paused(self._me) as pause:
            self._say("writes are paused")
            self._catch_up(new, chosen)
            self._tell(chosen)
            self._await_promotion(new, chosen)
            self._follow(chosen.address)
            pause.check()
        with contextlib.suppress(redis.exceptions.RedisError):
            # Applications that are connected here are to ask where the primary is. Not Sentinels:
            # one that is cut off now is slow to ask the new primary.
            self._me.execute_command("CLIENT", "KILL", "USER", APPLICATION)
        return self._clock() - start

    def _catch_up(self, new: Any, chosen: rules.Candidate) -> None:
        with told("this host"):
            wanted = self._me.info("replication")["master_repl_offset"]
        end = self._clock() + self._catch_up_seconds
        while True:
            with told(chosen.name):
                behind = wanted - new.info("replication")["slave_repl_offset"]
            if behind <= 0:
                return
            if self._clock() > end:
                raise CalledOffError(f"{chosen.name} was {behind} bytes behind after the pause")
            self._sleep(POLL_SECONDS)

    def _tell(self, chosen: rules.Candidate) -> None:
        try:
            self._sentinel(chosen).execute_command("SENTINEL", "FAILOVER", self._places.cluster)
        except redis.exceptions.ResponseError as error:
            raise CalledOffError(f"Sentinel refused: {error}") from error
        except redis.exceptions.RedisError as error:
            # It may be at it: what it does next is looked at.
            self._say(f"Sentinel was told, and its answer did not come: {error}")
        else:
            self._say("Sentinel was told")

    def _await_promotion(self, new: Any, chosen: rules.Candidate) -> None:
        """Raises CalledOffError where Sentinel is not at it, UnclearError."""
        end = self._clock() + PROMOTION_SECONDS
        asked = self._clock()
        while self._clock() < end:
            found: dict[str, dict[str, str]] = {}
            if self._clock() > asked + SENTINEL_AGAIN_SECONDS:
                # Before the new one is asked: whoever was promoted meanwhile says so.
                found, asked = self._found(), self._clock()
            with contextlib.suppress(redis.exceptions.RedisError):
                if new.execute_command("ROLE")[0] == "master":
                    return
                if chosen.name in found and all(map(self._is_idle, found.values())):
                    raise CalledOffError("Sentinel did not begin, or gave it up")
            named = {row["ip"] for row in found.values()} - {self._address, chosen.address}
            if named:
                self._follow(min(named))
                raise UnclearError(
                    f"Sentinel chose {min(named)} instead of {chosen.name}: what that one lacked"
                    " is lost"
                )
            self._sleep(POLL_SECONDS)
        raise UnclearError(f"Sentinel took longer than {PROMOTION_SECONDS:g} s with {chosen.name}")

    def _found(self) -> dict[str, dict[str, str]]:
        """What every Sentinel that answers says of the primary, by host.

        All of them: one that was not told may fail over too. What a Sentinel publishes waits with
        the writes, its next PING behind that, and for longer than its down-after it finds this host
        dead.
        """
        found = {}
        for name, sentinel in self._places.sentinels.items():
            ask, cluster = sentinel.execute_command, self._places.cluster
            with contextlib.suppress(redis.exceptions.RedisError):
                row = pairs(ask("SENTINEL", "MASTER", cluster))
                # There the old one stays until all replicas follow the new one.
                address, _ = ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", cluster)
                found[name] = row | {"ip": str(address)}
        return found

    def _is_idle(self, found: Mapping[str, str]) -> bool:
        return found["ip"] == self._address and "failover_in_progress" not in found["flags"]

    def _follow(self, address: str) -> None:
        """Make this host a replica: until it is one, what it takes is lost."""
        end = self._clock() + FOLLOW_SECONDS
        while True:
            try:
                self._me.execute_command("REPLICAOF", address, self._places.port)
            except redis.exceptions.RedisError as error:
                if self._clock() > end:
                    raise UnclearError(
                        f"{self._places.me} was not made a replica of {address}: {error}"
                    ) from error
                self._sleep(POLL_SECONDS)
            else:
                return

    def _settle(self, chosen: rules.Candidate) -> None:
        """Wait until a majority names the new primary and everybody follows it."""
        end = self._clock() + FOLLOW_SECONDS
        why = "nobody was asked yet"
        while self._clock() < end:
            why = self._unsettled(chosen)
            if not why:
                return
            self._sleep(10 * POLL_SECONDS)
        raise UnclearError(f"{chosen.name} is primary, but {why}")

    def _unsettled(self, chosen: rules.Candidate) -> str:
        try:
            for name, sentinel in self._places.sentinels.items():
                seen = pairs(sentinel.execute_command("SENTINEL", "MASTER", self._places.cluster))
                if seen["ip"] != chosen.address:
                    return f"the Sentinel of {name} names {seen['ip']}"
            for name, server in self._places.servers.items():
                why = rules.unsettled(server.info("replication"), name, chosen)
                if why:
                    return why
        except redis.exceptions.RedisError as error:
            return str(error)
        return ""


class Paused:
    """Writes wait in here, for as long as the block lasts, and not much longer if we die."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._over = threading.Event()
        self._lost = ""
        self._thread = threading.Thread(target=self._again, daemon=True)

    def __enter__(self) -> Self:
        with told("this host"):
            self._ask()
        self._asked = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(redis.exceptions.RedisError):
            self._server.execute_command("CLIENT", "UNPAUSE")

    def check(self) -> None:
        """Raises UnclearError where the pause may have ended meanwhile."""
        late = time.monotonic() - self._asked
        if late > PAUSE_MS / 1000:
            raise UnclearError(
                f"writes were paused until {late - PAUSE_MS / 1000:.1f} s ago only ({self._lost}),"
                " and what was taken since is lost"
            )

    def _ask(self) -> None:
        self._server.execute_command("CLIENT", "PAUSE", PAUSE_MS, "WRITE")

    def _again(self) -> None:
        while not self._over.wait(PAUSE_AGAIN_SECONDS):
            asked = time.monotonic()
            try:
                self._ask()
                self._asked = asked
            except redis.exceptions.RedisError as error:
                self._lost = str(error)


@contextlib.contextmanager
def told(who: str) -> Iterator[None]:
    """What Redis refuses or does not answer calls it off, in one sentence."""
    try:
        yield
    except redis.exceptions.RedisError as error:
        raise CalledOffError(f"{who}: {error}") from error


def say(text: str) -> None:
    """A line for whoever looks on. Nobody may, for the operator's connection can end: an error
    here would end what was begun in the middle.
    """
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{text}\n")


def ended(act: Callable[[], Any]) -> int:
    """Do it, whoever is still there; one JSON object.

    Exit 0 done, 2 it is not clear how it ended, 3 called off and everything is as it was.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        done = act()
    except CalledOffError as error:
        say(str(error))
        return 3
    except UnclearError as error:
        say(str(error))
        return 2
    json.dump(asdict(done), sys.stdout)
    sys.stdout.write("\n")
    return 0


def pairs(row: Any) -> dict[str, str]:
    """Sentinel's flat list, or the mapping that newer clients make of it."""
    if isinstance(row, Mapping):
        return {str(key): str(value) for key, value in row.items()}
    return dict(zip(row[::2], row[1::2], strict=True))
