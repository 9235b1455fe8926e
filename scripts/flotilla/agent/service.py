"""What runs beside a MySQL server: it says who may be written to, keeps its server in its role, and
takes over when the primary is dead.

One process of six threads: the endpoint that HAProxy asks, the look at the own server, the readers
of the record and of the passwords, the watcher, and what tells whom the server refused. Without AWS
or its password it still answers, with what it knows.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from flotilla.agent.duty import Duty
from flotilla.agent.endpoint import Endpoint, listen, response
from flotilla.agent.keyring import Keyring, Password
from flotilla.agent.knowledge import Knowledge
from flotilla.agent.local import PERIOD_SECONDS, Local
from flotilla.agent.patience import METADATA, RETRY_SECONDS, insist
from flotilla.agent.refusals import Refusals
from flotilla.agent.sessions import Sessions, Trust, local
from flotilla.agent.takeover import Takeover
from flotilla.agent.watch import Watcher, described, sight
from flotilla.aws.lean import Api, LeanTable, versioned
from flotilla.aws.own_role import METADATA_URL, OwnRole
from flotilla.aws.peers import Peers
from flotilla.errors import FlotillaError
from flotilla.hosts.mysql import Server
from flotilla.hosts.mysql_glimpse import Glimpse, glimpse
from flotilla.mysql.accounts import REPLICATION, WATCHER
from flotilla.mysql.record import CLUSTER, Records
from flotilla.rules.mysql_health import Health, replica_objection
from flotilla.rules.mysql_standing import standing_objection
from flotilla.rules.mysql_state import Place, State
from flotilla.rules.mysql_verdict import Reach

# The record is small and near, and asked for by whoever waits; EC2 takes its time.
RECORD_SECONDS = 1.0
EC2_SECONDS = 5.0
DUTY_SECONDS = 0.5
SOON_SECONDS = 0.05
STACK_BYTES = 512 * 1024

log = logging.getLogger("flotilla.watcher")


class Answers:
    """What the endpoint says, from what was last seen and known: nothing is asked meanwhile."""

    def __init__(self, seen: Local, knowledge: Knowledge | None, lag_limit_seconds: float) -> None:
        self._local = seen
        self.knowledge = knowledge
        self.watch: Callable[[], Mapping[str, str]] = dict
        self.duty: Callable[[], str] = str
        self.keyring: Keyring | None = None
        self._lag_limit = lag_limit_seconds
        self._said: dict[str, str] = {}

    def __call__(self, path: str) -> bytes:
        """The answer to a path; its body: {"ok", "why", and what was seen of the server}."""
        if path in {"/watch", "/secrets"}:
            return response(200, dict(self.watch() if path == "/watch" else self._versions()))
        if path == "/look":
            # For whoever has just changed a role, and waits until this host knows.
            self._local.hurry()
            if self.knowledge is not None:
                self.knowledge.hurry()
            path = "/primary"
        if path not in {"/primary", "/replica"}:
            why = "there are /primary, /replica, /look, /watch and /secrets"
            return response(404, {"ok": False, "why": why})
        seen = self._local.seen
        if seen.glimpse is None:
            return self._say(path, seen.why, None)
        health = seen.glimpse.health
        if path == "/replica":
            objection = replica_objection(health, self._lag_limit)
        elif self.knowledge is None:
            objection = "which instance this is has not been learned yet"
        else:
            objection = standing_objection(health, self.knowledge.standing(self._local.gap_at))
        return self._say(path, objection or "", health)

    def _versions(self) -> Mapping[str, int]:
        """For a rotation: which versions are used now; they are read again for whoever asks next.

        No values, nor digests of them, for whoever reaches the port may ask; nothing before they
        were read.
        """
        if self.keyring is None:
            return {}
        self.keyring.hurry()
        return self.keyring.versions()

    def _say(self, path: str, why: str, health: Health | None) -> bytes:
        # Lag and ages differ in every answer: only the kind of reason is news.
        kind = why.rstrip("0123456789. s")[:40]
        if self._said.get(path) != kind:
            self._said[path] = kind
            log.info("%s: %s", path, why or "yes")
        return _said(why, health, self.duty() if health else "")


# A healthy cluster gives the same few answers 18 times a second.
@lru_cache(maxsize=8)
def _said(why: str, health: Health | None, duty: str) -> bytes:
    seen = {**asdict(health), "duty": duty} if health else {}
    return response(503 if why else 200, {"ok": not why, "why": why, **seen})


class Agent:
    """Puts the parts together once AWS has said who and where we are."""

    def __init__(self, options: argparse.Namespace, environment: Mapping[str, str]) -> None:
        self._options = options
        self._folder = Path(environment.get("STATE_DIRECTORY", "/var/lib/flotilla-mysql"))
        self._region = region = environment.get("AWS_REGION", "")
        endpoint = environment.get("AWS_ENDPOINT_URL")
        role = OwnRole(environment.get(METADATA, METADATA_URL))
        self._role = role
        self._quick = Api(region, role, endpoint_url=endpoint, seconds=RECORD_SECONDS)
        self._slow = Api(region, role, endpoint_url=endpoint, seconds=EC2_SECONDS)
        self._local = Local(local())
        self._answers = Answers(self._local, None, options.lag_limit_seconds)

    def run(self) -> None:
        """Serve for ever."""
        endpoint = Endpoint(listen(self._options.address, self._options.port), self._answers)
        threading.stack_size(STACK_BYTES)
        threading.Thread(target=forever, args=(self._local.run,), daemon=True, name="local").start()
        threading.Thread(target=self._watch, daemon=True, name="watch").start()
        # What was made until now stays; the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        endpoint.serve()

    def _watch(self) -> None:
        if not self._region:
            log.error(
                "AWS_REGION is not set, so the record cannot be read and this host is offered as no"
                " primary; it belongs into /etc/flotilla/aws.env, which role base writes; next:"
                " fab fleet.configure --limit mysql"
            )
            return
        fleet, env = self._options.fleet, self._options.env
        instance_id = insist(lambda: self._role.text("instance-id"))
        table = LeanTable(self._quick, f"{fleet}-{env}-clusters", "cluster", "lease_term")
        peers = Peers(self._slow, fleet, env, "mysql")
        knowledge = Knowledge(instance_id, Records(table, CLUSTER), peers, self._folder / "members")
        self._answers.knowledge = knowledge
        threading.Thread(target=forever, args=(knowledge.run,), daemon=True, name="record").start()
        keyring = insist(lambda: Keyring(lambda: passwords(self._slow, fleet, env)))
        self._answers.keyring = keyring
        threading.Thread(target=forever, args=(keyring.run,), daemon=True, name="secrets").start()
        trust = Trust(Path(self._options.authority), f"mysql.{fleet}.{env}.internal")
        sessions = insist(lambda: _sessions(keyring, trust))
        knowledge.vouched = Voucher(knowledge, sessions)
        own = Own(knowledge, sessions)
        self._local.turn_to(own)
        refusals = Refusals(own)
        threading.Thread(target=forever, args=(refusals.run,), daemon=True, name="told").start()
        self._local.pace = Pace(knowledge, self._local)
        # Unique to this run: a lease that an earlier one left behind is not ours.
        holder = f"{instance_id}:{os.getpid()}:{int(time.time())}"
        duty = Duty(knowledge, sessions, keyring.secrets, holder=holder)
        takeover = Takeover(
            knowledge,
            sessions,
            peers,
            keyring.secrets,
            holder=holder,
            journals=self._folder / "failovers",
        )
        watcher = Watcher(knowledge, sessions, takeover.propose, dry=self._is_dry, sight=sight)
        self._answers.watch = lambda: described(watcher.sees, time.monotonic())
        self._answers.duty = lambda: duty.word
        forever(lambda: self._turns(watcher, duty))

    def _turns(self, watcher: Watcher, duty: Duty) -> None:
        last = 0.0
        while True:
            look = watcher.turn()
            now = time.monotonic()
            seen = self._local.seen.glimpse
            # While the primary is silent, replication is a failover's affair; closing is not.
            calm = look is None or look.reach is Reach.ANSWERS
            if now - last >= DUTY_SECONDS and (calm or (seen and not seen.health.read_only)):
                last = now
                duty.turn(seen)

    def _is_dry(self) -> bool:
        seen = self._local.seen.glimpse
        return seen is not None and seen.health.io != "ON"


class Own:
    """New sessions on this host's own server, by TLS; None while it is not known which that is."""

    def __init__(self, knowledge: Knowledge, sessions: Sessions) -> None:
        self._knowledge = knowledge
        self._sessions = sessions

    def __call__(self) -> Server | None:
        """A session that is not opened yet."""
        me = self._knowledge.me
        return self._sessions.server(me) if me else None


class Pace:
    """When to look at the own server next: soon, while the record gives it a role it has not yet.

    A server that has a role the record does not give it, or one that was away, has the record read
    again at once.
    """

    def __init__(self, knowledge: Knowledge, local: Local) -> None:
        self._knowledge = knowledge
        self._local = local

    def __call__(self, seen: Glimpse | None) -> float:
        """Seconds until the next look."""
        state = self._knowledge.state
        if seen is None or state is None:
            return PERIOD_SECONDS
        health, record = seen.health, state.record
        if (self._knowledge.heard_at or 0.0) <= self._local.gap_at:
            self._knowledge.hurry()
        mine = record.instance_id == self._knowledge.instance_id
        if health.term is not None and health.term > record.term:
            self._knowledge.hurry()
        elif not (mine and (health.read_only or health.term != record.term)):
            return PERIOD_SECONDS
        return SOON_SECONDS


class Voucher:
    """Whether some member follows this host under its term: asked when the record is away."""

    def __init__(self, knowledge: Knowledge, sessions: Sessions) -> None:
        self._knowledge = knowledge
        self._sessions = sessions

    def __call__(self, state: State) -> bool:
        """Ask all others, until one says yes."""
        me = self._knowledge.me
        if me is None or me.instance_id != state.record.instance_id:
            return False
        others = [place for place in self._knowledge.places.values() if place != me]
        return any(self._follows(place, me, state) for place in others)

    def _follows(self, place: Place, me: Place, state: State) -> bool:
        server = self._sessions.server(place)
        try:
            seen = glimpse(server, seconds=RECORD_SECONDS / 2)
        except FlotillaError:
            return False
        finally:
            server.close()
        health = seen.health
        streams = (seen.follows, health.io, seen.acknowledges) == (me.address, "ON", True)
        return streams and health.term == state.record.term


def _sessions(keyring: Keyring, trust: Trust) -> Sessions:
    try:
        return Sessions(lambda: keyring.password(WATCHER), trust)
    except OSError as error:
        raise FlotillaError(f"{trust.authority} cannot be read as an authority: {error}") from error


def passwords(api: Api, fleet: str, env: str) -> dict[str, Password]:
    """The two passwords a watcher needs. Raises FlotillaError while one of them is missing."""
    wanted = {
        f"/{fleet}/{env}/mysql/watcher_password": WATCHER,
        f"/{fleet}/{env}/mysql/replication_password": REPLICATION,
    }
    found = versioned(api, wanted)
    missing = sorted(name for name, account in wanted.items() if account not in found)
    if missing:
        raise FlotillaError(f"SSM has no parameter {', '.join(missing)}")
    return {account: Password(*one) for account, one in found.items()}


def forever(work: Callable[[], None], sleep: Callable[[float], None] = time.sleep) -> None:
    """Do ``work``, and again when it fails for a reason nobody thought of.

    A thread that ends unseen would leave a host that answers and does not watch; a process that
    ends would have HAProxy cut every session of a primary.
    """
    while True:
        try:
            work()
        except Exception:
            log.exception("this should not happen")
        sleep(RETRY_SECONDS)
