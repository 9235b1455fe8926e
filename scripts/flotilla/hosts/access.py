"""What OpenSSH needs to reach the fleet: ``var/<env>/ssh_config`` and ``known_hosts``."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from flotilla.aws import console
from flotilla.errors import Refused
from flotilla.files import replace
from flotilla.hosts import keys as operator_key
from flotilla.hosts import known_hosts
from flotilla.settings import Settings
from flotilla.snapshot import Host, Snapshot

_HEADER = """\
# How to reach {prefix}; written by flotilla from its list of hosts, and again when that changes.
# Use: ssh -F {path} <host>
"""

# A dead bastion is noticed after 15 s, on connections that OpenSSH keeps open as well.
_COMMON = """\
Host *
  User {user}
  IdentityFile "{key}"
  IdentitiesOnly yes
  UserKnownHostsFile "{known_hosts}"
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  UpdateHostKeys no
  ConnectTimeout 10
  ServerAliveInterval 5
  ServerAliveCountMax 3
  ControlMaster auto
  ControlPersist 60s
  LogLevel ERROR
"""


def prepare(
    settings: Settings, snapshot: Snapshot, *, seconds: float = 60, most: int | None = None
) -> list[Host]:
    """Make the operator's key, ``known_hosts`` and ``ssh_config`` fit ``snapshot``.

    Waits at most ``seconds`` for host keys on the consoles of new hosts; with more than ``most``
    new hosts no console is read, each being a call to EC2. Returns the active hosts whose keys are
    not known: nothing connects to those.
    """
    operator_key.ensure(settings)
    hosts = [host for host in snapshot.hosts if host.is_active and host.private_ip]
    cached = known_hosts.load(settings)
    new = sum(host.instance_id not in cached for host in hosts)
    if most is not None and new > most:
        keys = cached
    else:
        read = partial(console.output, settings)
        keys = known_hosts.ensure(settings, hosts, read, seconds=seconds)
    known_hosts.write(settings, hosts, keys)
    replace(config_path(settings), ssh_config(settings, hosts, sockets=_sockets()))
    return [host for host in hosts if host.instance_id not in keys]


def config_path(settings: Settings) -> Path:
    """Where the file for ``ssh -F`` is."""
    return settings.scratch / "ssh_config"


def gateway(hosts: Iterable[Host]) -> Host | None:
    """The bastion everything goes through: the first active one with a public address."""
    return next((h for h in hosts if h.role == "bastion" and h.is_active and h.public_ip), None)


def ssh_config(settings: Settings, hosts: list[Host], *, sockets: Path) -> str:
    """The text of ssh_config; ``sockets`` is the folder for connections that OpenSSH shares."""
    bastion = gateway(hosts)
    blocks = [_HEADER.format(prefix=settings.prefix, path=config_path(settings))]
    for host in hosts:
        lines = [f"Host {host.name} {host.private_ip} {host.instance_id}"]
        if bastion and host.instance_id == bastion.instance_id:
            lines.append(f"HostName {host.public_ip}")
        elif bastion:
            lines += [f"HostName {host.private_ip}", f"ProxyJump {bastion.name}"]
        # With the instance in its name, a socket to a host that is gone is never used for the one
        # that has its address now. A socket's path may have 108 characters at most.
        lines.append(f"ControlPath {sockets}/{host.instance_id[-8:]}-%C")
        blocks.append("\n  ".join(lines) + "\n")
    blocks.append(
        _COMMON.format(
            user=settings.ssh.user,
            key=settings.path(settings.ssh.key_file),
            known_hosts=settings.scratch / "known_hosts",
        )
    )
    return "\n".join(blocks)


def _sockets() -> Path:
    """Where OpenSSH keeps the sockets of connections that it shares.

    Anybody can make a folder of that name in /tmp first. OpenSSH asks a socket that it finds for no
    host key: its owner would be given all that Ansible sends, and would answer.
    """
    folder = Path(tempfile.gettempdir()) / f"flotilla-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise Refused(
            f"{folder} is not a folder of yours alone (owner {found.st_uid}, mode"
            f" {stat.filemode(found.st_mode)})",
            "whoever may write there could read and answer what is sent to hosts",
            "No host was connected to",
            f"see who made it, then: rm -r {folder}",
        )
    return folder
