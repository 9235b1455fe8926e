"""Make the cluster whole: look, decide, act under the lease, look again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from flotilla.errors import HostFailed, Refused
from flotilla.hosts.mysql import look
from flotilla.mysql import accounts, steps, store
from flotilla.mysql.accounts import Account, Secrets
from flotilla.mysql.cluster import Cluster
from flotilla.mysql.leasing import leased
from flotilla.rules.mysql import Refusal, Repair, Step, Verb, repair
from flotilla.rules.mysql_topology import Record
from flotilla.settings import Settings

# Given a title, a context in which that step runs; what prints or records steps makes one.
Progress = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done: the steps in their order (none: it was whole), and what needs a human."""

    term: int
    primary: str
    steps: tuple[Step, ...]
    notes: tuple[str, ...]


# A primary and one replica: nobody else is there to acknowledge.
ALONE = 2


class Ensure:
    """One run on one cluster. ``plan`` only looks; ``apply`` changes."""

    def __init__(self, settings: Settings, cluster: Cluster) -> None:
        self._settings = settings
        self._cluster = cluster
        self._records = store.records(settings)
        self._known: Secrets
        self._accounts: tuple[Account, ...]
        self._learn()

    def _learn(self) -> None:
        self._known = store.secrets(self._settings)
        self._accounts = accounts.accounts(self._settings, self._known)

    def plan(self) -> Repair:
        """What there is to do. Raises Refused with the evidence where that is not clear."""
        state = self._records.state()
        record, barred = (state.record, state.barred) if state else (None, {})
        topology = self._cluster.look(record, self._accounts, self._known)
        decision = repair(topology, record, barred)
        if isinstance(decision, Refusal):
            raise refused(decision)
        return decision

    def apply(self, progress: Progress) -> Outcome:
        """Do what a fresh plan says, under the cluster's lease, and check that nothing is left."""
        with leased(self._settings, "fab mysql.ensure") as lock:
            # Again: a rotation may have gone on while the plan was read and agreed to.
            self._learn()
            plan = self.plan()
            for step in plan.steps:
                lock.check()
                with progress(f"{step.verb} {step.member}"):
                    self._do(step, plan, lock.term)
            left = self.plan()
        if left.steps:
            raise HostFailed(
                "after all steps there is still: "
                + "; ".join(f"{step.verb} {step.member} ({step.why})" for step in left.steps),
                next="fab mysql.status",
            )
        return Outcome(plan.term, plan.primary.name, plan.steps, left.notes)

    def _do(self, step: Step, plan: Repair, fence: int) -> None:
        server = self._cluster.server(step.member)
        source = plan.primary.address
        actions: dict[Verb, Callable[[], None]] = {
            Verb.RECORD: lambda: self._record(plan, fence),
            Verb.SOURCE_OFF: lambda: steps.source_off(server),
            Verb.DETACH: lambda: steps.detach(server),
            Verb.BOOTSTRAP: lambda: self._bootstrap(step.member),
            Verb.FOLLOW: lambda: steps.follow(server, source, self._known),
            Verb.REPOINT: lambda: steps.repoint(server, source),
            Verb.REOPEN: lambda: steps.reopen(server),
            Verb.RESUME: lambda: steps.resume(server),
            Verb.RENEW: lambda: self._renew(step.member, plan),
            Verb.ACKNOWLEDGE: lambda: steps.acknowledge(server),
            Verb.VERIFY: lambda: steps.verify(server, plan.primary),
            Verb.GRANT: lambda: steps.grant(server, plan.term, plan.primary.uuid),
            Verb.ACCOUNTS: lambda: self._make_accounts(step.member),
        }
        actions[step.verb]()
        # One that is renewed because it was refused follows only after its next step.
        last = [one for one in plan.steps if one.member == step.member][-1]
        awaited = {Verb.FOLLOW, Verb.REPOINT, Verb.RESUME, Verb.ACKNOWLEDGE}
        if step.verb in awaited or (step.verb is Verb.RENEW and step is last):
            steps.await_following(server, plan.primary)

    def _record(self, plan: Repair, fence: int) -> None:
        record = Record(plan.term, plan.primary.instance_id, plan.primary.uuid)
        self._records.write(record, fence=fence)

    def _bootstrap(self, name: str) -> None:
        # read_only stays on: root may write, applications may not. Nobody can follow before this,
        # so nobody acknowledges it; `grant` has commits wait again.
        first = accounts.replication(self._known)
        statements = [
            "SET GLOBAL rpl_semi_sync_source_enabled = OFF",
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

    def _renew(self, name: str, plan: Repair) -> None:
        """Where there are more replicas than this one, somebody acknowledges all the time."""
        server, primary = self._cluster.server(name), self._cluster.server(plan.primary.name)
        member, _ = look(server, instance_id="", address="")
        if member.semi_sync.acknowledging and len(self._cluster.seats) > ALONE:
            steps.await_spare(primary, name)
        steps.renew_password(server, self._known)


def refused(refusal: Refusal) -> Refused:
    """A rule's refusal as the error that ends a command."""
    return Refused(refusal.what, refusal.why, "Nothing was changed", refusal.next)
