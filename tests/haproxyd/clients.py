"""Clients over TLS that keep their connections: HTTP/1.1 here, HTTP/2 in a process of Node.js."""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from haproxyd.certificates import NAME
from haproxyd.edge import Edge

_SCRIPT = Path(__file__).with_name("h2_clients.mjs")


@dataclass
class Seen:
    """What all clients of one kind saw; ``certificates`` counts connections by serial number."""

    served: int = 0
    failed: int = 0
    retried: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    certificates: Counter[int] = field(default_factory=Counter)

    def __str__(self) -> str:
        return (
            f"served {self.served}, failed {self.failed}, retried {self.retried}, "
            f"{sum(self.certificates.values())} connections; {dict(self.failures)}"
        )


class KeepAlive:
    """Threads with one connection each; nothing is sent twice."""

    def __init__(self, edge: Edge, threads: int, pause: float) -> None:
        self.seen, self._edge, self._pause = Seen(), edge, pause
        self._over, self._guard = threading.Event(), threading.Lock()
        self._context = ssl.create_default_context()
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> Seen:
        self._over.set()
        for thread in self._threads:
            thread.join(20)
        return self.seen

    def _ask(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self._over.wait(self._pause * (0.5 + random.random())):
            try:
                connection = connection or self._opened()
                connection.request("GET", "/", headers={"Host": NAME})
                answer = connection.getresponse()
                answer.read()
                failure = "" if answer.status == 200 else f"status {answer.status}"
                if answer.will_close:
                    connection = connection.close()
            except (OSError, http.client.HTTPException) as error:
                failure, connection = type(error).__name__, None
            with self._guard:
                self.seen.served += not failure
                self.seen.failed += bool(failure)
                self.seen.failures.update([failure] if failure else [])

    def _opened(self) -> http.client.HTTPConnection:
        made = http.client.HTTPSConnection(
            self._edge.host, self._edge.tls_port, timeout=20, context=self._context
        )
        made.connect()
        serial = serial_of(made.sock.getpeercert(binary_form=True))
        with self._guard:
            self.seen.certificates[serial] += 1
        return made


def serial_of(certificate: bytes) -> int:
    """The serial number of a certificate in DER."""
    from cryptography import x509

    return x509.load_der_x509_certificate(certificate).serial_number


@contextmanager
def clients(edge: Edge, *, keep_alive: int = 10, sessions: int = 4) -> Iterator[dict[str, Any]]:
    """Both kinds at work during the block; filled in afterwards, {"h1": Seen, "h2": Seen}.

    Some 200 requests a second of each kind.
    """
    here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    node = shutil.which("node", path=here)
    if node is None:
        pytest.skip("Node.js is not installed")
    seen: dict[str, Any] = {}
    process = subprocess.Popen(
        [node, str(_SCRIPT), f"https://{edge.host}:{edge.tls_port}", str(sessions), "5", "100"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    first = KeepAlive(edge, keep_alive, 0.05)
    try:
        yield seen
        seen["h1"] = first.stop()
        told = json.loads(process.communicate(timeout=30)[0])
        serials = {int(serial, 16): count for serial, count in told["certificates"].items()}
        keys = ("served", "failed", "retried")
        seen["h2"] = Seen(
            **{key: told[key] for key in keys},
            failures=Counter(told["failures"]),
            certificates=Counter(serials),
        )
    finally:
        first.stop()
        process.kill()
        process.wait()
