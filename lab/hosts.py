"""The real hosts: systemd machines in containers, one per instance, each in a network namespace of
its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path

from lab import network, seed
from lab.errors import HostNotRunning, LabError
from lab.podman import Podman
from lab.watch import Watch

# Creating and booting is all CPU: more at once than this only makes every one of them slower.
_BOOTS_AT_ONCE = 4
_UMOUNT_SECONDS = 10.0
_SHUTDOWN_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Spec:
    """What a host is to be."""

    instance_id: str
    image: str  # podman reference
    bridge: str
    cidr: IPv4Network  # of the VPC
    address: str
    seed: seed.Seed


@dataclass(slots=True)
class _Record:
    spec: Spec
    netns: str
    pid: int = 0
    wanted_down: bool = False  # the coming exit was asked for
    lock: threading.RLock = field(default_factory=threading.RLock)


class HostSet:
    """All hosts of the lab. Implements `lab.ports.Hosts`; every method may be called from any
    thread.

    `on_exit(instance_id, exit_code)` is called when a host ends that nobody asked to end.
    """

    def __init__(
        self, podman: Podman, directory: Path, on_exit: Callable[[str, int], None]
    ) -> None:
        self._podman = podman
        self._directory = directory
        self._on_exit = on_exit
        self._records: dict[str, _Record] = {}
        self._boots = threading.BoundedSemaphore(_BOOTS_AT_ONCE)
        self._watch = Watch(self._exited)

    # Life of a host

    def prepare(self, spec: Spec) -> str:
        """Make the host's network namespace; what must be in place before boot can be loaded into
        it then.
        """
        netns = network.add_namespace(spec.instance_id, spec.bridge, spec.cidr, spec.address)
        self._records[spec.instance_id] = _Record(spec, netns)
        return netns

    def boot(self, instance_id: str) -> None:
        """Create the prepared host from its image and boot it for the first time."""
        record = self._records[instance_id]
        with record.lock, self._boots:
            home = self._home(instance_id)
            home.mkdir(parents=True, exist_ok=True)
            disk = self._podman.create(
                name=self._name(instance_id),
                image=record.spec.image,
                netns=record.netns,
                hostname=record.spec.seed.hostname,
                console=self.console(instance_id),
                pidfile=home / "pid",
            )
            seed.plant(record.spec.seed, disk)
            self._start(record)

    def start(self, instance_id: str) -> None:
        """Boot a stopped host from its own disk."""
        record = self._records[instance_id]
        with record.lock, self._boots:
            self._start(record)

    def stop(self, instance_id: str, *, force: bool = False) -> None:
        """Shut the host down; with `force`, take its power away."""
        record = self._records[instance_id]
        with record.lock:
            record.wanted_down = True
            if record.pid:
                self.thaw(instance_id)
                if force:
                    self._kill(record)
                try:
                    self._podman.stop(self._name(instance_id), 1 if force else _SHUTDOWN_SECONDS)
                except LabError:
                    self._kill(record)
            record.pid = 0

    def remove(self, instance_id: str) -> None:
        """Delete the host, its disk and its network; idempotent."""
        record = self._records.get(instance_id)
        if record is None:
            return
        with record.lock:
            record.wanted_down = True
            self._podman.remove(self._name(instance_id))
            network.remove_namespace(instance_id)
            shutil.rmtree(self._home(instance_id), ignore_errors=True)
            self._records.pop(instance_id, None)

    def commit(self, instance_id: str, reference: str) -> None:
        """Make an image of the host's disk, as it is now."""
        with self._records[instance_id].lock:
            self._podman.commit(self._name(instance_id), reference)

    def ended(self, instance_id: str) -> None:
        """Take note that the host is down for good until `start`."""
        record = self._records[instance_id]
        record.pid = 0

    # What the other parts may ask (lab.ports.Hosts)

    def netns(self, instance_id: str) -> str | None:
        """See `lab.ports.Hosts`."""
        record = self._records.get(instance_id)
        return record.netns if record else None

    def pid(self, instance_id: str) -> int | None:
        """See `lab.ports.Hosts`."""
        record = self._records.get(instance_id)
        return record.pid or None if record else None

    def running(self) -> list[str]:
        """See `lab.ports.Hosts`."""
        return [instance_id for instance_id, record in list(self._records.items()) if record.pid]

    def by_source_address(self, address: str) -> str | None:
        """See `lab.ports.Hosts`."""
        found = (i for i, record in list(self._records.items()) if record.spec.address == address)
        return next(found, None)

    def exec(
        self,
        instance_id: str,
        argv: Sequence[str],
        *,
        stdin: str | None = None,
        timeout: float = 30.0,
    ) -> subprocess.CompletedProcess[str]:
        """See `lab.ports.Hosts`."""
        pid = self._running_pid(instance_id)
        return _captured(
            ["nsenter", "-t", str(pid), "-m", "-u", "-i", "-n", "-p", "-C", "--", *argv],
            stdin,
            timeout,
        )

    def in_netns(
        self,
        instance_id: str,
        argv: Sequence[str],
        *,
        stdin: str | None = None,
        timeout: float = 30.0,
    ) -> subprocess.CompletedProcess[str]:
        """See `lab.ports.Hosts`."""
        netns = self.netns(instance_id)
        if netns is None:
            raise HostNotRunning(f"{instance_id} has no network")
        return _captured(["nsenter", f"--net=/run/netns/{netns}", "--", *argv], stdin, timeout)

    def crash(self, instance_id: str) -> None:
        """See `lab.ports.Hosts`."""
        self._running_pid(instance_id)
        self._kill(self._records[instance_id])

    def freeze(self, instance_id: str) -> None:
        """See `lab.ports.Hosts`."""
        self._freezer(self._running_pid(instance_id)).write_text("1")

    def thaw(self, instance_id: str) -> None:
        """See `lab.ports.Hosts`."""
        pid = self.pid(instance_id)
        if pid and (freezer := self._freezer(pid)).exists():
            freezer.write_text("0")

    def console(self, instance_id: str) -> Path:
        """The file with everything the host printed on its console."""
        return self._home(instance_id) / "console.log"

    def read(self, instance_id: str, path: str) -> bytes:
        """A file of a running host. Raises `OSError`, `HostNotRunning`."""
        return Path(f"/proc/{self._running_pid(instance_id)}/root", path.lstrip("/")).read_bytes()

    def close(self) -> None:
        """Stop watching; hosts go on."""
        self._watch.close()

    def _name(self, instance_id: str) -> str:
        return network.namespace_name(instance_id)

    def _home(self, instance_id: str) -> Path:
        return self._directory / instance_id

    def _running_pid(self, instance_id: str) -> int:
        pid = self.pid(instance_id)
        if not pid:
            raise HostNotRunning(f"{instance_id} does not run")
        return pid

    def _start(self, record: _Record) -> None:
        instance_id = record.spec.instance_id
        self._podman.start(self._name(instance_id))
        record.wanted_down = False
        record.pid = int((self._home(instance_id) / "pid").read_text())
        # podman mounts a file of its own there, and a mount cannot be replaced by rename as
        # hostnamectl does. Below it is the host's own file, written by the seed. By now systemd may
        # have taken the name from podman's, and a renamed host would have its first name again.
        # Lazily: a service that starts in a mount namespace of its own may be reading the file.
        own_name = "umount --lazy /etc/hostname && hostname --file /etc/hostname"
        done = _captured(
            ["nsenter", "-t", str(record.pid), "-m", "-p", "-u", "--", "sh", "-c", own_name],
            None,
            _UMOUNT_SECONDS,
        )
        self._watch.add(instance_id, record.pid)
        # One that has ended by now is the watch's to tell.
        if done.returncode and Path(f"/proc/{record.pid}").exists():
            raise LabError(f"{instance_id} has podman's /etc/hostname: {done.stderr.strip()}")

    def _kill(self, record: _Record) -> None:
        if record.pid:
            try:
                os.kill(
                    record.pid, signal.SIGKILL
                )  # PID 1 of a namespace takes every process in it along
            except ProcessLookupError:
                return

    @staticmethod
    def _freezer(pid: int) -> Path:
        """The switch that suspends a whole host: of the container's own group, above the ones
        systemd makes in it.
        """
        inside = Path(f"/proc/{pid}/cgroup").read_text().rpartition("::")[2].strip()
        parts = Path(inside).parts
        top = next((i for i, part in enumerate(parts) if part.startswith("libpod-")), None)
        if top is None:
            raise LabError(f"process {pid} is in no host's group of processes: {inside}")
        return Path("/sys/fs/cgroup", *parts[1 : top + 1], "cgroup.freeze")

    def _exited(self, instance_id: str, pid: int) -> None:
        record = self._records.get(instance_id)
        if record is None or record.pid != pid or record.wanted_down:
            return
        record.pid = 0
        self._on_exit(instance_id, self._podman.exit_code(self._name(instance_id)))


def _captured(
    argv: Sequence[str], stdin: str | None, timeout: float
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(argv),
        input=stdin or "",
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )
