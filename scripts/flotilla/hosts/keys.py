"""The operator's SSH key."""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from pathlib import Path

from flotilla.errors import FlotillaError, Refused
from flotilla.settings import Settings


def ensure(settings: Settings) -> Path:
    """The private key that fleet.ssh.key_file names; its public half is beside it as ``.pub``.

    A key under ``var/<env>`` is made (ed25519, mode 0600) by whoever needs it first, also when
    several do at once. Any other path is the operator's own key: Refused when it is missing, or
    when others can read it, because ssh would not use it.
    """
    path = settings.path(settings.ssh.key_file)
    if not path.exists():
        if not path.is_relative_to(settings.scratch):
            raise Refused(
                f"there is no SSH key at {path}",
                why=f"fleet.ssh.key_file of environment {settings.env!r} names it",
                untouched="Nothing was changed",
                next=f"ssh-keygen -t ed25519 -f {path}",
            )
        _make(path, comment=f"operator@{settings.prefix}")
    if not path.is_file():
        raise Refused(
            f"{path} is not a file, and should be the SSH key",
            why=f"fleet.ssh.key_file of environment {settings.env!r} names it",
            untouched="Nothing was changed",
            next=f"ls -ld {path}",
        )
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise Refused(
            f"the SSH key {path} can be read by others, and ssh refuses to use such a key",
            untouched="Nothing was changed",
            next=f"chmod 600 {path}",
        )
    return path


def public(settings: Settings) -> str:
    """The public half, as one line of authorized_keys."""
    private = ensure(settings)
    beside = private.with_name(f"{private.name}.pub")
    if beside.exists():
        return beside.read_text(encoding="utf-8").strip()
    derived = subprocess.run(
        ["ssh-keygen", "-y", "-f", str(private)], capture_output=True, text=True, check=False
    )
    if derived.returncode:
        raise Refused(
            f"{private} has no public half beside it and ssh-keygen cannot derive one: "
            f"{derived.stderr.strip()}",
            next=f"ssh-keygen -y -f {private} > {beside}",
        )
    return derived.stdout.strip()


def _make(path: Path, *, comment: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            fresh = Path(folder) / "key"
            if fault := _generated(fresh, comment):
                raise _not_made(path, fault)
            # A link fails where a rename would replace: of two that make a key at once, one wins
            # and both use it.
            try:
                os.link(fresh, path)
            except FileExistsError:
                return
            Path(f"{fresh}.pub").replace(f"{path}.pub")
    except OSError as error:
        raise _not_made(path, error.strerror or str(error)) from error


def _generated(path: Path, comment: str) -> str:
    """Make a key; returns what ssh-keygen said when it could not, in its last words."""
    done = subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    said = done.stderr.strip().rpartition(": ")[2] or "no reason given"
    return f"ssh-keygen: {said}" if done.returncode else ""


def _not_made(path: Path, why: str) -> FlotillaError:
    return FlotillaError(
        f"could not make the SSH key {path}: {why}",
        untouched="Nothing was changed",
        next=f"df -h {path.parent}",
    )
