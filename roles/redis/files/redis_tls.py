"""TLS of a running Redis and its Sentinel: what they are given, and whether they serve it.

Redis takes a new certificate while it runs (CONFIG SET), and connections go on. Sentinel has no
such command (Redis 8.0.2: "Invalid argument 'tls-cert-file' to SENTINEL CONFIG SET"), so it is
restarted, one at a time.
"""

import contextlib
import functools
import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

ASK_SECONDS = 2.0
BACK_SECONDS = 15.0
SENTINEL = "redis-sentinel.service"


class TlsError(Exception):
    """It could not be done; the message says what, and what is so now."""


@dataclass(frozen=True)
class Place:
    """This host's address, its certificate (with the key in one file), and who made it."""

    address: str
    leaf: Path
    authority: Path


class Verified(redis.SSLConnection):
    """A connection to a server that the fleet's own authority knows by the address asked for.

    By itself the library would believe every authority that Debian believes, too, and read all of
    those for each connection: 20 ms of a busy host, which is long for a health check.
    """

    def _wrap_socket_with_ssl(self, sock: socket.socket) -> ssl.SSLSocket:
        authority = Path(self.ca_certs)
        context = _believing(authority, authority.stat().st_mtime_ns)
        return context.wrap_socket(sock, server_hostname=self.host)


@functools.lru_cache(maxsize=2)
def _believing(authority: Path, _written: int) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cafile=authority)
    return context


def client(authority: Path, **options: Any) -> Any:
    """A ``redis.Redis`` with its options, that believes only whom ``authority`` vouches for."""
    pool = redis.ConnectionPool(
        connection_class=Verified,
        # Said twice: with a library that asks for no context of ours these hold.
        ssl_ca_certs=str(authority),
        ssl_cert_reqs="required",
        ssl_check_hostname=True,
        **options,
    )
    return redis.Redis.from_pool(pool)


def unverified() -> dict[str, Any]:
    """TLS with whoever is there. For this host's own address only."""
    return {"ssl": True, "ssl_cert_reqs": "none", "ssl_check_hostname": False}


def sentinel_lines(port: int, leaf: Path, authority: Path) -> list[str]:
    """How a Sentinel is reached, and how it reaches others."""
    return [
        "port 0",
        f"tls-port {port}",
        f"tls-cert-file {leaf}",
        f"tls-key-file {leaf}",
        f"tls-ca-cert-file {authority}",
        "tls-protocols TLSv1.3",
        "tls-auth-clients no",
        "tls-replication yes",
    ]


def is_plain(client: Any) -> bool:
    """Whether Redis answers a client that speaks no TLS."""
    try:
        client.ping()
    except (redis.exceptions.AuthenticationError, redis.exceptions.ResponseError):
        return True
    except redis.exceptions.RedisError:
        return False
    return True


def secure(client: Any, owned: Iterable[tuple[str, str]]) -> None:
    """Close the plain port, open the TLS port in its place, and cut who is connected without.

    One command sets all of it or nothing. Raises TlsError.
    """
    wanted = [(name, value) for name, value in owned if name == "port" or name.startswith("tls-")]
    try:
        client.execute_command("CONFIG", "SET", *(word for pair in wanted for word in pair))
        # The link to the primary, those of replicas, and everybody else's, this one excepted.
        for kind in ("MASTER", "REPLICA", "PUBSUB", "NORMAL"):
            client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "YES")
    except redis.exceptions.RedisError as error:
        raise TlsError(f"Redis does not take TLS: {error}") from error


def is_stale(place: Place, port: int) -> bool:
    """Whether another certificate is served there than the host's; False where nobody listens."""
    served = _served(place.address, port)
    return served is not None and served != _first(place.leaf)


def is_trusted(place: Place, authority: Path, port: int) -> bool:
    """Whether clients of the authority believe what is served there; False where nobody listens."""
    context = ssl.create_default_context(cafile=str(authority))
    # Whose address it is, is known.
    context.check_hostname = False
    with (
        contextlib.suppress(OSError),
        socket.create_connection((place.address, port), ASK_SECONDS) as plain,
        context.wrap_socket(plain),
    ):
        return True
    return False


def reload(client: Any, place: Place) -> None:
    """Have a running Redis read its certificate again; connections go on. Raises TlsError."""
    names = {"cert": place.leaf, "key": place.leaf, "ca-cert": place.authority}
    words = [word for name, path in names.items() for word in (f"tls-{name}-file", str(path))]
    try:
        client.execute_command("CONFIG", "SET", *words)
    except redis.exceptions.RedisError as error:
        raise TlsError(f"Redis keeps its old certificate: {error}") from error


def restart_sentinel(
    place: Place, port: int, *, sleep: Any = time.sleep, clock: Any = time.monotonic
) -> None:
    """Restart it, and wait until it serves the certificate. Raises TlsError."""
    done = subprocess.run(
        ["systemctl", "restart", SENTINEL], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise TlsError(f"the Sentinel was not restarted: {done.stderr.strip()}")
    end = clock() + BACK_SECONDS
    while _served(place.address, port) != _first(place.leaf):
        if clock() > end:
            raise TlsError(f"the Sentinel does not serve the certificate after {BACK_SECONDS:g} s")
        sleep(0.1)


def lasts(place: Place, ports: Sequence[int]) -> dict[str, float | None]:
    """How long the certificate lasts that is served, in hours, by the first to end of ``ports``;
    how long one does in all, by this host's settings; and the issuer's days. None for what is
    not there.
    """
    now = time.time()
    served = [
        span for port in ports if (der := _served(place.address, port)) and (span := _span(der))
    ]
    first = min(served, key=lambda span: span[1], default=None)
    blocks = _text(place.leaf).split(_BEGIN)[1:]
    issuer = _span(_der(blocks[1])) if len(blocks) > 1 else None
    return {
        "hours_left": (first[1] - now) / 3600 if first else None,
        "hours": _hours(place.leaf.with_name("tls.json")),
        "issuer_days_left": (issuer[1] - now) / 86400 if issuer else None,
    }


def _hours(settings: Path) -> float | None:
    """A certificate is valid from before it was made: its own dates do not tell."""
    try:
        return float(json.loads(settings.read_text())["hours"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def _der(block: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert(_BEGIN + block.partition(_END)[0] + _END)


def _span(der: bytes) -> tuple[float, float] | None:
    """From when to when it is valid, in seconds since the epoch."""
    # Late: 0.1 s, which a start or a health check does not need.
    from cryptography import x509  # noqa: PLC0415

    try:
        found = x509.load_der_x509_certificate(der)
    except ValueError:
        return None
    return found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp()


def _served(address: str, port: int) -> bytes | None:
    """The certificate that a server shows, in DER; whether it is good is not asked here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        contextlib.suppress(OSError),
        socket.create_connection((address, port), ASK_SECONDS) as plain,
        context.wrap_socket(plain) as encrypted,
    ):
        return encrypted.getpeercert(binary_form=True)
    return None


def _first(leaf: Path) -> bytes:
    _, begin, rest = _text(leaf).partition(_BEGIN)
    if not begin:
        raise TlsError(f"{leaf} holds no certificate")
    return _der(rest)


def _text(leaf: Path) -> str:
    try:
        return leaf.read_text()
    except OSError as error:
        raise TlsError(f"{leaf} cannot be read: {error.strerror}") from error
