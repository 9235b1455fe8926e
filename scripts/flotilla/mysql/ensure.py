"""Make the cluster whole: look, decide, act under the lease, look again."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from flotilla.aws import lease
from flotilla.errors import HostFailed, Refused
from flotilla.mysql import accounts, steps
from flotilla.mysql.accounts import Account, Secrets
from flotilla.mysql.cluster import Cluster
from flotilla.mysql.record import Records
from flotilla.rules.mysql import Refusal, Repair, Step, Verb, repair
from flotilla.rules.mysql_topology import Record
from flotilla.settings import Settings

LEASE_SECONDS = 120.0
# Nothing is changed after this much of the lease: its end must never find us at work.
LEASE_USED_SECONDS = LEASE_SECONDS * 2 / 3

# Given a title, a context in which that step runs; what prints or records steps makes one.
Progress = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done: the steps in their order (none: it was whole), and what needs a human."""

    term: int
    primary: str
    steps: tuple[Step, ...]
    notes: tuple[str, ...]


class Ensure:
    """One run on one cluster. ``plan`` only looks; ``apply`` changes."""

    def __init__(
        self,
        settings: Settings,
        cluster: Cluster,
        *,
        holder: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._cluster = cluster
        self._holder = holder
        self._clock = clock
        self._records = Records(settings)
        self._known: Secrets = accounts.secrets(settings)
        self._accounts: tuple[Account, ...] = accounts.accounts(settings, self._known)

    def plan(self) -> Repair:
        """What there is to do. Raises Refused with the evidence where that is not clear."""
        record = self._records.read()
        decision = repair(self._cluster.look(record, self._accounts, self._known), record)
        if isinstance(decision, Refusal):
            raise refused(decision)
        return decision

    def apply(self, progress: Progress) -> Outcome:
        """Do what a fresh plan says, under the cluster's lease, and check that nothing is left."""
        table = self._settings.name_of("locks")
        held = lease.acquire(
            self._settings,
            table,
            lease_key(),
            holder=self._holder,
            reason="fab mysql.ensure",
            seconds=LEASE_SECONDS,
            now=self._clock(),
        )
        try:
            plan = self.plan()
            for step in plan.steps:
                self._still_held(held)
                with progress(f"{step.verb} {step.member}"):
                    self._do(step, plan, held)
            left = self.plan()
            if left.steps:
                raise HostFailed(
                    "after all steps there is still: "
                    + "; ".join(f"{step.verb} {step.member} ({step.why})" for step in left.steps),
                    next="fab mysql.status",
                )
            return Outcome(plan.term, plan.primary.name, plan.steps, left.notes)
        finally:
            lease.release(self._settings, table, held, now=self._clock())

    def _still_held(self, held: lease.Lease) -> None:
        if self._clock() > held.acquired_at + LEASE_USED_SECONDS:
            raise HostFailed(
                f"the lease is over {LEASE_USED_SECONDS:g} s old, so no further step was begun",
                "its next holder must not find us at work",
                "The steps reported so far are done",
                "fab mysql.ensure",
            )

    def _do(self, step: Step, plan: Repair, held: lease.Lease) -> None:
        server = self._cluster.server(step.member)
        source = plan.primary.address
        actions: dict[Verb, Callable[[], None]] = {
            Verb.RECORD: lambda: self._record(plan, held),
            Verb.SOURCE_OFF: lambda: steps.source_off(server),
            Verb.DETACH: lambda: steps.detach(server),
            Verb.BOOTSTRAP: lambda: self._bootstrap(step.member),
            Verb.FOLLOW: lambda: steps.follow(server, source, self._known),
            Verb.REPOINT: lambda: steps.repoint(server, source),
            Verb.RESUME: lambda: steps.resume(server),
            Verb.ACKNOWLEDGE: lambda: steps.acknowledge(server),
            Verb.GRANT: lambda: steps.grant(server, plan.term, plan.primary.uuid),
            Verb.ACCOUNTS: lambda: self._make_accounts(step.member),
        }
        actions[step.verb]()
        if step.verb in {Verb.FOLLOW, Verb.REPOINT, Verb.RESUME, Verb.ACKNOWLEDGE}:
            steps.await_following(server, plan.primary)

    def _record(self, plan: Repair, held: lease.Lease) -> None:
        record = Record(plan.term, plan.primary.instance_id, plan.primary.uuid)
        self._records.write(record, fence=held.term)

    def _bootstrap(self, name: str) -> None:
        # read_only stays on: root may write, applications may not.
        first = accounts.replication(self._known)
        statements = [
            "SET GLOBAL super_read_only = OFF",
            *accounts.schema(),
            *accounts.make(first, self._known),
        ]
        self._cluster.server(name).batch(statements, seconds=steps.GRANT_SECONDS)

    def _make_accounts(self, name: str) -> None:
        server = self._cluster.server(name)
        amiss = accounts.unusable(server, self._accounts, self._known)
        wanted = [one for one in self._accounts if one.name in amiss]
        statements = [s for one in wanted for s in accounts.make(one, self._known)]
        server.batch(statements, seconds=steps.GRANT_SECONDS)
        if accounts.REPLICATION in amiss:
            # One after the other: somebody acknowledges all the time.
            for seat in self._cluster.seats.values():
                if seat.name != name:
                    steps.renew_password(seat.server, self._known)


def lease_key() -> str:
    """The lease that whoever changes the MySQL cluster must hold."""
    return "mysql"


def refused(refusal: Refusal) -> Refused:
    """A rule's refusal as the error that ends a command."""
    return Refused(refusal.what, refusal.why, "Nothing was changed", refusal.next)
