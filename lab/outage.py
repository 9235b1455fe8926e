"""Faults of the API itself: slow answers, refusals, connections that end without an answer, and
things that take effect long after the answer.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MODES = ("503", "hangup")

_LOOK_SECONDS = 0.1

_UNAVAILABLE = (
    b"<Response><Errors><Error><Code>ServiceUnavailable</Code>"
    b"<Message>The lab's API is in an outage (fab lab.heal ends it).</Message>"
    b"</Error></Errors></Response>"
)


@dataclass(frozen=True, slots=True)
class ApiFault:
    """What happens to calls of `action`, an action or a service; None means all of them.

    A call waits `delay_seconds`; then `mode`, if any, is the end of it. What was asked for begins
    `linger_seconds` after the answer.
    """

    action: str | None = None
    delay_seconds: float = 0.0
    mode: str | None = None
    linger_seconds: float = 0.0


def effect(faults: Iterable[ApiFault], names: Iterable[str]) -> tuple[float, str | None]:
    """Seconds to wait and how to fail, if at all, for a call known by these names."""
    known = {name.lower() for name in names}
    hits = [fault for fault in faults if fault.action is None or fault.action.lower() in known]
    modes = [fault.mode for fault in hits if fault.mode]
    return max((fault.delay_seconds for fault in hits), default=0.0), modes[0] if modes else None


class Gate:
    """Stands in front of the API and lets calls through, late or not at all."""

    def __init__(
        self,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sleep, self._clock = sleep, clock
        self._lock = threading.Lock()
        self._faults: dict[int, ApiFault] = {}

    def set(self, number: int, fault: ApiFault | None) -> None:
        """Put the fault of this number in force; None ends it."""
        with self._lock:
            faults = {key: held for key, held in self._faults.items() if key != number}
            self._faults = faults if fault is None else {**faults, number: fault}

    def linger(self, action: str, over: Callable[[], bool]) -> None:
        """Return when what `action` asked for may begin: when its time has come, when the fault has
        been healed, or when `over()`. To be called without holding any lock.
        """
        began = self._clock()
        while not over():
            faults = self._faults.values()
            seconds = max((f.linger_seconds for f in faults if f.action == action), default=0.0)
            if self._clock() - began >= seconds:
                return
            self._sleep(_LOOK_SECONDS)

    def refuse(
        self, names: Iterable[str], environ: Mapping[str, Any], start_response: Any
    ) -> Iterable[bytes] | None:
        """The answer (WSGI) to a call that a fault ends; None for one that may go on, perhaps late.

        `names` are the action and the service of the call. To be called without holding any lock.
        """
        if not self._faults:
            return None
        delay, mode = effect(self._faults.values(), names)
        if delay:
            self._sleep(delay)
        if mode is None:
            return None
        if mode == "hangup":  # what is answered below then reaches nobody
            _hang_up(environ)
        length = str(len(_UNAVAILABLE))
        headers = [("Content-Type", "text/xml"), ("Content-Length", length)]
        start_response("503 Service Unavailable", headers)
        return [_UNAVAILABLE]


def _hang_up(environ: Mapping[str, Any]) -> None:
    connection: socket.socket | None = environ.get("werkzeug.socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


# The one in front of this process's API.
gate = Gate()
