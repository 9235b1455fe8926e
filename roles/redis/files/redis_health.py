"""The HTTP side of a host's health endpoint, and the questions behind it that are always asked."""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

# A word older than this counts as none: whoever said it may have changed his mind, or be gone.
STALE_SECONDS = 1.0
ASK_EVERY_SECONDS = 0.1


class Watch:
    """Keeps asking one question in a thread of its own, so that a silent host delays no other."""

    def __init__(self, ask: Callable[[], Any], nothing: Any) -> None:
        self._ask = ask
        self._nothing = nothing
        self._last: tuple[float, Any] = (float("-inf"), nothing)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            # The time before the question: an answer is as old as the state it tells of may be.
            asked = time.monotonic()
            try:
                self._last = (asked, self._ask())
            except Exception as error:  # the thread must live: its silence would be for ever
                sys.stderr.write(f"cannot ask: {error}\n")
            time.sleep(ASK_EVERY_SECONDS)

    def word(self) -> Any:
        """The last answer, or nothing when it is stale."""
        asked, answer = self._last
        return answer if time.monotonic() - asked <= STALE_SECONDS else self._nothing


def handler(verdict: Callable[[], dict[str, Any]]) -> type[BaseHTTPRequestHandler]:
    """The HTTP side: GET /primary and nothing else."""

    class Health(BaseHTTPRequestHandler):
        timeout = 5

        def handle(self) -> None:
            # HAProxy hangs up as soon as it knows enough: its right, and no error of ours.
            with contextlib.suppress(ConnectionError):
                super().handle()

        def do_GET(self) -> None:
            found = verdict() if self.path == "/primary" else {"reason": "ask for /primary"}
            self.send_response(200 if found.get("primary") else 503 if "primary" in found else 404)
            body = json.dumps(found).encode() + b"\n"
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """A check several times a second is not worth a line in the journal."""

    return Health
