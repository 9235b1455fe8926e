"""Run a fab task and, at one exact moment of a deploy, a shell command.

    python interfere.py [--every] [--delay SECONDS] [--set KEY=VALUE] MOMENT COMMAND TASK [...]

The task is the real one, on real hosts; this only listens at its edges. A moment is a regular
expression over lines such as

    before order app-1 state drain       a command to every load balancer
    after call app-2 switch 20261121-1   the release tool on a host
    before write end                     a line of a deploy's journal
    after write step  work on redis-2    a step of another command, in its journal
    after write done revoke              a line of a failover's journal

The first line that it matches runs the command, whose parent process ($PPID) is the task and $HOST
the line's host. The task waits for it; with --delay it goes on, and the command comes so many
seconds later. With --every each such line runs it. --set has the task read a fleet.yml that differs
in a key: deploy.drain_seconds=3.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import yaml
from fabric.main import program

from flotilla import config, environment
from flotilla.deploy.journal import Journal
from flotilla.deploy.world import Balancers, OverSsh
from flotilla.mysql import failover_journal


def words(*arguments: Any, **_: Any) -> str:
    """The arguments of a command."""
    return " ".join(str(one) for one in arguments)


def entry(event: str, **fields: Any) -> str:
    """A line of a journal: its event, and the host, step or title if it has them."""
    return f"{event} {fields.get('host', '')} {fields.get('step', '')}{fields.get('title', '')}"


def act(event: str, **fields: Any) -> str:
    """A line of a failover's journal: its event, and what is done if it says so."""
    return f"{event} {fields.get('act', '')}"


class Listener:
    """Runs the command, once or at ``every`` such moment."""

    def __init__(
        self, moment: str, command: str, delay: float | None, *, every: bool = False
    ) -> None:
        self._every = every
        self._moment = re.compile(moment)
        self._command = command
        self._delay = delay
        self._lock = threading.Lock()
        self._begun = False

    def heard(self, line: str) -> None:
        """Compare one line; threads of a batch come here at once."""
        with self._lock:
            if (self._begun and not self._every) or not self._moment.fullmatch(line):
                return
            self._begun = True
        # Written first: the command may be the end of this process.
        sys.stderr.write(f"interfered: {line}\n")
        sys.stderr.flush()
        host = [*line.split(), "", "", ""][2]
        if self._delay is None:
            self._run(host)
        else:
            timer = threading.Timer(self._delay, self._run, [host])
            timer.daemon = True
            timer.start()

    def _run(self, host: str) -> None:
        environment = os.environ | {"HOST": host}
        # Standard output is the task's alone: it prints one JSON object there.
        subprocess.run(self._command, shell=True, check=False, stdout=sys.stderr, env=environment)

    def around(self, owner: type, name: str, told: Callable[..., str]) -> None:
        """Tell of every call of a method, before and after it."""
        method = getattr(owner, name)

        @functools.wraps(method)
        def listened(target: Any, *arguments: Any, **named: Any) -> Any:
            line = f"{name} {told(*arguments, **named)}".rstrip()
            self.heard(f"before {line}")
            answer = method(target, *arguments, **named)
            self.heard(f"after {line}")
            return answer

        setattr(owner, name, listened)


def read_with(changes: list[str]) -> None:
    """Have fleet.yml read with other values, by whoever reads it in this process."""
    base = environment.root()
    path = environment.fleet_file(base, environment.current())
    content = yaml.safe_load(path.read_text())
    for change in changes:
        key, _, value = change.partition("=")
        *sections, last = key.split(".")
        functools.reduce(lambda tree, name: tree[name], sections, content["fleet"])[last] = (
            yaml.safe_load(value)
        )
    text = yaml.safe_dump(content).encode()
    config.load = lambda *_, **__: config.parse(
        text, env=environment.current(), shown=path.name, root=base
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--every", action="store_true")
    parser.add_argument("--delay", type=float)
    parser.add_argument("moment")
    parser.add_argument("command")
    parser.add_argument("task", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    listener = Listener(options.moment, options.command, options.delay, every=options.every)
    if options.set:
        read_with(options.set)
    listener.around(Balancers, "order", words)
    listener.around(OverSsh, "call", words)
    listener.around(Journal, "write", entry)
    listener.around(failover_journal.Journal, "write", act)
    program.run(["fab", *options.task])


if __name__ == "__main__":
    main()
