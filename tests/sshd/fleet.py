"""A bastion and a host behind it, both told whom to trust, and somebody who wants to log in."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sshd.machines import KEY, Machine, configure, machines

from flotilla.agent.access import apply
from flotilla.hosts import certificates
from flotilla.rules import access as rules

NOW = time.time()
OPERATOR = "/root/operator"
HOME = "/root/kit"


class Fleet:
    """``serials`` are given out in order; ``revoke`` takes one back on every host."""

    def __init__(self, bastion: Machine, host: Machine, client: Machine) -> None:
        self.bastion, self.host, self.client = bastion, host, client
        self.ca, self.host_ca = certificates.new_ca(), certificates.new_ca()
        self._revoked: list[int] = []
        self._serial = 0
        self.tell()
        for one in (bastion, host):
            self.certify(one, one.name, one.address)
        self.known = f"@cert-authority * {certificates.public_of(self.host_ca, 'hosts')}\n"
        client.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", OPERATOR)
        public = client.path(f"{OPERATOR}.pub").read_text()
        for one in (bastion, host):
            one.write("/home/admin/.ssh/authorized_keys", public, 0o600)
            one.run("chown", "-R", "admin:", "/home/admin")

    def tell(self) -> None:
        """As flotilla-access does on a host."""
        public = certificates.public_of(self.ca, "people")
        revoked = certificates.revocations(public, self._revoked)
        body = rules.trust(public, revoked, len(self._revoked), "admin")
        for machine, tier in ((self.bastion, "bastion"), (self.host, "app")):
            apply(body, tier, machine.path("/etc/ssh/flotilla"))

    def revoke(self, serial: int) -> None:
        self._revoked.append(serial)
        self.tell()

    def certify(self, machine: Machine, *names: str) -> None:
        """Give a host a certificate, and have its sshd show it from the next start on."""
        now = int(NOW)
        key = machine.path(f"{KEY}.pub").read_text()
        text = certificates.signed(
            self.host_ca, key, identity=names[0], principals=names, serial=1, begins=now - 300,
            ends=now + rules.HOST_SECONDS, is_host=True,
        )  # fmt: skip
        machine.write(f"{KEY}-cert.pub", f"{text}\n")
        setting = f"HostCertificate {KEY}-cert.pub\n"
        machine.write("/etc/ssh/sshd_config.d/61-flotilla-certificate.conf", setting)

    def kit(
        self, key: str = "", *, hours: float = 1, principal: str = "ops", ca: str = ""
    ) -> tuple[str, int]:
        """A folder on the client with a key and its certificate; the folder and the serial."""
        self._serial += 1
        folder = f"{HOME}-{self._serial}"
        self.client.run("mkdir", "-p", "-m", "700", folder)
        if not key:
            self.client.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{folder}/key")
            key = self.client.path(f"{folder}/key.pub").read_text()
        else:
            self.client.write(f"{folder}/key", f"{key}\n", 0o600)
        text = certificates.signed(
            ca or self.ca, key, identity="alice", principals=[principal], serial=self._serial,
            begins=int(NOW - 7200), ends=int(NOW + hours * 3600),
        )  # fmt: skip
        self.client.write(f"{folder}/key-cert.pub", f"{text}\n")
        self.client.write(f"{folder}/known_hosts", self.known)
        config = f"""\
Host bastion-1
  HostName {self.bastion.address}
  User jump
Host app-1
  HostName {self.host.address}
  User admin
  ProxyJump bastion-1
Host *
  IdentityFile {folder}/key
  CertificateFile {folder}/key-cert.pub
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  IdentitiesOnly yes
  BatchMode yes
  ConnectTimeout 10
"""
        self.client.write(f"{folder}/ssh_config", config)
        return folder, self._serial

    def ssh(self, folder: str, *words: str) -> subprocess.CompletedProcess[str]:
        """OpenSSH as somebody with that kit types it."""
        return self.client.run("ssh", "-F", f"{folder}/ssh_config", *words, check=False)

    def operator(self, account: str, machine: Machine, *words: str) -> subprocess.CompletedProcess:
        """OpenSSH with the fleet's own key, straight to a host."""
        self.client.write("/root/known", self.known)
        options = ["-i", OPERATOR, "-o", "UserKnownHostsFile=/root/known", "-o", "BatchMode=yes"]
        return self.client.run("ssh", *options, f"{account}@{machine.address}", *words, check=False)


@contextmanager
def fleet(folder: Path, **settings: object) -> Iterator[Fleet]:
    """All of it, with sshd running. ``settings`` are variables of the roles."""
    addresses = [("bastion-1", "127.0.1.1"), ("app-1", "127.0.1.2"), ("client", "127.0.1.9")]
    with machines(folder, addresses) as (bastion, host, client):
        configure(bastion, "bastion", **settings)
        configure(host, "app")
        made = Fleet(bastion, host, client)
        bastion.start()
        host.start()
        yield made
