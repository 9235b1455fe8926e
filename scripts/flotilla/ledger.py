"""A ledger of writes kept by clients: on application hosts, each through its own HAProxy.

What the writers were told is compared with what is there afterwards: that, and nothing a server
says about itself, is how long an outage was and whether anything was lost. Writers go on while
nobody can reach their host; what they saw is fetched afterwards. An order says what kind of store
is written to; this part is the same for every kind.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import Self

from flotilla.agent.bundle import bundle
from flotilla.agent.ledger import ANSWER_SECONDS, Order
from flotilla.errors import FlotillaError, HostFailed
from flotilla.hosts.ssh import Runner
from flotilla.rules.ledger import Entry, Fate
from flotilla.snapshot import Host

START_SECONDS = 20.0
# Writers may be waiting for an answer, twice: to a connection, then to a statement.
END_SECONDS = 2 * ANSWER_SECONDS + 2
FETCH_SECONDS = 60.0
# Writers go on when whoever started them was killed, for that is when clients matter; for so long.
LIMIT_SECONDS = 120.0

# Runs a command on a host with this input, within so many seconds; what it printed.
Execute = Callable[[str, str, float], str]

# Everything it needs comes through its input: nothing is installed and nothing is left behind. The
# password comes that way as well, never in an argument. /var/tmp, not /tmp: entries outlive a boot.
_LOADER = """\
import base64, os, runpy, sys, tempfile
folder = tempfile.mkdtemp(prefix='flotilla-ledger-', dir='/var/tmp')
path = os.path.join(folder, 'ledger.zip')
with open(path, 'wb') as file:
    file.write(base64.b64decode(sys.stdin.readline()))
sys.path.insert(0, path)
sys.argv = ['ledger', folder]
print(folder, flush=True)
runpy.run_module('{program}', run_name='__main__')
"""
# A process that ended without a word (its host was stopped) leaves what it had written until then.
_FETCH = """\
cd {folder} || exit 1
touch stop
n=0
while [ ! -e done ] && kill -0 "$(cat pid)" 2>/dev/null && [ $n -lt {tries} ]; do
  n=$((n+1)); sleep 0.1
done
cat entries
"""


def over_ssh(runner: Runner, host: Host) -> Execute:
    """Run commands on a host as the operator's user there, not as root."""
    return lambda command, stdin, seconds: (
        runner.run(host, command, stdin=stdin, seconds=seconds).stdout
    )


def new_run() -> str:
    """A name for the rows of one run that nobody else has."""
    return uuid.uuid4().hex[:12]


class Ledger:
    """Writers at work on one host, from ``with`` until ``stop``."""

    def __init__(self, host: str, execute: Execute, wanted: Order) -> None:
        self.host = host
        self._execute = execute
        self._order = wanted
        self._folder = ""
        self._entries: list[Entry] | None = None

    def __enter__(self) -> Self:
        """Start the writers; returns when they write. Raises HostFailed, Unreachable."""
        program, carry = self._order.program, self._order.carry
        package = base64.b64encode(bundle(program, carry=carry)).decode()
        stdin = f"{package}\n{json.dumps(asdict(self._order))}\n"
        loader = _quoted(_LOADER.format(program=program))
        said = self._execute(f"exec python3 -c {loader}", stdin, START_SECONDS)
        self._folder, *rest = said.splitlines() or [""]
        if rest != ["ready"]:
            raise HostFailed(
                f"{self.host}: the ledger's writers did not start: {said.strip() or 'no output'}",
                "without them nobody sees what a client sees",
                next="fab fleet.status",
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Whom this does not reach ends by itself when its time is over.
        if self._folder:
            with suppress(FlotillaError):
                self._execute(f"touch {self._folder}/stop; rm -rf {self._folder}", "", END_SECONDS)

    def stop(self) -> list[Entry]:
        """End the writing; every try of every writer. May be called again.

        Raises Unreachable; the entries are kept on the host and it may be tried again.
        """
        if self._entries is None:
            command = _FETCH.format(folder=self._folder, tries=int(10 * END_SECONDS))
            text = self._execute(command, "", END_SECONDS + FETCH_SECONDS)
            self._entries = list(entries(text))
        return self._entries


def entries(text: str) -> Iterable[Entry]:
    """The entries of a file of them. A last line that was cut off is none."""
    for line in text.splitlines():
        with suppress(ValueError):
            name, started, ended, fate, error, server = json.loads(line)
            yield Entry(name, started, ended, Fate(fate), error, server)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\"'\"'") + "'"
