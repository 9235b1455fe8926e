"""Who may log in for how long, and what a host is to trust: decided from records that never change.

A grant is a record with a serial, a revocation another one under the same serial; neither is ever
written over. What hosts trust is computed from all of them, so it can be made again at any time.
Invariant: the generation of what is published grows with every revocation, and a host takes no
smaller one than it has, so that no old list of revoked certificates comes back.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

PRINCIPALS = ("ops",)
# The account of a bastion that certificates open; it can only jump.
JUMP = "jump"
BASTION = "bastion"
# A certificate that is lost is good until it ends or is revoked: a week is the longest.
MOST_HOURS = 168
# Clocks of hosts may be behind the operator's.
EARLY_SECONDS = 300
# A host whose clock is behind still takes what has ended by ours; one serial more costs nothing.
LATE_SECONDS = 86_400
# A host's journal begins with its first boot, a minute or two after its launch.
BOOT_SECONDS = 600
# A host's certificate is for its key alone, which never leaves it. Renewed when half of it is over.
HOST_SECONDS = 365 * 86400
# NIST SP 800-131A disallows fewer. sshd by itself takes 1,024.
RSA_BITS = 2048
# How a list of revoked keys begins; sshd takes no key at all by one that it cannot read.
KRL_MAGIC = b"SSHKRL\n\0"

_NAME = re.compile(r"[a-z][a-z0-9._-]{0,31}")
_KINDS = frozenset(
    {
        "ssh-ed25519",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "ssh-rsa",
    }
)


@dataclass(frozen=True, slots=True)
class Grant:
    """One certificate: whose, what for, and when, in seconds since the epoch."""

    serial: int
    name: str
    principal: str
    fingerprint: str  # of the key: SHA256:...
    kind: str  # of the key: ssh-ed25519
    begins: int
    ends: int
    by: str

    def as_dict(self) -> dict[str, Any]:
        """JSON types; ``from_dict`` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Grant:
        """The grant that ``as_dict`` described. Raises KeyError, TypeError."""
        return cls(**{name: values[name] for name in cls.__slots__})


def objection(name: str, hours: float, principal: str) -> str | None:
    """Why nobody may be granted this; None when they may."""
    if not _NAME.fullmatch(name):
        return f"{name!r} is no name: a letter, then letters, digits, . _ and -, 32 at most"
    if principal not in PRINCIPALS:
        return f"--principal is {principal!r}: it must be one of {', '.join(PRINCIPALS)}"
    if not 1 <= hours <= MOST_HOURS:
        return f"--hours is {str(hours)[:20]}: it must be 1 to {MOST_HOURS}"
    return None


def key_objection(text: str) -> str | None:
    """Why this text is not one public key; None when it is."""
    if "PRIVATE KEY" in text:
        return (
            "it is a private key, which nobody but its owner should have: give the .pub beside it"
        )
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if len(lines) != 1:
        return f"it has {len(lines)} lines: a public key is one"
    kind = lines[0].split()[0]
    if "-cert-" in kind:
        return "it is a certificate already: give the key that was certified"
    if kind not in _KINDS:
        return f"its key is of type {kind[:40]!r}: it must be one of {', '.join(sorted(_KINDS))}"
    return None


def size_objection(kind: str, bits: int) -> str | None:
    """Why a key of this type and size may not be granted anything; None when it may."""
    if kind == "ssh-rsa" and bits < RSA_BITS:
        return f"it is an RSA key of {bits} bits: it must have {RSA_BITS}, or be of another type"
    return None


def state(grant: Grant, revoked: Collection[int], now: float) -> str:
    """ "revoked", "expired" or "valid"."""
    if grant.serial in revoked:
        return "revoked"
    return "expired" if now >= grant.ends else "valid"


def to_revoke(
    grants: Iterable[Grant], name: str, revoked: Collection[int], now: float
) -> list[Grant]:
    """The certificates of somebody that still open a host."""
    return [one for one in grants if one.name == name and state(one, revoked, now) == "valid"]


def trust(user_ca: str, revoked: bytes, generation: int, account: str) -> bytes:
    """What hosts are told: a document of JSON. ``account`` is whom "ops" logs in as."""
    document = {
        "generation": generation,
        "user_ca": user_ca,
        "revoked": base64.b64encode(revoked).decode(),
        # By tier; "" is every other one. On a bastion a certificate opens nothing but the jump.
        "principals": {BASTION: {JUMP: [*PRINCIPALS]}, "": {account: [*PRINCIPALS]}},
    }
    return json.dumps(document, sort_keys=True).encode()


@dataclass(frozen=True, slots=True)
class Trust:
    """What a host of one tier is told."""

    generation: int
    user_ca: str
    revoked: bytes
    principals: Mapping[str, Sequence[str]]  # by account

    @classmethod
    def parse(cls, body: bytes, tier: str) -> Trust:
        """Read a document. Raises ValueError naming what is wrong with it."""
        try:
            found = json.loads(body)
            tiers = found["principals"]
            made = cls(
                int(found["generation"]),
                str(found["user_ca"]),
                base64.b64decode(found["revoked"], validate=True),
                {account: list(names) for account, names in tiers.get(tier, tiers[""]).items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it lacks {error}") from error
        if not made.revoked.startswith(KRL_MAGIC):
            raise ValueError("its list of what is revoked is none")
        if not made.user_ca.startswith("ssh-ed25519 "):
            raise ValueError("it names no CA")
        wrong = [one for one in made.principals if not _NAME.fullmatch(one)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is no account")
        return made


@dataclass(frozen=True, slots=True)
class Login:
    """What sshd wrote of one login; ``serial`` is None for a plain key."""

    account: str
    address: str
    fingerprint: str
    name: str = ""
    serial: int | None = None


_ACCEPTED = re.compile(
    r"Accepted publickey for (?P<account>\S+) from (?P<address>\S+) port \d+ ssh2: "
    r"\S+ (?P<key>SHA256:\S+)(?: ID (?P<name>.*) \(serial (?P<serial>\d+)\) CA \S+ SHA256:\S+)?$"
)
# What sshd (LogLevel VERBOSE) says of a key that would do, before it is proved to be held.
_WOULD_DO = ("Accepted key ", "Accepted certificate ID ")
_REFUSED = (
    *("Certificate invalid", "revoked by file", "Failed publickey", "Certificate lacks principal"),
    *("no matching signing key", "Refused", "administratively prohibited", "no more sessions"),
    *("user verification", "not in PubkeyAcceptedAlgorithms"),
)


def login(line: str) -> Login | None:
    """The login that a line of sshd's log tells of; None for any other line."""
    # From its start: a certificate's ID, which sshd writes of a refused one too, is a stranger's
    # text, and may hold all of this sentence.
    found = _ACCEPTED.match(line)
    if not found:
        return None
    serial = found["serial"]
    return Login(
        found["account"],
        found["address"],
        found["key"],
        found["name"] or "",
        int(serial) if serial else None,
    )


def is_login(line: str) -> bool:
    """Whether a line of sshd's log tells of any login, also one that ``login`` cannot read.

    sshd cuts a line after 1023 bytes: a forged certificate with a long name would hide its serial.
    """
    return line.startswith("Accepted ") and not line.startswith(_WOULD_DO)


def is_refusal(line: str) -> bool:
    """Whether a line of sshd's log tells of a login or a forwarding that was refused."""
    return any(words in line for words in _REFUSED)


# Units of a host whose journal tells what was refused; sshd's tells of logins, too.
SSHD = "ssh.service"
TELLING = (
    SSHD,
    "flotilla-firewall-tell.service",
    "flotilla-mysql-agent.service",
    "redis-server.service",
    "redis-sentinel.service",
)
_NO_TLS = re.compile(r"Error accepting a client connection: .*\(addr=(\S+):\d+ ")


def refused(line: str) -> tuple[str, int] | None:
    """What a line of another unit than sshd tells was refused, and how often; None for nothing.

    Packets and MySQL's clients come counted, as JSON; Redis writes a line each.
    """
    if found := _NO_TLS.search(line):
        return f"connection without TLS from {found[1]}", 1
    try:
        told = json.loads(line) if line.startswith("{") else {}
        if "packets" in told:
            return f"packets, {told['chain']}: {told['refused']}", int(told["packets"])
        what = f"{told['refused']} of {told['account'] or '?'} from {told['from'] or '?'}"
        # A stranger chose that name, and an operator's terminal shows it.
        return "".join(one if one.isprintable() else "?" for one in what), int(told["times"])
    except (ValueError, KeyError, TypeError):
        return None


def journal_objection(begins: float | None, launched: float, since: float) -> str | None:
    """Why a host's journal cannot tell of all from ``since`` on; all in seconds of the epoch."""
    if begins is None:
        return "its journal is empty"
    if begins <= max(since, launched + BOOT_SECONDS):
        return None
    at = datetime.fromtimestamp(begins, UTC).isoformat(timespec="seconds")
    return f"its journal begins at {at}; what was before is in CloudWatch Logs only"


def login_objection(seen: Login, grants: Mapping[int, Grant]) -> str | None:
    """Why a login by certificate cannot be: nobody was granted it. None for a plain key."""
    if seen.serial is None:
        return None
    grant = grants.get(seen.serial)
    if grant is None:
        return f"no certificate with serial {seen.serial} was ever granted: the CA's key is stolen"
    if grant.name != seen.name:
        return f"serial {seen.serial} was granted to {grant.name}, not to {seen.name}"
    if grant.fingerprint != seen.fingerprint:
        return (
            f"serial {seen.serial} was granted to {grant.name} for the key {grant.fingerprint}, not"
            f" for {seen.fingerprint}: the CA's key is stolen"
        )
    return None


def host_names(name: str, *others: str | None) -> list[str]:
    """What a host's certificate is for: its names and addresses, once each."""
    return list(dict.fromkeys(one for one in (name, *others) if one))


def is_same(body: bytes, told: bytes) -> bool:
    """Whether two documents say the same; a list of revoked keys carries the time it was made."""
    try:
        return _without_date(body) == _without_date(told)
    except (ValueError, KeyError, TypeError):
        return False


def _without_date(body: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(body)
    # Magic, format (4) and version (8 bytes), then the time in 8.
    revoked = base64.b64decode(found["revoked"])
    return found | {"revoked": (revoked[:20], revoked[28:])}
