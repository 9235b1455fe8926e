"""A real ACME authority (Let's Encrypt's Pebble, from Debian) and the DNS that it asks."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from unit.ports import free_port

from flotilla.wait import until


@dataclass(frozen=True, slots=True)
class Pebble:
    """Where it is, and what its own address is trusted by. One nonce of twenty is refused, as it
    does by itself.
    """

    directory: str
    root: Path
    process: subprocess.Popen[bytes]
    dns: str

    def looks_at(self, address: str) -> None:
        """Every name leads to this address from now on."""
        said = requests.post(f"{self.dns}/set-default-ipv4", json={"ip": address}, timeout=5)
        said.raise_for_status()


@contextmanager
def pebble(folder: Path, *, port: int, address: str) -> Iterator[Pebble]:
    """An authority that looks at ``port`` of ``address`` whatever the name, ended afterwards."""
    if shutil.which("pebble") is None:
        pytest.skip("Pebble is not installed: apt-get install pebble")
    folder.mkdir(parents=True, exist_ok=True)
    listen, management, dns, dns_management = (free_port() for _ in range(4))
    root = _certificate(folder)
    config = {
        "listenAddress": f"127.0.0.1:{listen}",
        "managementListenAddress": f"127.0.0.1:{management}",
        "certificate": str(root),
        "privateKey": str(folder / "key.pem"),
        "httpPort": port,
        "tlsPort": free_port(),
        "ocspResponderURL": "",
        "externalAccountBindingRequired": False,
    }
    (folder / "pebble.json").write_text(json.dumps({"pebble": config}))
    quiet = ["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", ""]
    with ExitStack() as stack:
        stack.enter_context(
            _running(
                folder / "dns.log",
                "pebble-challtestsrv",
                *quiet,
                *("-dns01", f"127.0.0.1:{dns}", "-management", f"127.0.0.1:{dns_management}"),
                *("-defaultIPv4", address),
            )
        )
        process = stack.enter_context(
            _running(
                folder / "pebble.log",
                "pebble",
                *("-config", str(folder / "pebble.json"), "-dnsserver", f"127.0.0.1:{dns}"),
            )
        )
        for one in (listen, dns_management):
            until(lambda one=one: _listens(one), seconds=20, every=0.05)
        directory = f"https://127.0.0.1:{listen}/dir"
        yield Pebble(directory, root, process, f"http://127.0.0.1:{dns_management}")


def _certificate(folder: Path) -> Path:
    """Its own, for HTTPS on loopback, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    private = key.private_bytes(*form, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private)
    (folder / "root.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return folder / "root.pem"


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@contextmanager
def _running(log: Path, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_AUTHZREUSE": "0"}
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=out, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
