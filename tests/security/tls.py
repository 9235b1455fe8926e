"""What sslyze and testssl.sh say of a server, and a way to servers that are somewhere else."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Half a minute on a quiet machine.
_SCAN_SECONDS = 240
# 2 minutes on a quiet machine.
_GRADE_SECONDS = 1000
# What testssl.sh's letter is made of. All that it looks at takes twice as long.
_GRADED = (
    *("-p", "-s", "-f", "-S", "-h", "-H", "-I", "-T", "-BB", "-R", "-C", "-O", "-Z", "-D", "-A"),
    *("-4", "-J"),
)
# sslyze's own lines of what a profile forbids: "* tls_curves: TLS curves {...} are supported".
_ISSUE = re.compile(r"^\s+\* (\w+: .+)$", re.MULTILINE)
_COMPLIANT = "OK - Compliant."
# No part of the profiles, and of what testssl.sh says for lack of time: on a busy machine it called
# an edge vulnerable that had answered "no renegotiation".
_RENEGOTIATES = re.compile(r"(Client Renegotiation DoS Attack):\s+(VULNERABLE.*)")
_LEFT_OUT = ("cert_", "secure_client_renego")

# MySQL is built with this group, and has no setting for groups. It is stronger than those that the
# profile names, and a client has to ask for it.
_P521 = "tls_curves: TLS curves {'secp521r1'} are supported, but should be rejected."
ACCEPTED = {"mysql": [_P521], "mysql admin": [_P521]}

# sshd has 20 sessions on a connection, and socat stays for half a second.
_SLOTS = threading.BoundedSemaphore(10)

# A connection: a socket, or a channel of SSH.
Stream = Any


def program(name: str) -> str:
    """Where ``make setup`` has put a program."""
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    path = shutil.which(name, path=folders)
    # Not skipped: a gate that opens when its guard is missing is none.
    assert path, f"{name} is not installed. Next: make setup"
    return path


def differences(
    address: tuple[str, int],
    profile: str,
    authority: Path,
    *,
    name: str,
    inside: Sequence[str] = (),
) -> list[str]:
    """What a server does that Mozilla's ``profile`` forbids, by sslyze.

    It has to prove ``name`` to who believes ``authority``. ``inside`` is the beginning of a command
    that runs the rest where the server can be reached.
    """
    done = subprocess.run(
        [
            *inside, program("sslyze"), "--mozilla_config", profile, "--sni", name,
            *("--certinfo_ca_file", str(authority), f"{address[0]}:{address[1]}"),
        ],
        capture_output=True, text=True, timeout=_SCAN_SECONDS, check=False, env=_environment(),
    )  # fmt: skip
    said = done.stdout + done.stderr
    more = [": ".join(found) for found in _RENEGOTIATES.findall(said)]
    if done.returncode == 0:
        assert _COMPLIANT in said, said
        return more
    found = _ISSUE.findall(said[said.rfind("Mozilla's") :])
    assert found, said
    return [*found, *more]


def grade(
    address: tuple[str, int],
    authority: Path,
    folder: Path,
    *,
    name: str,
    inside: Sequence[str] = (),
) -> tuple[str, str, list[str]]:
    """testssl.sh's letter and number for a server, and what it finds of weight.

    What it says of the certificate itself is left out: that is whoever's who ordered it. Whether a
    client may renegotiate sslyze says.
    """
    report = folder / "testssl.json"
    report.unlink(missing_ok=True)
    done = subprocess.run(
        [
            *inside, program("testssl"), "--quiet", "--warnings", "off", "--color", "0",
            *("--add-ca", str(authority), "--ip", address[0], "--nodns", "none"),
            *_GRADED,
            *("--jsonfile", str(report), f"https://{name}:{address[1]}"),
        ],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_GRADE_SECONDS,
        check=False, env=_environment(),
    )  # fmt: skip
    assert report.exists(), done.stdout + done.stderr
    found = {one["id"]: one for one in json.loads(report.read_text())}
    assert "overall_grade" in found, done.stdout + done.stderr
    weighty = [
        f"{one['id']}: {one['finding']}"
        for one in found.values()
        if one["severity"] in {"MEDIUM", "HIGH", "CRITICAL"} and not one["id"].startswith(_LEFT_OUT)
    ]
    return found["overall_grade"]["finding"], found["final_score"]["finding"], weighty


def _environment() -> dict[str, str]:
    """Ours, without what servers are told: a judge offers all that it knows."""
    return {name: value for name, value in os.environ.items() if name != "OPENSSL_CONF"}


def score(what: str, profile: str, found: Sequence[str]) -> str:
    """What the summary says of a server's differences."""
    accepted = ACCEPTED.get(what, [])
    new = [one for one in found if one not in accepted]
    return f"{len(new)} differences from Mozilla's {profile}, {len(accepted)} accepted"


@contextmanager
def front(dial: Callable[[], Stream], *, mysql: bool = False) -> Iterator[tuple[str, int]]:
    """A port of this machine that leads where ``dial`` leads.

    With ``mysql`` what a client of MySQL says before TLS has been said: sslyze does not know it.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_serve, args=(listener, dial, mysql), daemon=True).start()
        try:
            yield listener.getsockname()
        finally:
            # Closing alone does not end an accept() that waits.
            listener.shutdown(socket.SHUT_RDWR)


def _serve(listener: socket.socket, dial: Callable[[], Stream], mysql: bool) -> None:
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_pass_on, args=(client, dial, mysql), daemon=True).start()


def _pass_on(client: socket.socket, dial: Callable[[], Stream], mysql: bool) -> None:
    with client, _SLOTS:
        server = dial()
        try:
            if mysql:
                _ask_for_tls(server)
            back = threading.Thread(target=_pump, args=(server, client), daemon=True)
            back.start()
            _pump(client, server)
            back.join(10)
        except OSError:
            pass
        finally:
            server.close()


def _pump(source: Stream, target: Stream) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _ask_for_tls(server: Stream) -> None:
    """Read MySQL's greeting and answer with an SSLRequest (protocol 4.1)."""
    length = int.from_bytes(_exactly(server, 4)[:3], "little")
    greeting = _exactly(server, length)
    if greeting[0] != 10:
        raise ConnectionError(greeting[3:].decode(errors="replace"))
    flags = 0x0000_8A00  # CLIENT_PROTOCOL_41, CLIENT_SSL, CLIENT_SECURE_CONNECTION
    body = flags.to_bytes(4, "little") + (1 << 24).to_bytes(4, "little") + bytes([45]) + bytes(23)
    server.sendall(len(body).to_bytes(3, "little") + b"\x01" + body)


def _exactly(stream: Stream, count: int) -> bytes:
    found = b""
    while len(found) < count:
        more = stream.recv(count - len(found))
        if not more:
            raise ConnectionError("MySQL hung up")
        found += more
    return found
