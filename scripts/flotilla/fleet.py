"""A shell on one host, a command on many: what an operator does by hand, over the same SSH."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from flotilla import audit, inventory, selection
from flotilla.aws.console import output
from flotilla.errors import BadOption, FlotillaError, HostFailed, Unreachable
from flotilla.hosts import access
from flotilla.hosts.ssh import Result, Results, Runner
from flotilla.options import at_least
from flotilla.settings import Settings
from flotilla.snapshot import Host, Snapshot
from flotilla.status.once import OnceRunner

CONNECT_SECONDS = 5.0
# Each new host costs a call to EC2 for its console.
NEW_HOSTS = 64

Say = Callable[[str], None]


def shell(settings: Settings, name: str) -> list[str]:
    """The command line that opens a shell on a host. Raises BadOption, Unreachable."""
    snapshot = listed(settings)
    host = selection.one(snapshot, name)
    return ["ssh", "-F", str(access.config_path(settings)), host.name]


def console(settings: Settings, name: str) -> str:
    """What a host has printed on its console. Raises BadOption, Unreachable."""
    snapshot = inventory.load(settings)
    stopped = [host for host in snapshot.hosts if name in {host.name, host.instance_id}]
    host = stopped[0] if stopped else selection.one(snapshot, name)
    return output(settings, host.instance_id)


def listed(settings: Settings) -> Snapshot:
    """The fleet's hosts, with SSH prepared for them. An old list is better than none here."""
    snapshot = inventory.load(settings)
    access.prepare(settings, snapshot, seconds=0, most=NEW_HOSTS)
    return snapshot


@contextmanager
def reached(settings: Settings, on: str) -> Iterator[tuple[Runner, list[Host]]]:
    """The hosts ``on`` means (see ``selection.hosts``), and a way to reach them."""
    snapshot = listed(settings)
    hosts = selection.hosts(snapshot, on)
    with OnceRunner(settings, snapshot, connect_seconds=CONNECT_SECONDS) as runner:
        yield runner, hosts


def run(
    settings: Settings, on: str, command: str, *, sudo: bool, seconds: float, say: Say
) -> Results:
    """Run a shell command on the hosts ``on`` means, all at once; each one's result or error.

    A host ends the command after ``seconds``. Raises BadOption or Refused with nothing run.
    """
    # To timeout(1), 0 is for ever.
    at_least("--seconds", seconds, 1)
    if not command.strip():
        raise BadOption(
            "the command is empty",
            untouched="Nothing was run",
            next=f"fab fleet.run --on {shlex.quote(on)} uptime",
        )
    with reached(settings, on) as (runner, hosts):

        def work(host: Host) -> Result:
            try:
                result = runner.run(host, command, sudo=sudo, seconds=seconds, check=False)
            except FlotillaError as error:
                say(f"{host.name} ... {type(error).__name__}: {_bare(host.name, error)}")
                raise
            say(f"{host.name} ... exit {result.rc} {result.seconds:.1f} s")
            return result

        results = runner.each(hosts, work)
    _record(settings, results, on=on, command=command, sudo=sudo, say=say)
    return results


def failure(results: Results, command: str) -> FlotillaError | None:
    """What to raise: HostFailed where the command failed, Unreachable where a host was silent."""
    failed = [name for name, one in results.results.items() if not one.ok]
    failed += [name for name, one in results.errors.items() if isinstance(one, HostFailed)]
    silent = [name for name, one in results.errors.items() if name not in failed]
    if not failed and not silent:
        return None
    parts = [f"failed on {', '.join(failed)}"] if failed else []
    parts += [f"could not be run on {', '.join(silent)}"] if silent else []
    kind = HostFailed if failed else Unreachable
    done = len(results) - len(failed) - len(silent)
    return kind(
        f"{shlex.quote(command)} {' and '.join(parts)}",
        untouched=f"{done} of {len(results)} hosts did it",
        next="fab fleet.status",
    )


def as_dict(results: Results, command: str) -> dict[str, Any]:
    """{command, hosts: {name: {rc, stdout, stderr, seconds} or {error}}}."""
    answers = {
        name: {"error": one.as_dict()}
        if isinstance(one, FlotillaError)
        else {
            "rc": one.rc,
            "stdout": one.stdout,
            "stderr": one.stderr,
            "seconds": round(one.seconds, 2),
        }
        for name, one in results.items()
    }
    return {"command": command, "hosts": answers}


def grouped(results: Results) -> str:
    """The output for people: hosts that said the same share it."""
    told = sorted(((_told(name, one), name) for name, one in results.items()), key=lambda p: p[0])
    groups = [
        ([name for _, name in members], said)
        for said, members in groupby(told, key=lambda pair: pair[0])
    ]
    order = {name: place for place, name in enumerate(results)}
    groups.sort(key=lambda group: order[group[0][0]])
    return "\n".join(f"== {', '.join(names)}: {said}" for names, said in groups)


def _told(name: str, one: Result | FlotillaError) -> str:
    if isinstance(one, FlotillaError):
        return _bare(name, one)
    lines = [f"exit {one.rc}", one.stdout.rstrip("\n"), one.stderr.rstrip("\n")]
    return "\n".join(line for line in lines if line)


def _bare(name: str, error: FlotillaError) -> str:
    return error.what.removeprefix(f"{name}: ")


def _record(
    settings: Settings, results: Results, *, on: str, command: str, sudo: bool, say: Say
) -> None:
    """Keep who ran what where: a command may change anything, and we cannot know."""
    ended = {
        name: "error" if isinstance(one, FlotillaError) else one.rc for name, one in results.items()
    }
    try:
        audit.record(settings, "fab fleet.run", "done", on=on, ran=command, sudo=sudo, hosts=ended)
    except FlotillaError as error:
        # The hosts must be within reach while AWS is not; the local line is there.
        say(f"the audit bucket does not have it: {error.what}")
