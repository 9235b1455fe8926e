"""Rebuild a member as a copy of another one: what it alone held is saved first, then replaced.

For a former primary that came back with writes nobody else has, for a replica that diverged or was
away for longer than binary logs are kept, and for a new host.
"""

from __future__ import annotations

import secrets as tokens
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flotilla.errors import HostFailed, Refused
from flotilla.hosts.mysql import look, position, subtract
from flotilla.lock import Lock
from flotilla.mysql import clone, reports, steps, store, surplus
from flotilla.mysql.cluster import Cluster
from flotilla.mysql.ensure import Progress, refused
from flotilla.mysql.leasing import leased
from flotilla.rules.mysql import Refusal
from flotilla.rules.mysql_rebuild import Rebuild, rebuild
from flotilla.rules.mysql_report import Surplus
from flotilla.settings import Settings
from flotilla.wait import DeadlineError, until

AWAKE_SECONDS = 30.0
_READ_ONLY = "SELECT @@GLOBAL.super_read_only AS closed"


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A member that was rebuilt: from whom, and what it alone had held."""

    member: str
    donor: str
    surplus: Surplus | None

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        lost = self.surplus
        return {
            "host": self.member,
            "donor": self.donor,
            "surplus": lost.gtids if lost else "",
            "saved_to": lost.saved_to if lost else "",
            "rows": lost.rows if lost else {},
        }


class Rebuilding:
    """One run for one member. ``plan`` only looks; ``apply`` changes.

    ``channel`` runs a command as root on the member's host, ``start`` starts its server, ``forget``
    has it take another server UUID when it next starts.
    """

    def __init__(
        self,
        settings: Settings,
        cluster: Cluster,
        name: str,
        *,
        channel: surplus.Open,
        start: Callable[[], None],
        forget: Callable[[], None],
        port: int = steps.PORT,
    ) -> None:
        self._settings = settings
        self._cluster = cluster
        self._name = name
        self._channel = channel
        self._start = start
        self._forget = forget
        self._port = port
        self._reason = f"fab mysql.rebuild {name}"
        self._records = store.records(settings)

    def plan(self) -> Rebuild:
        """What it would do. Raises Refused."""
        record = self._records.read()
        decision = rebuild(self._cluster.look(record), record, self._name)
        if isinstance(decision, Refusal):
            raise refused(decision)
        return decision

    def apply(self, progress: Progress, *, give_up: bool = False) -> Rebuilt:
        """Do what a fresh plan says.

        The cluster's lease is held while roles are touched and not while data is copied, which may
        take hours: watchers must be able to fail over meanwhile. With ``give_up``, what only this
        member held and its logs no longer have is let go. Raises HostFailed when it was begun: the
        member then stays closed and barred, until another run has rebuilt it.
        """
        with Lock(self._settings, f"rebuild-{self._name}", reason=self._reason) as own:
            with leased(self._settings, self._reason) as lease:
                plan = self.plan()
                with progress(f"close {self._name}"):
                    self._bar(plan, lease, f"fab mysql.rebuild since term {plan.term}")
                    clone.close(self._cluster.server(self._name))
                # Closed by now, it can hold no more than this; and it may hold more than planned.
                saved = self._save(plan, progress, give_up=give_up)
                password = tokens.token_urlsafe(24)
                if plan.asleep:
                    # Under the lease: nobody opens that server meanwhile.
                    self._admit(plan, password, progress)
            own.check()
            if not plan.asleep:
                self._admit(plan, password, progress)
            self._copy(plan, password, progress)
            own.check()
            now = self._followed(plan, progress)
        fate = f"{self._name} was rebuilt from {plan.donor.name} and follows {now.primary.name}"
        if now.asleep:
            # Its own watcher opens it, now that somebody acknowledges.
            with progress(f"wait for {now.primary.name}"):
                self._await_awake(now)
        if saved:
            primary = self._cluster.server(now.primary.name)
            reports.complete(primary, self._name, lambda report: report.returned(saved, fate))
        return Rebuilt(self._name, plan.donor.name, saved)

    def _followed(self, plan: Rebuild, progress: Progress) -> Rebuild:
        """Let the copy in, under whoever is primary by now; the plan of now."""
        try:
            with leased(self._settings, self._reason) as lease:
                now = self.plan()
                self._return(now, lease, progress, is_unlogged=plan.asleep)
                return now
        except Refused as error:
            # Refused says that nothing was changed, and by now much was.
            raise HostFailed(
                f"{self._name} is a copy of {plan.donor.name} and was not let in: {error.what}",
                error.why,
                f"{self._name} stays closed and kept out; the others are as they were",
                f"{error.next}, then fab mysql.rebuild {self._name}",
            ) from error

    def _await_awake(self, plan: Rebuild) -> None:
        server = self._cluster.server(plan.primary.name)

        def awake() -> bool:
            return not server.query(_READ_ONLY)[0]["closed"]

        try:
            until(awake, seconds=AWAKE_SECONDS, every=0.2)
        except DeadlineError:
            raise HostFailed(
                f"{self._name} follows {plan.primary.name}, which is read-only still",
                "it was to take writes once somebody acknowledged to it",
                "No data was lost",
                "fab mysql.ensure",
            ) from None

    def _save(self, plan: Rebuild, progress: Progress, *, give_up: bool) -> Surplus | None:
        server = self._cluster.server(self._name)
        gtids = self._surplus(plan)
        if not gtids:
            return None
        try:
            with progress(f"save what only {server.name} has"):
                return surplus.save(self._settings, server, self._channel, gtids, term=plan.term)
        except HostFailed:
            if not give_up:
                raise
            return Surplus(server.name, gtids)

    def _bar(self, plan: Rebuild, lease: Lock, why: str) -> None:
        """Keep the member out of the cluster; with no reason, let it in again.

        A failover asks nobody who is out, so it need not wait for one that restarts.
        """
        state = self._records.state()
        barred = dict(state.barred) if state else {}
        barred.pop(plan.member.instance_id, None)
        if why:
            barred[plan.member.instance_id] = why
        lease.check()
        self._records.bar(barred, term=plan.term, fence=lease.term)

    def _return(self, plan: Rebuild, lease: Lock, progress: Progress, *, is_unlogged: bool) -> None:
        server = self._cluster.server(self._name)
        primary = self._cluster.server(plan.primary.name)
        if is_unlogged:
            for one in (primary, server):
                clone.expel_here(one)
        else:
            clone.expel(primary)
        with progress(f"compare {server.name}"):
            self._compare(plan)
        with progress(f"follow {plan.primary.name}"):
            # The copy brought its donor's own source along, and no relay log.
            server.batch(["STOP REPLICA", "RESET REPLICA ALL"], seconds=steps.DRAIN_SECONDS)
            self._bar(plan, lease, "")
            steps.follow(server, plan.primary.address, store.secrets(self._settings))
            clone.reopen(server)
            steps.await_following(server, plan.primary)

    def _surplus(self, plan: Rebuild) -> str:
        """What the member holds, applied or only received, and the primary does not."""
        member, _ = look(self._cluster.server(plan.member.name), instance_id="", address="")
        primary = self._cluster.server(plan.primary.name)
        theirs = primary.query("SELECT @@GLOBAL.gtid_executed AS executed")[0]["executed"]
        found = subtract(primary, {"mine": position(member), "theirs": theirs})
        return found.get(("mine", "theirs"), "")

    def _admit(self, plan: Rebuild, password: str, progress: Progress) -> None:
        primary, donor = (self._cluster.server(one.name) for one in (plan.primary, plan.donor))
        with progress(f"admit {self._name} to {donor.name}"):
            if plan.asleep:
                clone.admit_here(donor, password)
            else:
                clone.admit(primary, donor, password)

    def _copy(self, plan: Rebuild, password: str, progress: Progress) -> None:
        server = self._cluster.server(self._name)
        with progress(f"copy {plan.donor.name} to {server.name}"):
            # The copy ends in a restart. Under its old UUID, as a later primary, it would number
            # its writes as it numbered those that were lost with its data: whoever still held one
            # of those would skip the new one.
            self._forget()
            made = clone.copy(
                server, plan.donor.address, password, port=self._port, start=self._start
            )
        if made.uuid in {plan.member.uuid, plan.donor.uuid, plan.primary.uuid}:
            raise HostFailed(
                f"{server.name} has server UUID {made.uuid}, which was in use",
                "servers skip transactions that came under a UUID and number they have",
                f"{server.name} stays closed",
                f"fab fleet.logs {server.name} --unit mysql",
            )

    def _compare(self, plan: Rebuild) -> None:
        left = self._surplus(plan)
        if left:
            raise HostFailed(
                f"{plan.member.name} still holds {left}, which {plan.primary.name} lacks",
                "it would spread them after a later change of primary",
                f"{plan.member.name} stays closed",
                f"fab mysql.rebuild {plan.member.name}",
            )


def described(settings: Settings, plan: Rebuild) -> str:
    """The plan for people."""
    name, donor = plan.member.name, plan.donor.name
    lines = [f"{settings.prefix}: all data on {name} is replaced by a copy of {donor}"]
    if plan.surplus:
        bucket = settings.name_of("backups")
        lines.append(f"  only {name} holds {plan.surplus}")
        lines.append(f"  that is saved to s3://{bucket}/{surplus.FOLDER}/{name}/ first")
    else:
        lines.append(f"  it holds nothing that {plan.primary.name} lacks")
    lines.append(f"  then it follows {plan.primary.name}; clients of the others notice nothing")
    return "\n".join(lines)
