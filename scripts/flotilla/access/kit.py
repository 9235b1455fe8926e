"""What somebody with a certificate is given: all that OpenSSH needs, and no secret."""

from __future__ import annotations

from pathlib import Path

from flotilla.files import replace
from flotilla.hosts import known_hosts
from flotilla.hosts.access import gateway
from flotilla.rules.access import JUMP
from flotilla.settings import Settings
from flotilla.snapshot import Snapshot

_HEADER = """\
# The way to {prefix} for {name}. Put this folder where it says, and your private key (or, for a
# token, the file that stands for it) into it as `key`:
#   {home}
# Use: ssh -F {home}/ssh_config <host>
"""
# No wait for a question: a host that cannot prove who it is, is not connected to.
_COMMON = """\
Host *
  IdentityFile {home}/key
  CertificateFile {home}/key-cert.pub
  IdentitiesOnly yes
  UserKnownHostsFile {home}/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  UpdateHostKeys no
  ForwardAgent no
  ConnectTimeout 10
  ServerAliveInterval 5
  ServerAliveCountMax 3
"""


class Kit:
    """Writes ``var/<env>/access/<name>``: certificate, known_hosts and ssh_config."""

    def __init__(self, settings: Settings, snapshot: Snapshot, host_ca: str) -> None:
        self._settings = settings
        self._hosts = [h for h in snapshot.hosts if h.is_active and h.private_ip]
        self._ca = host_ca

    def write(self, name: str, certificate: str) -> Path:
        """The folder, which is the same for every certificate of one person."""
        folder = self._settings.scratch / "access" / name
        replace(folder / "key-cert.pub", f"{certificate}\n")
        replace(folder / "known_hosts", self.known_hosts())
        replace(folder / "ssh_config", self.ssh_config(name))
        return folder

    def known_hosts(self) -> str:
        """The CA for every host; and what is known of those that have no certificate yet.

        Our own tools go by recorded keys alone: paramiko knows no CA, and an operator who is to
        repair a fleet must not be kept out by a date.
        """
        known = known_hosts.load(self._settings)
        lines = [f"@cert-authority * {self._ca}"]
        for host in self._hosts:
            names = ",".join(n for n in (host.name, host.private_ip, host.public_ip) if n)
            lines += [f"{names} {key}" for key in known.get(host.instance_id, ())]
        return "".join(f"{line}\n" for line in lines)

    def ssh_config(self, name: str) -> str:
        """How to reach every host of now; one that is launched later, by its address."""
        home = f"~/.ssh/{self._settings.prefix}"
        bastion = gateway(self._hosts)
        blocks = [_HEADER.format(prefix=self._settings.prefix, name=name, home=home)]
        for host in self._hosts:
            if bastion and host.instance_id == bastion.instance_id:
                lines = [f"Host {host.name}", f"HostName {host.public_ip}", f"User {JUMP}"]
            elif host.role == "bastion":
                continue
            else:
                lines = [f"Host {host.name} {host.private_ip}", f"HostName {host.private_ip}"]
            blocks.append("\n  ".join(lines) + "\n")
        if bastion:
            jump = [f"Host !{bastion.name} *", f"User {self._settings.ssh.user}"]
            blocks.append("\n  ".join([*jump, f"ProxyJump {bastion.name}"]) + "\n")
        return "\n".join([*blocks, _COMMON.format(home=home)])
