"""Let people in for some hours, take that back, and say who was there; each plan, confirm, act,
verify, record.

A grant is recorded before its certificate exists, a revocation before hosts are told: what was cut
off half-way is on record, and the same command goes on.
"""

from __future__ import annotations

import json
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from flotilla import inventory
from flotilla.access.authority import Authority, publish
from flotilla.access.kit import Kit
from flotilla.aws import grants
from flotilla.errors import BadOption, FlotillaError, HostFailed, Refused, Unreachable
from flotilla.hosts import certificates
from flotilla.hosts.access import prepare
from flotilla.hosts.ssh import Result, Results, Runner
from flotilla.lock import Lock
from flotilla.mysql.recorded import Confirmed, Said, recorded
from flotilla.rules import access as rules
from flotilla.settings import Settings
from flotilla.snapshot import Host
from flotilla.who import holder

TOOL = "/usr/local/sbin/flotilla-access"
# One at a time, so that nobody publishes what another one has just added to.
LOCK = "access"
TELL_SECONDS = 20.0
KEY_BYTES = 16 << 10

Clock = Callable[[], float]


def grant(
    settings: Settings,
    name: str,
    key_file: str | Path,
    *,
    hours: float,
    principal: str,
    confirmed: Confirmed,
    said: Said,
    clock: Clock = time.time,
) -> dict[str, Any]:
    """Sign somebody's public key: {name, serial, principal, fingerprint, until, folder}.

    ``folder`` holds the certificate and all that OpenSSH needs to use it. Raises BadOption for what
    cannot be granted, Refused with nothing changed for a key that ssh-keygen does not take.
    """
    key = _key(name, key_file, hours, principal)
    mark = certificates.fingerprint(key)
    confirmed(
        f"{settings.prefix}: {name} may log in as {principal} on every host for {hours} h,"
        f" with the key {mark}"
    )
    command = "fab access.grant"
    with Lock(settings, LOCK, reason=command) as lock, recorded(settings, command, said) as steps:
        with steps.step("read the CAs' keys"):
            authority = Authority(settings)
        now = int(clock())
        make = partial(
            rules.Grant,
            name=name,
            principal=principal,
            fingerprint=mark,
            kind=key.split()[0],
            begins=now - rules.EARLY_SECONDS,
            ends=now + round(hours * 3600),
            by=holder(),
        )
        lock.check()
        with steps.step("record the grant"):
            one = grants.grant(settings, make)
        with steps.step("sign"):
            certificate = authority.person(one, key)
        with steps.step("tell hosts whom to trust"):
            publish(settings, authority)
        snapshot = inventory.load(settings, max_age_seconds=inventory.max_age(settings))
        unknown = prepare(settings, snapshot)
        for host in unknown:
            said(
                f"{host.name}: its host key is not known yet; a certificate of its own comes later"
            )
        folder = Kit(settings, snapshot, authority.host).write(name, certificate)
        steps.result = {
            "name": name,
            "serial": one.serial,
            "principal": principal,
            "fingerprint": mark,
            "until": _utc(one.ends),
            "folder": str(folder),
        }
        return steps.result


def revoke(
    settings: Settings, name: str, *, confirmed: Confirmed, said: Said, clock: Clock = time.time
) -> dict[str, Any]:
    """Take back all that somebody was granted: {name, revoked, generation, hosts}.

    ``hosts`` is by name: null for one that refuses the certificates now, else why that is not
    known; such a host asks by itself every few seconds. Raises Refused where nobody of that name
    was granted anything that lasts, HostFailed naming hosts that did not confirm it.
    """

    def now() -> float:
        return clock() - rules.LATE_SECONDS

    known, gone = grants.granted(settings), grants.revoked(settings)
    mine = [one for one in known if one.name == name]
    lasting = [one for one in mine if now() < one.ends]
    if not lasting:
        raise Refused(
            f"{name!r} has no certificate that could be used: "
            + ("all have ended" if mine else "none was ever granted"),
            untouched="Nothing was changed",
            next="fab access.list",
        )
    valid = rules.to_revoke(known, name, gone, now())
    confirmed(
        f"{settings.prefix}: {name} may not log in any more: "
        + (_serials(valid) if valid else "revoked already; hosts are told again")
        + "; sessions that are open stay open"
    )
    command = "fab access.revoke"
    with Lock(settings, LOCK, reason=command) as lock, recorded(settings, command, said) as steps:
        with steps.step("read the CAs' keys"):
            authority = Authority(settings)
        lock.check()
        with steps.step("record what is revoked"):
            # Once more: between the plan and the answer to it somebody may have let them in again.
            known, gone = grants.granted(settings), grants.revoked(settings)
            valid = rules.to_revoke(known, name, gone, now())
            for one in valid:
                grants.revoke(settings, one.serial, holder())
        with steps.step("tell hosts whom not to trust"):
            publish(settings, authority)
        body, _ = grants.published(settings)
        with steps.step("ask hosts whether they know"):
            told = tell(settings, body)
        steps.result = {
            "name": name,
            "revoked": [one.serial for one in valid],
            "generation": json.loads(body)["generation"],
            "hosts": told,
        }
        silent = sorted(host for host, why in told.items() if why)
        if silent:
            raise HostFailed(
                f"{name} is revoked, and {', '.join(silent)} did not confirm it: {told[silent[0]]}",
                "a host that cannot be told asks S3 every 5 s by itself",
                f"{len(told) - len(silent)} of {len(told)} hosts refuse the certificate",
                f"fab access.revoke {name}",
            )
        return steps.result


def tell(settings: Settings, body: bytes) -> dict[str, str | None]:
    """Have every host apply a document now; by name, why that is not known to be done, or None."""
    generation = json.loads(body)["generation"]
    with _reached(settings) as (runner, hosts, _):

        def work(host: Host) -> Result:
            # The zip is in the image; a host that was made without it says so.
            return runner.run(
                host,
                f"{TOOL} apply --tier {shlex.quote(host.role)}",
                sudo=True,
                stdin=body.decode(),
                seconds=TELL_SECONDS,
            )

        return {name: _why(one, generation) for name, one in runner.each(hosts, work).items()}


def _why(answer: Result | FlotillaError, generation: int) -> str | None:
    if isinstance(answer, FlotillaError):
        return answer.what
    try:
        there = int(json.loads(answer.stdout)["generation"])
    except (ValueError, KeyError, TypeError):
        return f"it answered {answer.stdout[:60]!r}"
    return None if there >= generation else f"it has generation {there}"


def listed(settings: Settings, *, every: bool, clock: Clock = time.time) -> list[dict[str, Any]]:
    """Grants, the newest first: {serial, name, principal, state, until, fingerprint, by}.

    Without ``every`` only those that are valid.
    """
    gone, now = grants.revoked(settings), clock()
    rows = [
        {
            "serial": one.serial,
            "name": one.name,
            "principal": one.principal,
            "state": rules.state(one, gone, now),
            "until": _utc(one.ends),
            "fingerprint": one.fingerprint,
            "by": one.by,
        }
        for one in reversed(grants.granted(settings))
    ]
    return [row for row in rows if every or row["state"] == "valid"]


def audited(settings: Settings, *, hours: float, clock: Clock = time.time) -> dict[str, Any]:
    """Who logged in where: {logins, refused, counted, problems, silent}, by every host's own log.

    A login is {at, host, account, from, name, serial, fingerprint}; ``name`` is "" for a key that
    is no certificate. ``counted`` is what others than sshd refused, {host, what, times}: packets,
    connections without TLS. ``problems`` are logins that no grant explains. ``silent`` are hosts
    that do not tell of all these hours, with the reason: stopped, without an answer, or with a
    journal that begins later. Hosts that are no more are not looked for. Raises Unreachable when
    none answers.
    """
    since = clock() - hours * 3600
    known = {one.serial: one for one in grants.granted(settings)}
    with _reached(settings) as (runner, hosts, away):
        answers = _logs(runner, hosts, since)
    silent = {host.name: f"it is {host.state}" for host in away}
    silent |= dict(_not_whole(hosts, answers, since))
    logins: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    problems: list[str] = []
    counted: Counter[tuple[str, str]] = Counter()
    for host, answer in answers.results.items():
        for at, unit, line in _entries(answer.stdout):
            if unit in rules.TELLING and unit != rules.SSHD:
                what, times = rules.refused(line) or ("", 0)
                counted[host, what] += times
                continue
            seen = rules.login(line)
            if seen is None:
                if rules.is_login(line):
                    problems.append(f"{host} at {_utc(at)}: no login of ours looks so: {line}")
                elif rules.is_refusal(line):
                    refused.append({"at": _utc(at), "host": host, "line": line})
                continue
            logins.append(
                {
                    "at": _utc(at),
                    "host": host,
                    "account": seen.account,
                    "from": seen.address,
                    "name": seen.name,
                    "serial": seen.serial,
                    "fingerprint": seen.fingerprint,
                }
            )
            if why := rules.login_objection(seen, known):
                problems.append(f"{host} at {_utc(at)}, from {seen.address}: {why}")
    logins.sort(key=lambda one: str(one["at"]))
    refused.sort(key=lambda one: str(one["at"]))
    return {
        "logins": logins,
        "refused": refused,
        "counted": [
            {"host": host, "what": what, "times": times}
            for (host, what), times in sorted(counted.items())
            if times
        ],
        "problems": problems,
        "silent": silent,
    }


def _logs(runner: Runner, hosts: Sequence[Host], since: float) -> Results:
    """Of each host the first entry that its journal has, then what these units wrote."""
    journal = "journalctl --quiet --no-pager -o json --output-fields"
    units = " ".join(f"-u {unit}" for unit in rules.TELLING)
    command = (
        f"{journal}=PRIORITY | head -n 1;"
        f" {journal}=MESSAGE,_SYSTEMD_UNIT {units} --since=@{round(since)}"
    )
    answers = runner.run_on(hosts, command, sudo=True, seconds=60)
    if hosts and len(answers.errors) == len(hosts):
        why = next(iter(answers.errors.values())).what
        raise Unreachable(f"no host tells who logged in: {why}")
    return answers


def _not_whole(hosts: Iterable[Host], answers: Results, since: float) -> Iterator[tuple[str, str]]:
    """The hosts that do not tell of all from ``since`` on, with the reason."""
    for host in hosts:
        answer = answers[host.name]
        if isinstance(answer, FlotillaError):
            yield host.name, answer.what
            continue
        begins = _begins(answer.stdout)
        if why := rules.journal_objection(begins, host.launched_at.timestamp(), since):
            yield host.name, why


def _begins(text: str) -> float | None:
    """When the first entry was written; None where there is none."""
    try:
        return int(json.loads(text.partition("\n")[0])["__REALTIME_TIMESTAMP"]) / 1e6
    except (ValueError, KeyError, TypeError):
        return None


def _entries(text: str) -> Iterable[tuple[float, str, str]]:
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            unit = str(entry.get("_SYSTEMD_UNIT", ""))
            yield int(entry["__REALTIME_TIMESTAMP"]) / 1e6, unit, str(entry["MESSAGE"])
        except (ValueError, KeyError):
            continue


@contextmanager
def _reached(settings: Settings) -> Iterator[tuple[Runner, list[Host], list[Host]]]:
    """A runner, every host that runs, and the others, as EC2 has them now."""
    snapshot = inventory.load(settings, max_age_seconds=inventory.max_age(settings), refresh=True)
    prepare(settings, snapshot)
    with Runner(settings, snapshot) as runner:
        active = [host for host in snapshot.hosts if host.is_active]
        yield runner, active, [host for host in snapshot.hosts if not host.is_active]


def _key(name: str, file: str | Path, hours: float, principal: str) -> str:
    why = rules.objection(name, hours, principal)
    if why is None:
        try:
            with Path(file).expanduser().open("rb") as opened:
                text = opened.read(KEY_BYTES).decode("utf-8", "replace")
        # RuntimeError: the home of an account that there is not.
        except (OSError, RuntimeError) as error:
            raise BadOption(
                f"--key {file}: {getattr(error, 'strerror', error)}",
                untouched="Nothing was changed",
                next="ssh-keygen -t ed25519-sk -O verify-required",
            ) from error
        why = rules.key_objection(text)
        if why is None:
            key = next(x for x in text.splitlines() if x.strip() and not x.startswith("#")).strip()
            why = rules.size_objection(key.split()[0], certificates.bits(key))
            if why is None:
                return key
        why = f"--key {file}: {why}"
    raise BadOption(why, untouched="Nothing was changed", next="fab --help access.grant")


def _serials(found: list[rules.Grant]) -> str:
    return ", ".join(f"serial {one.serial} (until {_utc(one.ends)})" for one in found)


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
