"""Certificate, chain and key as HAProxy has them: one PEM text, and what it says."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from flotilla.errors import Refused
from flotilla.rules.acme import Issued


def read(text: str) -> Issued:
    """What the first certificate of a PEM text says, whose key is in the text too.

    Raises Refused for a text that HAProxy would not serve.
    """
    data = text.encode()
    try:
        first = x509.load_pem_x509_certificates(data)[0]
        key = serialization.load_pem_private_key(_key_of(text), None)
    except (ValueError, TypeError, IndexError) as error:
        raise _refused(f"it is no certificate with its key: {error}") from None
    form = (
        serialization.Encoding.DER,
        serialization.PublicFormat.SubjectPublicKeyInfo,
    )
    if key.public_key().public_bytes(*form) != first.public_key().public_bytes(*form):
        raise _refused("its key is another certificate's")
    return Issued(
        serial=f"{first.serial_number:X}",
        issuer=first.issuer.rfc4514_string(),
        names=_names(first),
        begins_at=first.not_valid_before_utc.timestamp(),
        ends_at=first.not_valid_after_utc.timestamp(),
    )


def new_key() -> bytes:
    """A key as PEM: P-256, which every client of TLS 1.2 knows, and every authority."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def joined(chain: str, key: bytes) -> str:
    """Certificate, chain and key in one text, without the empty lines that would end a command on
    HAProxy's socket.
    """
    return "".join(f"{line}\n" for line in (chain + key.decode()).splitlines() if line.strip())


def _key_of(text: str) -> bytes:
    """The part of a PEM text that is a key: the library reads only what begins with one."""
    lines = text.splitlines()
    start = next((n for n, line in enumerate(lines) if _is_mark(line, "BEGIN")), len(lines))
    return "\n".join(lines[start:]).encode()


def _is_mark(line: str, word: str) -> bool:
    return line.startswith(f"-----{word} ") and "PRIVATE KEY" in line


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    return tuple(found.value.get_values_for_type(x509.DNSName))


def _refused(what: str) -> Refused:
    return Refused(what, untouched="The certificate that is served stays")
