"""An operator's commands on secrets: tell their age, and change one without an interruption."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from flotilla.agent.logins import ACCEPTED, REFUSED
from flotilla.aws import secrets as ssm
from flotilla.aws.secrets import Stored
from flotilla.errors import BadOption, HostFailed, Refused
from flotilla.lock import LEASE_SECONDS, Lock
from flotilla.mysql.recorded import Confirmed, Said, Steps, recorded
from flotilla.provision.world import data
from flotilla.rules import secrets as rules
from flotilla.rules.secrets import Held, Secret, Step
from flotilla.secrets.hosts import Fleet, Hosts
from flotilla.settings import Settings
from flotilla.wait import DeadlineError, until
from flotilla.who import holder

COMMAND = "fab secrets.rotate"
LOCK = "secrets"
_WAIT = f"the same command again; the lock of a dead run ends after {LEASE_SECONDS:g} s by itself"
# As provisioning makes them: 192 bits, 32 characters, of which no file or shell has to quote any.
SECRET_BYTES = 24
# A replica applies what the primary did; it is far behind if it takes longer.
AGREED_SECONDS = 30.0


def status(settings: Settings, *, now: float | None = None) -> dict[str, Any]:
    """{secrets: [row], notes: [sentence]}; no value is read.

    A row: {name, path, age_days, changed_at (UTC), by, key, rotating, command}. ``rotating`` is the
    next step of a rotation that has begun, None for none; ``command`` is what changes it, None for
    nothing. Of a secret that SSM lacks, all but name, path and command are None.
    """
    clock = time.time() if now is None else now
    found = ssm.stored(settings)
    kept = data("secrets.yml")
    rows = [_row(settings, role, one, found, clock) for role in kept for one in kept[role]]
    return {"secrets": rows, "notes": list(_notes(rows, settings.secrets.max_age_days))}


def _row(
    settings: Settings, role: str, parameter: str, found: Mapping[str, Stored], now: float
) -> dict[str, Any]:
    name, path = rules.name_of(role, parameter), settings.parameter(role, parameter)
    again = f"{COMMAND} {name}" if name in rules.ROTATED else rules.INSTEAD.get(name)
    row: dict[str, Any] = {"name": name, "path": path, "command": again}
    row |= dict.fromkeys(("age_days", "changed_at", "by", "key", "rotating"))
    if path not in found:
        return row
    one = found[path]
    there = (path + suffix if path + suffix in found else None for suffix in rules.SUFFIXES)
    held = Held(path, *there)
    return row | {
        "age_days": rules.age_days(one.changed_at, now),
        "changed_at": datetime.fromtimestamp(one.changed_at, UTC).isoformat(timespec="seconds"),
        "by": one.by,
        "key": one.key,
        "rotating": str(rules.ahead(held)[0]) if held.is_rotating else None,
    }


def _notes(rows: Iterable[Mapping[str, Any]], limit_days: int) -> Iterable[str]:
    for row in rows:
        if row["age_days"] is None:
            yield f"{row['name']}: SSM has no parameter {row['path']}; next: fab fleet.provision"
        elif row["rotating"]:
            stands = f"a rotation stands before {row['rotating']!r}"
            yield f"{row['name']}: {stands}; next: {row['command']}"
        elif row["age_days"] > limit_days and row["command"]:
            old = f"{row['age_days']} days old, more than {limit_days}"
            yield f"{row['name']}: {old}; next: {row['command']}"


def rotate(
    settings: Settings,
    name: str,
    *,
    confirmed: Confirmed,
    said: Said,
    strangers_ready: bool = False,
    hosts: Callable[[Settings, Secret, str, Said], Hosts] = Fleet,
    make: Callable[[int], str] = secrets.token_urlsafe,
) -> dict[str, Any]:
    """Change a secret: {name, steps, seconds}. One that was begun is gone on with.

    Raises BadOption for a name that cannot be rotated, Refused where it cannot go on now,
    HostFailed when a host does not do what it was told; what was done stands, what clients use is
    accepted, and the same command goes on.
    """
    secret = demanded(name)
    held = _held(settings, secret)
    fleet = hosts(settings, secret, name, said)
    _demand_all_run(fleet, held)
    confirmed(_plan(settings, name, secret, held))
    why = f"{COMMAND} {name}"
    with (
        Lock(settings, LOCK, reason=why, wait=_WAIT) as lock,
        recorded(settings, why, said) as told,
    ):
        run = Rotation(
            settings,
            secret,
            fleet,
            check=lock.check,
            make=make,
            strangers_ready=strangers_ready,
        )
        # Another run may have gone further, or to the end, while the plan was read.
        again = _held(settings, secret)
        is_ended = held.is_rotating and not again.is_rotating
        steps = () if is_ended else rules.ahead(again)
        run.run(steps, told)
        told.result = {"name": name, "steps": [str(step) for step in steps]}
    return {**told.result, "seconds": told.seconds}


def demanded(name: str) -> Secret:
    """The secret of that name. Raises BadOption, which lists those that can be rotated."""
    if name in rules.ROTATED:
        return rules.ROTATED[name]
    reason = rules.NOT_ROTATED.get(name)
    raise BadOption(
        f"{name} is not rotated: {reason}" if reason else f"there is no secret {name!r}",
        f"these can be: {', '.join(rules.ROTATED)}",
        "Nothing was changed",
        rules.INSTEAD.get(name, "fab secrets.status"),
    )


def _demand_all_run(fleet: Hosts, held: Held) -> None:
    """Refuse before the first step what a later one would find, with two values left behind."""
    if away := fleet.away():
        raise Refused(
            "; ".join(f"{host}: {why}" for host, why in sorted(away.items())),
            "the old value is dropped only when nobody has it any more",
            "Clients go on with either value" if held.is_rotating else "Nothing was changed",
            "start the host or remove it (fab fleet.status), then the same command again",
        )


class Rotation:
    """One run on one secret; each step can be done again."""

    def __init__(
        self,
        settings: Settings,
        secret: Secret,
        hosts: Hosts,
        *,
        check: Callable[[], None],
        make: Callable[[int], str],
        strangers_ready: bool,
    ) -> None:
        self._settings = settings
        self._secret = secret
        self._hosts = hosts
        self._check = check
        self._make = make
        self._strangers_ready = strangers_ready

    def run(self, steps: Iterable[Step], told: Steps) -> None:
        """Do these steps, each under the lock, and printed."""
        acts: Mapping[Step, Callable[[Held], None]] = {
            Step.MAKE: lambda _: None,
            Step.ACCEPT: self._accept,
            Step.SWITCH: lambda _: None,
            Step.MOVE: self._move,
            Step.DROP: self._alone,
            Step.REFUSE: self._refuse,
        }
        for step in steps:
            self._check()
            with told.step(rules.WORDS[step]):
                held = _held(self._settings, self._secret)
                acts[step](held)
                self._write(step, held)

    def _write(self, step: Step, held: Held) -> None:
        new = self._make(SECRET_BYTES) if step is Step.MAKE else ""
        for change in rules.writes(step, held, new):
            role, parameter = self._secret.role, self._secret.parameter
            ssm.write(self._settings, role, parameter, change, by=holder(), check=self._check)

    def _accept(self, held: Held) -> None:
        self._hosts.tell_servers()
        self._demand(dict.fromkeys(rules.accepted(held), ACCEPTED))

    def _move(self, held: Held) -> None:
        self._hosts.tell_clients()
        self._demand_moved(held)

    def _alone(self, held: Held) -> None:
        # Again: a host may have come since, and another command may have come between.
        self._demand_moved(held)
        known = self._hosts.known()
        others = rules.strangers(self._hosts.sessions(), known)
        if others and not self._strangers_ready:
            seen = "; ".join(f"{', '.join(where)} on {server}" for server, where in others.items())
            raise Refused(
                f"the account is used from {seen}, and the fleet has no such host",
                "whoever that is has the old value, and would be refused",
                "Servers accept both values",
                f"give it the new value of {self._path}, then the same command with"
                " --strangers-ready",
            )

    def _refuse(self, held: Held) -> None:
        self._hosts.tell_servers()
        old = {held.refused: REFUSED} if held.refused is not None else {}
        self._demand({held.current: ACCEPTED, **old})

    def _demand_moved(self, held: Held) -> None:
        behind = self._hosts.behind(held.current, held.previous or held.current)
        if behind:
            raise HostFailed(
                "; ".join(f"{host}: {why}" for host, why in sorted(behind.items())),
                "the old value is dropped only when nobody has it any more",
                "Servers accept both values; clients go on with either",
                "fab fleet.status, then the same command again",
            )

    def _demand(self, wanted: Mapping[str, str]) -> None:
        """Wait until every server says so to each of these values."""
        seen: dict[str, list[str]] = {}

        def agreed() -> bool:
            self._check()
            seen.clear()
            found = self._hosts.logins(list(wanted))
            seen.update({server: list(words) for server, words in found.items()})
            return bool(seen) and all(words == list(wanted.values()) for words in seen.values())

        try:
            until(agreed, seconds=AGREED_SECONDS, every=1.0)
        except DeadlineError:
            raise HostFailed(
                f"{self._path}: not every server says {list(wanted.values())}: {seen}",
                "clients would be refused there, or the old value would still let somebody in",
                "What clients use is accepted as before",
                f"fab {self._secret.role}.status, then the same command again",
            ) from None

    @property
    def _path(self) -> str:
        return self._settings.parameter(self._secret.role, self._secret.parameter)


def _held(settings: Settings, secret: Secret) -> Held:
    """What SSM holds of it. Raises Refused where there is none, or no rotation left it so."""
    path = settings.parameter(secret.role, secret.parameter)
    found = ssm.held(settings, secret.role, [secret.parameter]).get(secret.parameter)
    if found is None:
        raise Refused(
            f"SSM has no parameter {path}", "", "Nothing was changed", "fab fleet.provision"
        )
    if why := rules.objection(found):
        raise Refused(
            f"{path} was changed by somebody else in the middle of a rotation: {why}",
            "servers or clients may be left with a value that the others do not know",
            "Nothing was changed",
            "docs/runbooks/rotate-a-secret.md",
        )
    return found


def _plan(settings: Settings, name: str, secret: Secret, held: Held) -> str:
    path = settings.parameter(secret.role, secret.parameter)
    begun = "; it was begun, and is gone on with" if held.is_rotating else ""
    users = {"app": "application hosts are restarted one after the other, as by a deploy"}
    who = users.get(secret.users, "nothing is restarted that serves clients")
    return "\n".join(
        [
            f"{settings.prefix}: rotate {name} ({path}){begun}; {who}",
            *(f"  {step}: {rules.WORDS[step]}" for step in rules.ahead(held)),
        ]
    )
