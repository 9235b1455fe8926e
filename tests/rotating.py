"""A rotation under a client that logs in all the time, whatever kind of server it logs in to."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from flotilla import secrets as capability
from flotilla.hosts.ssh import Result
from flotilla.rules.secrets import ROTATED
from flotilla.secrets import hosts as edge
from flotilla.snapshot import Host, Snapshot


class Killed(BaseException):
    """Nothing handles it, as nothing handles a SIGKILL."""


class Application:
    """A client that was started with a password, and logs in anew whenever it asks something."""

    def __init__(self, environment: Path, password: str) -> None:
        self.environment = environment
        self.logins = 0
        self.failures: list[str] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self.give(password)

    def ask(self) -> None:
        """Log in and ask; ``logins`` and ``failures`` are told."""
        raise NotImplementedError

    def give(self, password: str) -> None:
        """What the playbook writes."""
        self.environment.write_text(f"PASSWORD={password}\n")

    def start(self) -> None:
        """Or start again, with what the environment says by now."""
        self.password = self.environment.read_text().strip().partition("=")[2]

    @property
    def is_stale(self) -> bool:
        return self.password not in self.environment.read_text()

    def __enter__(self) -> Self:
        self.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stopped.wait(0.01):
            self.ask()


@dataclass(frozen=True)
class Rotated(edge.Fleet):
    """The fleet's own ways, with what a deploy does to the application's host, which is here."""

    hosts: tuple[Host, ...]
    app: Application

    def _stale(self) -> list[str]:
        return ["app-1"] if self.app.is_stale else []

    def _restart_application(self) -> None:
        self.app.start()

    @contextmanager
    def _runner(self) -> Iterator[Any]:
        yield self, Snapshot(time.time(), self.hosts)

    def run(self, host: Host, command: str, **options: Any) -> Result:
        """By this machine's shell."""
        command = command.replace("/etc/app/environment", str(self.app.environment))
        done = subprocess.run(
            ["sh", "-c", command],
            input=options["stdin"],
            capture_output=True,
            text=True,
            check=False,
        )
        return Result(host.name, done.stdout, done.stderr, done.returncode, 0.0)


def rotate(made: Rotated, name: str, **options: Any) -> dict[str, Any]:
    """As an operator does."""
    return capability.rotate(
        made.settings,
        name,
        confirmed=print,
        said=print,
        hosts=lambda *_: replace(made, secret=ROTATED[name], name=name),
        **options,
    )


def words(made: Rotated, name: str, *values: str) -> list[list[str]]:
    """What every server says to these passwords of one account."""
    return [list(said) for said in replace(made, secret=ROTATED[name]).logins(values).values()]
