"""The fleet's own certificate authority: a root, and an issuer for each role that serves TLS.

The root's key stays with the operator. An issuer's key is on the role's hosts, which make their own
short-lived certificates with it (roles/tls). Invariant: an issuer can vouch for nothing but names
below ``<role>.<fleet>.<env>.internal`` and addresses of the VPC, and can make no further issuer.
"""

from __future__ import annotations

import ipaddress
from datetime import datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ROOT_DAYS = 3650
ISSUER_DAYS = 730
# Of its life; any `fab fleet.provision` then makes the next one.
RENEW_AT = 1 / 3
# Clocks of hosts differ by less.
BEFORE = timedelta(hours=1)

_CA_USAGE = x509.KeyUsage(
    digital_signature=False, content_commitment=False, key_encipherment=False,
    data_encipherment=False, key_agreement=False, key_cert_sign=True, crl_sign=True,
    encipher_only=False, decipher_only=False,
)  # fmt: skip


class Authority(NamedTuple):
    """A key with its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def pem(self) -> str:
        """Both, as ``read`` takes it: what SSM keeps."""
        key = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return key.decode() + self.public()

    def public(self) -> str:
        """The certificate alone."""
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key of the kind used throughout (P-256)."""
    return ec.generate_private_key(ec.SECP256R1())


def read(pem: str) -> Authority:
    """A key and its certificate from ``pem``. Raises ValueError when they are not there."""
    key = serialization.load_pem_private_key(pem.encode(), None)
    certificate = x509.load_pem_x509_certificate(pem.encode())
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == certificate.public_key():
        return Authority(key, certificate)
    raise ValueError("the key is not the certificate's")


def root(fleet: str, env: str, key: ec.EllipticCurvePrivateKey, now: datetime) -> Authority:
    """The authority that everybody trusts."""
    name = _name(f"{fleet}-{env} root")
    builder = _authority(name, name, key, now, days=ROOT_DAYS, below=1)
    return Authority(key, builder.sign(key, hashes.SHA256()))


def issuer(
    zone: str, network: str, above: Authority, key: ec.EllipticCurvePrivateKey, now: datetime
) -> Authority:
    """The authority of one role: for ``zone`` and for addresses of ``network`` (CIDR) only."""
    days = min(ISSUER_DAYS, (above.certificate.not_valid_after_utc - now).days)
    permitted = [x509.DNSName(zone), x509.IPAddress(ipaddress.ip_network(network))]
    subject = _name(f"{zone.partition('.internal')[0]} issuer")
    # RFC 5280, 4.2.1.1, on all but a root: Python 3.13 and later refuse one without.
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(above.key.public_key())
    builder = (
        _authority(subject, above.certificate.subject, key, now, days=days, below=0)
        .add_extension(x509.NameConstraints(permitted, None), critical=True)
        .add_extension(signer, critical=False)
    )
    return Authority(key, builder.sign(above.key, hashes.SHA256()))


def why_new(pem: str, zone: str, network: str, above: x509.Certificate, now: datetime) -> str:
    """Why a role needs another issuer than this one; empty when it does not."""
    try:
        found = read(pem).certificate
    except ValueError as error:
        return f"it cannot be read: {error}"
    try:
        found.verify_directly_issued_by(above)
    except (InvalidSignature, ValueError, TypeError):
        return "another root made it"
    left = found.not_valid_after_utc - now
    if left < (found.not_valid_after_utc - found.not_valid_before_utc) * RENEW_AT:
        return f"it ends {found.not_valid_after_utc:%Y-%m-%d}"
    allowed = found.extensions.get_extension_for_class(x509.NameConstraints).value
    wanted = [x509.DNSName(zone), x509.IPAddress(ipaddress.ip_network(network))]
    return "" if allowed.permitted_subtrees == wanted else "it is for other names"


def _authority(
    subject: x509.Name,
    above: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    *,
    days: int,
    below: int,
) -> x509.CertificateBuilder:
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(above)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BEFORE)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=below), critical=True)
        .add_extension(_CA_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _name(text: str) -> x509.Name:
    # X.509 takes no longer one.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])
