"""The command that replaces a primary which does not serve: by its replicas' word, never by ours.

The same rules and the same steps as a watcher's. What an operator adds is patience, and the right
to accept a loss.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flotilla.agent.fences import fence
from flotilla.agent.takeover import Noted
from flotilla.aws.session import client, described
from flotilla.aws.waiters import paginate
from flotilla.errors import HostFailed
from flotilla.hosts.mysql import READ_ONLY, Server, SqlError
from flotilla.lock import Lock
from flotilla.mysql import reports, store
from flotilla.mysql.cluster import through
from flotilla.mysql.ensure import refused
from flotilla.mysql.failover import Done, Failover
from flotilla.mysql.failover_journal import Journal
from flotilla.mysql.failover_parts import Log
from flotilla.mysql.fencing import Fence, Fencing
from flotilla.mysql.leasing import leased
from flotilla.mysql.observe import Seen, observe
from flotilla.mysql.operate import demand_member
from flotilla.mysql.operate_record import demanded
from flotilla.mysql.positions import read
from flotilla.mysql.recorded import Confirmed, Said, recorded
from flotilla.mysql.session import Session, session
from flotilla.rules.mysql import Refusal, primary_objection
from flotilla.rules.mysql_completion import Completion, completion
from flotilla.rules.mysql_failover import Opening, opening
from flotilla.rules.mysql_report import Report, count, text
from flotilla.rules.mysql_state import Past, Place, State
from flotilla.settings import Settings
from flotilla.who import holder

COMMAND = "fab mysql.failover"


@dataclass(frozen=True, slots=True)
class Takeover:
    """A failover that may begin: how, and on what verdict."""

    opening: Opening
    seen: Seen


def failover(
    settings: Settings,
    to: str | None = None,
    *,
    accept_loss: bool,
    confirmed: Confirmed,
    said: Said,
) -> dict[str, Any]:
    """Replace the primary, or complete a change that was cut off: {term, primary, report}.

    ``report`` is None where what was completed had one or was no failover. Raises Refused with the
    evidence when the primary is alive or nobody may take over, HostFailed when the record was
    changed and the rest is to be completed.
    """
    with session(settings, fresh=True) as opened:
        demand_member(opened, to)
        plan = _plan(opened, to, accept_loss=accept_loss)
        confirmed(_text(opened, plan))
        with (
            recorded(settings, COMMAND, said) as steps,
            leased(settings, COMMAND) as lock,
            ExitStack() as stack,
        ):
            with steps.step("look again"):
                plan = _plan(opened, to, accept_loss=accept_loss)
            at = time.time()
            term = plan.term if isinstance(plan, Completion) else plan.opening.term
            journal = Journal.begin(_folder(settings), term, time.time)
            run = _run(opened, lock, plan, Told(journal, said), stack)
            done = run.complete() if isinstance(plan, Completion) else run.run(plan.opening)
            report = _report(opened, plan, done, journal, at)
            steps.result = {"term": done.term, "primary": done.new}
    if report:
        said(text(report))
    return steps.result | {"report": report.as_dict() if report else None}


def _plan(opened: Session, to: str | None, *, accept_loss: bool) -> Takeover | Completion:
    state = demanded(store.records(opened.settings).state())
    places, old = _places(opened, state)
    seen = _observed(opened, places, old)
    if old.name in seen.reachable:
        left = _rest(opened, state)
        if left:
            return left
    decided = opening(
        places,
        state,
        seen.verdict,
        seen.reachable,
        me=holder(),
        now=time.time(),
        accept_loss=accept_loss,
        manual=True,
        to=to,
        degraded=seen.alone,
    )
    if isinstance(decided, Refusal):
        raise refused(decided)
    return Takeover(decided, seen)


def _folder(settings: Settings) -> Path:
    """Where the journals of failovers are."""
    return settings.scratch / "mysql" / "failovers"


def _is_cut_off(settings: Settings, term: int) -> bool:
    """Whether the failover to this term was begun here and has not ended."""
    newest = Journal.newest(_folder(settings), time.time)
    if newest is None or newest.is_finished:
        return False
    begun = [line["term"] for line in newest.lines() if line["event"] == "begin"]
    return begun[-1:] == [term]


def _rest(opened: Session, state: State) -> Completion | None:
    """What is left of an earlier change, where the recorded primary answers and does not serve, or
    whoever made it one was killed.
    """
    topology = opened.cluster.look(state.record)
    primary = topology.by_instance(state.record.instance_id)
    if primary is None:
        return None
    serves = primary_objection(primary, state.record) is None
    if serves and not _is_cut_off(opened.settings, state.record.term):
        return None
    left = completion(state, topology)
    if isinstance(left, Refusal):
        raise refused(left)
    return left


def _observed(opened: Session, places: list[Place], old: Place) -> Seen:
    with ExitStack() as stack:
        runs = old.name in opened.cluster.seats
        eye = _session(opened, old, stack) if runs else None
        return observe(opened.cluster, places, old, eye, me=holder())


class Told:
    """A failover's journal, whose steps are also said as they end."""

    def __init__(self, journal: Journal, said: Said) -> None:
        self._journal = journal
        self._said = said

    def write(self, event: str, **fields: Any) -> None:
        """Add a line."""
        self._journal.write(event, **fields)
        if event == "done":
            who = ", ".join(fields["members"])
            self._said(f"{fields['act']} {who} ... ok {fields['seconds']:.2f} s")


def _run(
    opened: Session, lock: Lock, plan: Takeover | Completion, log: Log, stack: ExitStack
) -> Failover:
    settings, records = opened.settings, store.records(opened.settings)
    new: list[str] = []
    if isinstance(plan, Takeover):
        found = plan.opening
        new = [name for name in opened.cluster.seats if name != found.old.name]
        log = Noted(log, lambda new: _remember(opened, found.term, found.old.name, new))
    announcer = opened.announcer()
    announcer.arm(*new)
    return Failover(
        opened.cluster,
        lock,
        records,
        log,
        _fence(opened, plan, stack),
        known=store.secrets(settings),
        announcer=announcer,
    )


def _remember(opened: Session, term: int, old: str, new: str) -> None:
    """Whoever asked for it has seen it: it blocks no watcher."""
    event = Past(at=time.time(), term=term, old=old, new=new, acknowledged=True)
    store.records(opened.settings).remember(event)


def _places(opened: Session, state: State) -> tuple[list[Place], Place]:
    """Every member that may come back to life, a stopped one too; and the recorded primary."""
    places = [
        Place(host.name, host.instance_id, host.private_ip or "", host.zone)
        for host in opened.snapshot.hosts
        if host.role == "mysql"
    ]
    old = next((p for p in places if p.instance_id == state.record.instance_id), None)
    if old is None:
        # EC2 has forgotten the host, so it is fenced for good; its replicas still have to agree.
        old = Place("the former primary", state.record.instance_id, "")
        places.append(old)
    return places, old


def _session(opened: Session, place: Place, stack: ExitStack) -> Server:
    """A session of its own on a member, not yet opened."""

    def stream() -> Any:
        return through(opened.runner, opened.snapshot.host(place.instance_id))()

    server = Server(place.name, stream)
    stack.callback(server.close)
    return server


def _fence(opened: Session, plan: Takeover | Completion, stack: ExitStack) -> Fence:
    if isinstance(plan, Completion):
        return Fencing(lambda: "")
    server = _session(opened, plan.opening.old, stack)
    return fence(plan.seen.reach, server, plan.opening, Stops(opened.settings))


class Stops:
    """Stops hosts, as the operator's account; ``flotilla.agent.fences`` says what for."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def state(self, instance_id: str) -> str:
        """The state of an instance in EC2's words; "terminated" once EC2 has forgotten it."""
        wanted = {"Name": "instance-id", "Values": [instance_id]}
        pages = paginate(
            self._settings, "ec2", "describe_instances", "Reservations", Filters=[wanted]
        )
        states = [one["State"]["Name"] for page in pages for one in page["Instances"]]
        return str(states[0]) if states else "terminated"

    def stop(self, instance_id: str) -> None:
        """Ask for it to be stopped without waiting for its system; does not wait."""
        with described(self._settings, f"stop {instance_id}"):
            client(self._settings, "ec2").stop_instances(InstanceIds=[instance_id], Force=True)


def _report(
    opened: Session, plan: Takeover | Completion, done: Done, journal: Journal, at: float
) -> Report | None:
    """Write what there is to be told about a failover that took effect, in this run or before."""
    primary = opened.cluster.server(done.new)
    if isinstance(plan, Takeover):
        report = reports.of(done, plan.opening, plan.seen.verdict, by=holder(), at=at)
        # Until it is in the cluster: a new primary to whom nobody acknowledges takes no writes yet.
        journal.write(reports.LINE, body=report.as_dict())
        try:
            reports.keep(primary, report)
        except SqlError as error:
            if error.code != READ_ONLY:
                raise
            raise HostFailed(
                f"term {done.term} belongs to {done.new}, which takes no writes yet",
                "nobody acknowledges to it, so every write would wait for ever",
                f"Its report is in {journal.path}",
                "fab mysql.rejoin with the name of another host, then fab mysql.failover",
            ) from None
        journal.write("end", result="reported")
        return report
    found = reports.resumed(done, journal.lines(), by=holder(), at=at)
    waits = done.new in done.left_out
    if found is None or waits or any(one.term == found.term for one in reports.read(primary)):
        return None
    _remember(opened, found.term, found.old, found.new)
    reports.keep(primary, found)
    return found


def _text(opened: Session, plan: Takeover | Completion) -> str:
    settings = opened.settings
    if isinstance(plan, Completion):
        lines = [f"{settings.prefix}: complete term {plan.term} of {plan.new.name}"]
        lines += [f"  {step.act} {step.member}: {step.why}" for step in plan.steps]
        return "\n".join([*lines, *([f"  {plan.waits}"] if plan.waits else [])])
    found = plan.opening
    head = f"{settings.prefix}: term {found.term} is taken from {found.old.name}, which is"
    lines = [f"{head} {plan.seen.verdict.kind}:"]
    lines += [f"  {sentence}" for sentence in found.evidence]
    lines += [f"  {f'{step.act} {step.member}'.strip()}: {step.why}" for step in found.steps]
    lines.append(f"  then {found.to or 'whoever holds everything'} takes over")
    return "\n".join([*lines, *(_price(opened, plan) if found.accept_loss else [])])


def _price(opened: Session, plan: Takeover) -> list[str]:
    """What an operator gives up with ``accept_loss``, as far as it is known."""
    found = plan.opening
    absent = [name for name in found.ackers if name not in plan.seen.reachable]
    state = demanded(store.records(opened.settings).state())
    lines = []
    if absent:
        lines.append(
            f"! {', '.join(absent)} may hold acknowledged writes that nobody else has: how many is"
            " known only when they are back, and they are given up"
        )
    if found.barred_to:
        why = next(state.barred[p.instance_id] for p in found.places if p.name == found.barred_to)
        lines.append(
            f"! {found.barred_to} is kept out ({why}): it may lack any write acknowledged since,"
            " and what only it holds will be on all others"
        )
    if found.to:
        asked = [name for name in found.asked if name in plan.seen.reachable]
        seen = read(opened.cluster, asked, state.record.uuid, state.baseline)
        surplus = [seen.topology.surplus.get((name, found.to), "") for name in asked]
        lacks = ",".join(filter(None, [*surplus, seen.owed.get(found.to, "")]))
        lines.append(f"! {found.to} lacks {count(lacks)} transactions known of {lacks}".rstrip())
    return lines or ["! nothing is known to be lost"]
