#!/usr/bin/python3
"""Give this host a certificate of its own, and a new one in time, with nobody there.

    tls_leaf.py issue    make one if it is time; exit 1: there can be none, and why
    tls_leaf.py renew    the same, then have the services take it; exit 1: try again
    tls_leaf.py status   one JSON object on stdout

The host's role has an issuer (a key that may sign for names of that role only); with it the host
signs for itself. Key and certificate are one file, so that no service ever reads half of a pair;
it is replaced whole or not at all. Services are told at every run, not only after a renewal: one
that could not take the new certificate then takes it an hour later.
"""

import argparse
import contextlib
import fcntl
import ipaddress
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HOME = Path("/etc/flotilla/tls")
# How long before it is made a certificate begins, by its end: Mozilla's modern profile wants no
# server's to last more than 90 days.
SPAN = timedelta(days=80)
BEFORE = timedelta(hours=1)
# A host that did not run for longer than this may as well have a wrong clock.
LATE = timedelta(days=30)
RENEW_AT = 1 / 3
# How soon before its issuer's end a host says so by a run that fails: until then somebody has had
# 80 days of `fab fleet.status`.
LAST = timedelta(days=7)
HOOK_SECONDS = 120
# What cryptography raises on bytes that are no key, or no certificate, or none that it knows.
_NOT_READ = (
    *(ValueError, TypeError, UnsupportedAlgorithm),
    *(x509.InvalidVersion, x509.ExtensionNotFound, x509.DuplicateExtension),
)
_USAGE = x509.KeyUsage(
    digital_signature=True, content_commitment=False, key_encipherment=False,
    data_encipherment=False, key_agreement=False, key_cert_sign=False, crl_sign=False,
    encipher_only=False, decipher_only=False,
)  # fmt: skip


class LeafError(Exception):
    """There can be no certificate now; the message says why, and what would help."""


@dataclass(frozen=True)
class Settings:
    """/etc/flotilla/tls/tls.json. ``group`` may read the leaf; ``after`` are commands (argv)."""

    names: list[str]
    addresses: list[str]
    hours: int
    group: str
    after: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raise ValueError or TypeError for what no certificate can be made of."""
        if not self.names:
            raise ValueError("it has no names")
        x509.SubjectAlternativeName([*map(x509.DNSName, self.names), *self.parsed()])
        timedelta(hours=self.hours)

    def parsed(self) -> list[x509.IPAddress]:
        """The addresses, as a certificate has them."""
        return [x509.IPAddress(ipaddress.ip_address(one)) for one in self.addresses]


def load(home: Path) -> Settings:
    """The settings. Raises LeafError when the file is not right."""
    path = home / "tls.json"
    try:
        return Settings(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise LeafError(f"{path} cannot be used: {error}: fab fleet.configure") from error


# --- decisions ------------------------------------------------------------------------------------


def why_new(
    leaf: x509.Certificate | None, wanted: Settings, issuer: x509.Certificate, now: datetime
) -> str:
    """Why another certificate is needed; empty when this one does."""
    if leaf is None:
        return "there is none that is whole"
    if _names(leaf) != (sorted(wanted.names), sorted(wanted.addresses)):
        return "it is for other names"
    try:
        leaf.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return "another issuer made it"
    start, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    if now < start:
        return "it is not valid yet"
    is_due = end - now < timedelta(hours=wanted.hours) * RENEW_AT
    # One that ends with its issuer is not made better by another, only services restarted for it.
    is_due = (is_due and end < issuer.not_valid_after_utc) or now >= end
    return f"it ends {end:%Y-%m-%d %H:%M} UTC" if is_due else ""


def span(
    wanted: Settings, issuer: x509.Certificate, now: datetime, old: x509.Certificate | None
) -> tuple[datetime, datetime]:
    """From when to when the next one is valid; ``old`` is of the same issuer.

    For no clock is to be trusted. A run with one that is 30 days ahead would make a certificate
    that nobody believes yet, one with a clock 20 days behind one that has ended; and a host cannot
    know: a machine that was restored from a snapshot calls its old time synchronised, and one that
    is right may never do. So it ends no sooner than the one of before, and begins long before it
    is made: with the one of before where that one, or the clock, is not as an hourly timer leaves
    it. After a clock that was more than LATE ahead one lasts longer than others, until it is made
    anew for another issuer; to shorten it would again be a matter of trust.
    """
    lasts = timedelta(hours=wanted.hours)
    span = max(SPAN, lasts + BEFORE)
    end = now + lasts
    begin = end - span
    if old is not None:
        first, last = old.not_valid_before_utc, old.not_valid_after_utc
        if now > last + LATE or last > end or last - first > span:
            begin = min(first, begin)
        end = max(end, last)
    return max(begin, issuer.not_valid_before_utc), min(end, issuer.not_valid_after_utc)


def why_not(
    wanted: Settings, issuer: x509.Certificate, root: x509.Certificate, now: datetime
) -> str:
    """Why this issuer can make none; empty when it can."""
    try:
        issuer.verify_directly_issued_by(root)
    except (InvalidSignature, ValueError, TypeError):
        return "the issuer was not made by the authority that everybody trusts"
    start, end = issuer.not_valid_before_utc, issuer.not_valid_after_utc
    if now < start:
        return f"this host's clock says {now:%Y-%m-%d %H:%M}, and the issuer is of {start:%Y-%m-%d}"
    if now >= end:
        return f"the issuer is valid until {end:%Y-%m-%d} only"
    outside = [
        *(name for name in wanted.names if not _may(issuer, name)),
        *(one for one in wanted.addresses if not _may(issuer, ipaddress.ip_address(one))),
    ]
    return f"the issuer may not vouch for {', '.join(outside)}" if outside else ""


def _names(leaf: x509.Certificate) -> tuple[list[str], list[str]]:
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except _NOT_READ:
        return [], []
    addresses = (str(one) for one in found.get_values_for_type(x509.IPAddress))
    return sorted(found.get_values_for_type(x509.DNSName)), sorted(addresses)


def _may(
    issuer: x509.Certificate, what: str | ipaddress.IPv4Address | ipaddress.IPv6Address
) -> bool:
    """RFC 5280: with any permitted tree of its kind, a name has to be in one of them."""
    try:
        limits = issuer.extensions.get_extension_for_class(x509.NameConstraints).value
    except _NOT_READ:
        return False
    for tree in limits.permitted_subtrees or ():
        if isinstance(what, str):
            if isinstance(tree, x509.DNSName) and f".{what}".endswith(f".{tree.value}"):
                return True
        elif isinstance(tree, x509.IPAddress) and what in tree.value:
            return True
    return False


# --- files ----------------------------------------------------------------------------------------


def made(
    wanted: Settings,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate,
    now: datetime,
    old: x509.Certificate | None = None,
) -> tuple[bytes, x509.Certificate]:
    """A new key with its certificate, and the issuer's: what a server sends. It never outlives
    its issuer, and is valid whenever ``old`` is.
    """
    own = ec.generate_private_key(ec.SECP256R1())
    names = [x509.DNSName(name) for name in wanted.names]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, wanted.names[0][:64])])
    begin, end = span(wanted, issuer, now, old)
    above = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    leaf = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([*names, *wanted.parsed()]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_USAGE, critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(above, critical=False)
        .sign(key, hashes.SHA256())
    )
    text = own.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    pem = serialization.Encoding.PEM
    return text + leaf.public_bytes(pem) + issuer.public_bytes(pem), leaf


def certificate(path: Path) -> x509.Certificate | None:
    """The first certificate of a file; None where there is no good one."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, *_NOT_READ):
        return None


def whole(content: bytes) -> tuple[x509.Certificate, x509.Certificate] | None:
    """The certificate and its issuer's, of what a server can serve; None where the key is missing
    or another's, or anything is cut off.
    """
    try:
        leaf, issuer = x509.load_pem_x509_certificates(content)
        is_own = _key(content).public_key() == leaf.public_key()
    except _NOT_READ:
        return None
    return (leaf, issuer) if is_own else None


def _kept(path: Path, issuer: x509.Certificate) -> x509.Certificate | None:
    """The certificate of a leaf file that is whole, with this issuer's; None otherwise."""
    try:
        found = whole(path.read_bytes())
    except OSError:
        return None
    return found[0] if found and found[1] == issuer else None


def _key(content: bytes) -> Any:
    return serialization.load_pem_private_key(content, None)


def put(path: Path, content: bytes, group: str) -> None:
    """A file for root and one group, whole or not at all. Call it ``alone``: a run that was killed
    leaves a draft with a key, and the next one has to take the same.
    """
    draft = path.with_name(f".{path.name}.new")
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        own(draft, group)
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)


def own(path: Path, group: str) -> None:
    """Let root and one group read a file, and nobody else."""
    path.chmod(0o640)
    shutil.chown(path, group=group)


@contextlib.contextmanager
def alone(home: Path) -> Iterator[None]:
    """One run at a time: of the timer's, and of the playbook's."""
    with (home / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- commands -------------------------------------------------------------------------------------


def issue(home: Path, now: datetime) -> str:
    """Make a certificate if it is time; why one was made. Raises LeafError, OSError, LookupError
    (no such group); the old certificate is then as it was.
    """
    wanted = load(home)
    root = certificate(home / "authority.pem")
    issuer = certificate(home / "issuer.pem")
    if root is None or issuer is None:
        raise LeafError(f"{home} has no good authority.pem or issuer.pem: fab fleet.configure")
    old = _kept(home / "leaf.pem", issuer)
    why = why_new(old, wanted, issuer, now)
    if not why:
        own(home / "leaf.pem", wanted.group)
        return ""
    cannot = why_not(wanted, issuer, root, now)
    if cannot:
        raise LeafError(f"{cannot}: fab fleet.provision, then fab fleet.configure")
    content, leaf = made(wanted, _issuers_key(home, issuer), issuer, now, old)
    put(home / "leaf.pem", content, wanted.group)
    sys.stderr.write(f"new until {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, for {why}\n")
    return why


def _issuers_key(home: Path, issuer: x509.Certificate) -> Any:
    """What it signs with is what it vouches for: nobody would believe anything else."""
    path = home / "issuer.pem"
    try:
        key = _key(path.read_bytes())
        is_own = key.public_key() == issuer.public_key()
    except _NOT_READ as error:
        raise LeafError(f"{path} has no key that can be read: fab fleet.configure") from error
    if not is_own:
        raise LeafError(f"{path} has a key of another certificate: fab fleet.configure")
    return key


def renew(home: Path, now: datetime, *, tell: bool = True) -> int:
    """Make one if it is time, then have the services take it, or the old one as it was."""
    failed = 0
    try:
        with alone(home):
            issue(home, now)
    except (LeafError, OSError, LookupError) as error:
        failed = 1
        sys.stderr.write(f"no new certificate, {home / 'leaf.pem'} is as it was: {error}\n")
    issuer = certificate(home / "issuer.pem") if tell and not failed else None
    if issuer is not None and issuer.not_valid_after_utc - now < LAST:
        failed = 1
        sys.stderr.write(
            f"the issuer ends {issuer.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, and what it signed"
            " not later: fab fleet.provision, then fab fleet.configure\n"
        )
    # Not under the lock: a service that is restarted looks for a certificate before it starts.
    for argv in _after(home) if tell else []:
        failed |= _run(argv)
    return failed


def _after(home: Path) -> list[list[str]]:
    """Whom to tell; nobody where that cannot be read, which was said."""
    try:
        return load(home).after
    except LeafError:
        return []


def _run(argv: Sequence[str]) -> int:
    try:
        return int(subprocess.run(argv, check=False, timeout=HOOK_SECONDS).returncode != 0)
    except (OSError, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"{argv[0]}: {error}\n")
        return 1


def status(home: Path, now: datetime) -> int:
    """One JSON object: when what this host has ends, in seconds since the epoch, and how many hours
    a certificate is to last, null where the settings cannot be read.
    """
    found = {
        name: ends.not_valid_after_utc.timestamp() if (ends := certificate(home / file)) else None
        for name, file in (
            ("leaf", "leaf.pem"),
            ("issuer", "issuer.pem"),
            ("root", "authority.pem"),
        )
    }
    try:
        hours = load(home).hours
    except LeafError:
        hours = None
    json.dump({"at": now.timestamp(), "hours": hours, "ends": found}, sys.stdout)
    sys.stdout.write("\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(description="this host's own certificate")
    parser.add_argument("command", choices=("issue", "renew", "status"))
    chosen = parser.parse_args(arguments)
    now = datetime.now(UTC)
    os.umask(0o077)
    if chosen.command == "status":
        return status(HOME, now)
    return renew(HOME, now, tell=chosen.command == "renew")


if __name__ == "__main__":
    sys.exit(main())
