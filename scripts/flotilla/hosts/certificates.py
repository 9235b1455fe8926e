"""OpenSSH's own certificates: a CA's key, what it signs, and the list of what it takes back.

``ssh-keygen`` does it all: no library signs keys that live in a token. A CA's private key is never
a file, which a SIGKILL would leave behind, and never an argument: it goes through a pipe.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flotilla.errors import FlotillaError, Refused
from flotilla.rules import access as rules


def new_ca() -> str:
    """A new private key of a CA, as OpenSSH writes it."""
    private = serialization.PrivateFormat.OpenSSH
    plain = serialization.NoEncryption()
    made = Ed25519PrivateKey.generate()
    return made.private_bytes(serialization.Encoding.PEM, private, plain).decode()


def public_of(ca: str, comment: str) -> str:
    """The public half of a CA's key, as one line. Raises Refused for what is no such key."""
    try:
        key = serialization.load_ssh_private_key(ca.encode(), None)
    # TypeError: it has a passphrase.
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _unusable("cannot be read") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _unusable("is not of type ed25519, and hosts take no other")
    return f"{_line(key.public_key())} {comment}"


def signed(
    ca: str,
    key: str,
    *,
    identity: str,
    principals: Iterable[str],
    serial: int,
    begins: int,
    ends: int,
    is_host: bool = False,
) -> str:
    """The certificate of a public key, as one line; times in seconds since the epoch.

    A user's may forward nothing but what sshd allows, and has no agent or X11 with it. Raises
    Refused when ssh-keygen does not take the key.
    """
    with _folder() as folder:
        public = folder / "key.pub"
        public.write_text(f"{key}\n")
        kind = (
            ["-h"]
            if is_host
            else ["-O", "clear", "-O", "permit-pty", "-O", "permit-port-forwarding"]
        )
        window = f"{_moment(begins)}:{_moment(ends)}"
        _keygen(
            *("-q", "-s", "/dev/stdin", "-I", identity, "-n", ",".join(principals)),
            *("-z", str(serial), "-V", window, *kind, str(public)),
            stdin=ca if ca.endswith("\n") else f"{ca}\n",
        )
        return (folder / "key-cert.pub").read_text().strip()


def revocations(ca_public: str, serials: Sequence[int]) -> bytes:
    """The list by which sshd refuses the certificates with these serials of one CA."""
    with _folder() as folder:
        public, listed, made = folder / "ca.pub", folder / "serials", folder / "revoked"
        public.write_text(f"{ca_public}\n")
        listed.write_text("".join(f"serial: {serial}\n" for serial in sorted(serials)))
        version = ["-z", str(len(serials))]
        _keygen("-q", "-k", "-f", str(made), "-s", str(public), *version, str(listed))
        return made.read_bytes()


def fingerprint(key: str) -> str:
    """SHA256:... of a public key or certificate. Raises Refused for what ssh-keygen cannot read."""
    return _keygen("-l", "-E", "sha256", "-f", "-", stdin=f"{key}\n").split()[1]


def bits(key: str) -> int:
    """The size of a public key. Raises Refused for what ssh-keygen cannot read."""
    return int(_keygen("-l", "-f", "-", stdin=f"{key}\n").split()[0])


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a certificate says; keys as fingerprints, ``ends`` in seconds since the epoch."""

    key: str
    ca: str
    principals: tuple[str, ...]
    ends: int


def read(text: str) -> Certificate | None:
    """Read a certificate of an ed25519 key; None for anything that is none."""
    try:
        found = serialization.load_ssh_public_identity(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        return None
    if not isinstance(found, serialization.SSHCertificate):
        return None
    return Certificate(
        fingerprint(_line(found.public_key())),
        fingerprint(_line(found.signature_key())),
        tuple(name.decode() for name in found.valid_principals),
        found.valid_before,
    )


def lasts(text: str, key: str, ca: str, names: Sequence[str], *, now: int) -> bool:
    """Whether a host's certificate ("" for none) is of this key and CA, for these names, and has
    half of its time yet.
    """
    has = read(text) if text else None
    if has is None or has.ends - now <= rules.HOST_SECONDS / 2:
        return False
    return (has.key, has.ca, set(has.principals)) == (fingerprint(key), fingerprint(ca), set(names))


def _unusable(why: str) -> Refused:
    return Refused(
        f"the CA's key in SSM {why}",
        why="certificates are signed with it",
        untouched="Nothing was changed",
        next="fab secrets.status",
    )


def _line(key: Any) -> str:
    encoding, form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    line: bytes = key.public_bytes(encoding, form)
    return line.decode()


def _moment(seconds: int) -> str:
    # With Z, and not in the time zone of whoever runs it.
    return f"{datetime.fromtimestamp(seconds, UTC):%Y%m%d%H%M%S}Z"


@contextmanager
def _folder() -> Iterator[Path]:
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    except OSError as error:
        raise FlotillaError(
            f"no folder for a public key could be made: {error.strerror}",
            next=f"df -h {tempfile.gettempdir()}",
        ) from error


def _keygen(*arguments: str, stdin: str = "") -> str:
    try:
        done = subprocess.run(
            ["ssh-keygen", *arguments], input=stdin, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise Refused(
            "there is no ssh-keygen on this machine",
            why="it signs certificates and lists what is revoked",
            untouched="Nothing was changed",
            next="install OpenSSH's client",
        ) from error
    if done.returncode:
        raise Refused(
            f"ssh-keygen does not take it: {done.stderr.strip() or 'no reason given'}",
            untouched="Nothing was changed",
        )
    return done.stdout
