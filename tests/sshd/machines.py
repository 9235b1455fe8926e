"""Hosts with the newest image's own programs, on loopback addresses of a network of their own.

Each is the image's disk with a layer of its own on top, and a root, mounts and processes of its
own; the network is shared by all of a test and leads nowhere. sshd is not started by systemd, which
does not run here: what asks systemctl is answered by a script.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mysqld.binaries import NoImageError, disks_of, newest
from templates.conftest import render_template

from flotilla.rules.access import JUMP
from flotilla.wait import until
from lab.layout import layout

REPO = Path(__file__).resolve().parents[2]
KEY = "/etc/ssh/ssh_host_ed25519_key"

_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
    "HOME": "/root",
}

# HUP is what `systemctl reload ssh` sends; a timer is a process that waits.
_SYSTEMCTL = """#!/bin/sh
[ "$1" != --no-block ] || shift
case "$1" in
  reload|reload-or-restart|try-reload-or-restart)
    [ ! -e /run/cannot-reload ] || { echo "no reload" >&2; exit 1; }
    pkill -HUP -o -x sshd || touch /run/start-sshd ;;
  stop) [ ! -e /run/timer ] || { kill -- "-$(cat /run/timer)"; rm -f /run/timer; } ;;
esac
"""
_SYSTEMD_RUN = """#!/bin/sh
seconds=
while [ "${1#--}" != "$1" ]; do
  case "$1" in --on-active=*) seconds=${1#*=} ;; esac
  shift
done
setsid sh -c 'echo $$ >/run/timer; sleep "$0"; rm -f /run/timer; exec "$@"' "$seconds" "$@" \
  >/run/timer.log 2>&1 &
"""


class Machine:
    """One host: ``run`` and ``write`` are root's hands on it; ``log`` is what its sshd wrote."""

    def __init__(
        self, name: str, address: str, folder: Path, network: Machine | None, image: str = "base"
    ) -> None:
        self.name, self.address, self.folder = name, address, folder
        where = layout()
        disks = disks_of(where.storage, newest(where.amis, image))
        for part in ("upper", "work", "root"):
            (folder / part).mkdir(parents=True)
        layers = (
            f"lowerdir={':'.join(map(str, disks))},upperdir={folder}/upper,workdir={folder}/work"
        )
        root = shlex.quote(str(folder / "root"))
        script = (
            f"mount -t overlay overlay -o {shlex.quote(layers)} {root}"
            f" && mount -t proc proc {root}/proc"
            f" && mount -t tmpfs tmpfs {root}/run && mount --rbind /dev {root}/dev"
            f" && ip link set lo up && touch {root}/run/ready && exec chroot {root} sleep infinity"
        )
        into = [] if network is None else ["nsenter", f"--net=/proc/{network.init}/ns/net"]
        apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        self._process = subprocess.Popen(
            [*into, *apart, *([] if network else ["--net"]), "sh", "-c", script],
            stderr=(folder / "unshare.log").open("wb"),
        )
        until(self._is_up, seconds=20, every=0.05)
        self._sshd: subprocess.Popen[bytes] | None = None

    def _is_up(self) -> bool:
        if self._process.poll() is not None:
            raise NoImageError((self.folder / "unshare.log").read_text() or "unshare failed")
        with suppress(OSError, IndexError):
            return Path(f"/proc/{self.init}/comm").read_text() == "sleep\n"
        return False

    @property
    def init(self) -> int:
        """Its first process, as this machine numbers it."""
        pid = self._process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def argv(self, *command: str) -> list[str]:
        """A command line that runs ``command`` on it, as root."""
        target = ["--target", str(self.init)]
        return ["nsenter", *target, "--mount", "--net", "--pid", "--root", "--wd=/", *command]

    def run(
        self, *command: str, stdin: str = "", check: bool = True, seconds: float = 30
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.argv(*command), input=stdin, capture_output=True, text=True, timeout=seconds,
            check=False, env=_ENVIRONMENT,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
        return done

    def here(self, *command: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a program of this machine in its network."""
        return subprocess.run(
            ["nsenter", "--target", str(self.init), "--net", *command],
            capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip

    @contextmanager
    def beside(self, *command: str) -> Iterator[None]:
        """Run a program of this machine in its network meanwhile."""
        entered = ["nsenter", "--target", str(self.init), "--net", *command]
        process = subprocess.Popen(
            entered, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield
        finally:
            process.kill()
            process.wait()

    def path(self, inside: str) -> Path:
        """Where a path of it is on this machine."""
        return Path(f"/proc/{self.init}/root{inside}")

    def write(self, inside: str, text: str | bytes, mode: int = 0o644) -> None:
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(mode)

    def start(self) -> None:
        """Start sshd, and wait until it listens."""
        self.run("mkdir", "-p", "-m", "755", "/run/sshd")
        with (self.folder / "sshd.log").open("ab") as log:
            self._sshd = subprocess.Popen(
                self.argv("/usr/sbin/sshd", "-D", "-e", "-o", f"ListenAddress={self.address}"),
                stdout=log, stderr=log,
            )  # fmt: skip
        probe = f"exec 3<>/dev/tcp/{self.address}/22"
        until(lambda: not self.run("bash", "-c", probe, check=False).returncode, seconds=20)

    @property
    def log(self) -> str:
        return (self.folder / "sshd.log").read_text(errors="replace")

    def end(self) -> None:
        for process in filter(None, (self._sshd, self._process)):
            process.kill()
            process.wait()


def configure(machine: Machine, role: str, **overrides: object) -> None:
    """Give it what the roles base and, on a bastion, bastion write."""
    host = f"{role}-1"
    trusted: dict[str, object] = {"base_ssh_trusted_networks": ["127.0.0.0/8"]}
    text = render_template("base", "sshd.conf.j2", host=host, **(trusted | overrides))
    machine.write("/etc/ssh/sshd_config.d/60-flotilla.conf", text)
    if role == "bastion":
        text = render_template("bastion", "sshd.conf.j2", host=host, **overrides)
        machine.write("/etc/ssh/sshd_config.d/50-flotilla-bastion.conf", text)
        account = ["--no-create-home", "--home-dir", "/nonexistent", "--password", "*", JUMP]
        machine.run("useradd", "--system", "--shell", "/usr/sbin/nologin", *account)


@contextmanager
def machines(folder: Path, addresses: Sequence[tuple[str, str]]) -> Iterator[list[Machine]]:
    """Hosts by name and address, with a host key each, and without sshd. Raises NoImageError."""
    if os.geteuid():
        raise NoImageError("only root may read the images' disks")
    made: list[Machine] = []
    try:
        for name, address in addresses:
            made.append(Machine(name, address, folder / name, made[0] if made else None))
            made[-1].run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", KEY)
            for tool, text in (("systemctl", _SYSTEMCTL), ("systemd-run", _SYSTEMD_RUN)):
                made[-1].write(f"/usr/local/bin/{tool}", text, 0o755)
            made[-1].write("/etc/ssh/flotilla/user_ca.pub", "")
            made[-1].write("/etc/ssh/flotilla/revoked", "")
        yield made
    finally:
        for one in reversed(made):
            one.end()


def ssh_audit(machine: Machine, *arguments: str) -> subprocess.CompletedProcess[str]:
    """ssh-audit against it."""
    return machine.here(sys.executable, "-m", "ssh_audit", *arguments, machine.address)
