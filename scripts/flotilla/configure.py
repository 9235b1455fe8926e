"""Make every host what its roles say: playbooks/site.yml as an operator runs it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from flotilla import ansible, audit, inventory, selection
from flotilla.aws.lease import Held
from flotilla.errors import FlotillaError
from flotilla.hosts import access
from flotilla.lock import Lock
from flotilla.rules.progress import Progress
from flotilla.settings import Settings
from flotilla.snapshot import Host

COMMAND = "fab fleet.configure"
PLAYBOOK = "site"
# The same lock as a deploy's and provision's: none may move hosts under the other.
LOCK = "deploy"

Say = Callable[[str], None]


def configure(
    settings: Settings,
    *,
    say: Say,
    check: bool = False,
    limit: str | None = None,
    take_over: bool = False,
    confirmed: Callable[[Sequence[Host]], None] = lambda _: None,
) -> ansible.Run:
    """Run the playbook on every host, or on those ``limit`` means (see ``selection.hosts``).

    ``confirmed`` is given the hosts and raises to stop; it is not asked for a ``check``, which
    changes nothing. ``say`` gets a line for each play, and for each task that changed something or
    failed; all of Ansible's output goes to ``var/<env>/log/``. Raises what ``ansible.failure``
    makes of the ending, Refused with nothing changed when somebody else holds the lock.
    """
    # Asked of EC2 now: a host that was started seconds ago would be left out, without a word.
    snapshot = inventory.load(settings, max_age_seconds=inventory.max_age(settings), refresh=True)
    hosts = selection.hosts(snapshot, selection.ALL if limit is None else limit)
    unknown = access.prepare(settings, snapshot)
    for host in unknown:
        say(f"{host.name}: its host key is not known yet; it will not be connected to")
    playbook = ansible.Playbook(PLAYBOOK, limit=_limit(hosts) if limit else None, check=check)
    if check:
        return _run(settings, playbook, say)
    confirmed(hosts)
    with _locked(settings, take_over=take_over):
        return _recorded(settings, playbook, limit, say)


def under_lock(settings: Settings, hosts: Sequence[Host], *, say: Say) -> ansible.Run:
    """The playbook on these hosts, for a run that holds the lock; raises as ``configure`` does."""
    access.prepare(settings, inventory.load(settings))
    return _run(settings, ansible.Playbook(PLAYBOOK, limit=_limit(hosts)), say)


def hosts_only(settings: Settings, role: str, *, say: Say) -> ansible.Run:
    """The roles of one tier's hosts, and nothing that looks at its cluster: that one is not whole.

    Raises as ``configure`` does.
    """
    access.prepare(settings, inventory.load(settings))
    with _locked(settings, take_over=False):
        return _run(settings, ansible.Playbook(PLAYBOOK, limit=role), say)


def described(settings: Settings, hosts: Sequence[Host]) -> str:
    """The plan for people."""
    roles: dict[str, list[str]] = {}
    for host in hosts:
        roles.setdefault(host.role, []).append(host.name)
    lines = [f"  {role:8} {', '.join(names)}" for role, names in roles.items()]
    head = f"Configure {len(hosts)} hosts of {settings.prefix} with playbooks/{PLAYBOOK}.yml:"
    return "\n".join([head, *lines, "  --check shows what would change"])


def as_dict(run: ansible.Run, *, check: bool) -> dict[str, Any]:
    """{changed, check, seconds, hosts: {name: {ok, changed, unreachable, failed}}}."""
    counts = ("ok", "changed", "unreachable", "failed")
    return {
        "changed": run.changed,
        "check": check,
        "seconds": round(run.seconds, 1),
        "hosts": {
            host: {name: getattr(line, name) for name in counts}
            for host, line in sorted(run.recap.items())
        },
    }


def _limit(hosts: Sequence[Host]) -> str:
    """Ansible's own --limit; the plays that read secrets and the record are on localhost."""
    return ",".join([*(host.name for host in hosts), "localhost"])


def _run(settings: Settings, playbook: ansible.Playbook, say: Say) -> ansible.Run:
    progress = Progress()
    path = log_path(settings, datetime.now(UTC))
    with _opened(path) as log:

        def told(line: str) -> None:
            log.write(line + "\n")
            for news in progress.feed(line, time.monotonic()):
                say(news)

        run = ansible.run(settings, playbook, say=told)
    if run.code:
        for line in progress.failures:
            say(line)
    say(f"All output: {path.relative_to(settings.root)}")
    if error := ansible.failure(run, env=settings.env):
        raise error
    return run


def log_path(settings: Settings, now: datetime) -> Path:
    """Where the output of a run begun at ``now`` is kept."""
    return settings.scratch / "log" / f"configure-{now:%Y%m%dT%H%M%S}.log"


def _opened(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Tasks with secrets do not print them; the file is the operator's own all the same.
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8")  # noqa: PTH123


@contextmanager
def _locked(settings: Settings, *, take_over: bool) -> Iterator[Lock]:
    with ExitStack() as held:
        try:
            lock = held.enter_context(Lock(settings, LOCK, reason=COMMAND, take_over=take_over))
        except Held as error:
            error.next = f"wait for it, or, when that run is dead: {COMMAND} --take-over"
            raise
        yield lock


def _recorded(
    settings: Settings, playbook: ansible.Playbook, limit: str | None, say: Say
) -> ansible.Run:
    try:
        run = _run(settings, playbook, say)
    except (FlotillaError, KeyboardInterrupt) as error:
        what = error.what if isinstance(error, FlotillaError) else "interrupted"
        audit.record(settings, COMMAND, "failed", error=what, limit=limit)
        raise
    seconds = round(run.seconds, 1)
    audit.record(settings, COMMAND, "done", limit=limit, changed=run.changed, seconds=seconds)
    return run
