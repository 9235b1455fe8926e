"""HAProxy's sockets on another host through one SSH session that stays open.

A question costs one round trip instead of a session, sudo and socat each. The connection to the
socket itself is a new one for every question: one that stays open would talk to the old worker
after a reload, and keep it from ending.
"""

from __future__ import annotations

import json
import shlex
import threading
from typing import Protocol

from flotilla.errors import Unreachable
from flotilla.hosts.haproxy import ANSWER_SECONDS, SOCKET

MASTER_SOCKET = "/run/haproxy-master.sock"
# How much longer we wait than the helper on the host does.
_GRACE_SECONDS = 2.0

# Reads {"path", "seconds", "text"} and writes {"answer"} or {"error"}, a JSON object a line.
_HELPER = """
import json, socket, sys
for line in sys.stdin:
    asked = json.loads(line)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(asked["seconds"])
            connection.connect(asked["path"])
            connection.sendall(asked["text"].encode())
            connection.shutdown(socket.SHUT_WR)
            told = b"".join(iter(lambda: connection.recv(65536), b""))
        said = {"answer": told.decode(errors="replace")}
    except OSError as error:
        said = {"error": str(error) or type(error).__name__}
    print(json.dumps(said), flush=True)
"""


class Channel(Protocol):
    """What of a paramiko channel is used here."""

    def settimeout(self, seconds: float) -> None:
        """Time limit of one read or write."""

    def sendall(self, data: bytes) -> None:
        """Write all of it. Raises OSError."""

    def recv(self, size: int) -> bytes:
        """Read; empty at the end. Raises OSError, TimeoutError."""

    def close(self) -> None:
        """End it; the helper ends with its input."""


class Streams(Protocol):
    """What is asked of SSH; `flotilla.hosts.ssh.Runner` is one."""

    def stream(self, host: str, command: str, *, sudo: bool = False) -> Channel:
        """A running command as a socket. Raises Unreachable."""


class Session:
    """The sockets of one host. Safe for threads; the SSH session is opened when it is needed."""

    def __init__(
        self,
        runner: Streams,
        host: str,
        *,
        path: str = SOCKET,
        seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._runner = runner
        self._host = host
        self._path = path
        self._seconds = seconds
        self._lock = threading.Lock()
        self._channel: Channel | None = None
        self._unread = b""

    def ask(self, text: str) -> str:
        """Ask the current worker. Raises OSError when HAProxy does not answer, Unreachable."""
        return self._question(self._path, text)

    def master(self, text: str) -> str:
        """Ask the master process. Raises as ``ask``."""
        return self._question(MASTER_SOCKET, text)

    def _question(self, path: str, text: str) -> str:
        line = json.dumps({"path": path, "seconds": self._seconds, "text": text}) + "\n"
        with self._lock:
            fresh = self._channel is None
            try:
                said = self._exchange(line.encode())
            except ConnectionError:
                # A session of before may have died with its connection. Every command we give sets
                # a state, so giving it twice does nothing twice.
                if fresh:
                    raise
                said = self._exchange(line.encode())
        if "error" in said:
            raise OSError(said["error"])
        return said["answer"]

    def _exchange(self, line: bytes) -> dict[str, str]:
        try:
            channel = self._opened()
            channel.sendall(line)
            while b"\n" not in self._unread:
                chunk = channel.recv(1 << 18)
                if not chunk:
                    raise ConnectionError("its SSH session ended")
                self._unread += chunk
        except TimeoutError:
            self._closed()
            raise Unreachable(
                f"{self._host}: no answer in {self._seconds + _GRACE_SECONDS:g} s",
                next="fab fleet.status",
            ) from None
        except OSError as error:
            self._closed()
            raise ConnectionError(str(error) or type(error).__name__) from error
        answer, _, self._unread = self._unread.partition(b"\n")
        said: dict[str, str] = json.loads(answer)
        return said

    def _opened(self) -> Channel:
        if self._channel is None:
            command = f"python3 -uc {shlex.quote(_HELPER)}"
            self._channel = self._runner.stream(self._host, command, sudo=True)
            self._channel.settimeout(self._seconds + _GRACE_SECONDS)
            self._unread = b""
        return self._channel

    def _closed(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = None
