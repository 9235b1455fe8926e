"""An operator's session on three servers of the loopback: what SSH would carry is carried here.

Commands that are given to a host run on this machine, with the host's own mysqlbinlog; systemctl
starts and stops the host's process.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mysqld.trio import Trio

from flotilla.errors import Unreachable
from flotilla.hosts.ssh import Result, Results
from flotilla.mysql.operate_rebuild import FORGET
from flotilla.mysql.session import Session
from flotilla.snapshot import Host, Snapshot


class Output:
    """What a command prints, read as from an SSH channel."""

    def __init__(self, command: str, path: str) -> None:
        self._process = subprocess.Popen(
            ["bash", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=os.environ | {"PATH": f"{path}:{os.environ['PATH']}"},
        )

    def settimeout(self, seconds: float | None) -> None:
        """It is on this machine."""

    def recv(self, size: int) -> bytes:
        assert self._process.stdout is not None
        return bytes(self._process.stdout.read(size))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Hands:
    """What a session's Runner does, for ``trio``. ``said`` is what a survey finds, by host.

    ``on_stop`` may be set to something that happens while a host is away.
    """

    def __init__(self, trio: Trio, folder: Path) -> None:
        self._trio = trio
        self._path = folder / "bin"
        self.said: dict[str, str] = {}
        self.unreachable: set[str] = set()
        self.did: list[str] = []
        binaries = next(iter(trio.servers.values())).binaries
        self._path.mkdir(parents=True)
        program = self._path / "mysqlbinlog"
        argv = shlex.join(binaries.argv("usr/bin/mysqlbinlog"))
        program.write_text(f'#!/bin/sh\nexec {argv} "$@"\n')
        program.chmod(0o755)

    def stream(self, host: Host, command: str, *, sudo: bool = False) -> Any:
        assert sudo
        if host.name in self.unreachable:
            raise Unreachable(f"{host.name}: no answer while connecting")
        if "mysqld.sock" in command:
            return self._socket(host.name)
        return Output(command, str(self._path))

    def run(self, host: Host | str, command: str, **_: Any) -> Result:
        name = host if isinstance(host, str) else host.name
        verb = command.split()[1] if command.startswith("systemctl") else ""
        self.did.append(f"{name}: {verb or command.partition(';')[0]}")
        if verb == "stop":
            self._trio[name].stop()
        elif verb == "start" and not self._trio[name].is_running:
            self._trio.start([name])
        elif command == FORGET:
            (self._trio[name].data / "auto.cnf").unlink(missing_ok=True)
        return Result(name, self.said.get(name, ""), "", 0, 0.0)

    def run_on(self, hosts: Iterable[Host], command: str, **options: Any) -> Results:
        return Results({host.name: self.run(host, command, **options) for host in hosts})

    def _socket(self, name: str) -> Any:
        try:
            return self._trio[name].stream()
        except FileNotFoundError as error:
            # As socat would say it.
            raise ConnectionRefusedError("No such file or directory") from error


@contextmanager
def operator(trio: Trio, folder: Path) -> Iterator[tuple[Session, Hands]]:
    """A session on all members, and the hands it works with."""
    hands = Hands(trio, folder)
    hosts = tuple(
        Host(
            name=server.name,
            instance_id=server.instance_id,
            role="mysql",
            number=server.number,
            zone="eu-central-1a",
            state="running",
            private_ip=server.address,
            public_ip=None,
            image_id="ami-1",
            type="t3.medium",
            launched_at=datetime.now(UTC),
            tags={},
            asg=None,
        )
        for server in trio.servers.values()
    )
    snapshot = Snapshot(datetime.now(UTC).timestamp(), hosts)
    with trio.cluster() as cluster:
        yield Session(trio.settings, snapshot, hands, cluster), hands  # type: ignore[arg-type]
