"""HAProxy's sockets on another host through one SSH session that stays open.

The connection to the socket itself is a new one for every question: one that stays open would talk
to the old worker after a reload, and keep it from ending.
"""

from __future__ import annotations

import shlex

from flotilla.hosts.haproxy import ANSWER_SECONDS, SOCKET
from flotilla.hosts.lines import Lines, Streams

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
        self._lines = Lines(runner, host, f"python3 -uc {shlex.quote(_HELPER)}")
        self._path = path
        self._seconds = seconds

    def ask(self, text: str) -> str:
        """Ask the current worker. Raises OSError when HAProxy does not answer, Unreachable."""
        return self._question(self._path, text)

    def master(self, text: str) -> str:
        """Ask the master process. Raises as ``ask``."""
        return self._question(MASTER_SOCKET, text)

    def _question(self, path: str, text: str) -> str:
        question = {"path": path, "seconds": self._seconds, "text": text}
        # Every command we give sets a state, so giving it twice does nothing twice.
        said = self._lines.ask(question, seconds=self._seconds + _GRACE_SECONDS, again=True)
        if "error" in said:
            raise OSError(said["error"])
        answer: str = said["answer"]
        return answer
