"""What goes on around a deploy: a client of ours watches it, an operator may stop it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from flotilla.aws import edge
from flotilla.settings import Settings
from flotilla.traffic import Background

# One request in 50 ms: an interruption of a second costs the probe 20 requests.
PROBE_RATE = 20
INTERRUPTION = "interrupted by the operator"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def watched(settings: Settings, *, enabled: bool) -> Iterator[dict[str, Any]]:
    """A client of the edge address for as long as the block runs; its report is filled in after."""
    seen: dict[str, Any] = {}
    if not enabled:
        yield seen
        return
    page = settings.application.health_path
    arguments = ("--url", edge.url(settings), "--rate", str(PROBE_RATE), "--page", page)
    with Background(*arguments, "--mix", "keep-alive=1,close=1") as traffic:
        yield seen
        report = traffic.stop()
        seen |= {key: report[key] for key in ("served", "failed", "retried", "p50_ms", "p99_ms")}
        seen |= {"failures": report["failures"], "gap_seconds": report["gap_seconds"]}


@contextmanager
def interruption() -> Iterator[Callable[[], str]]:
    """Ctrl-C or SIGTERM ends the deploy after the batch under way and rolls back.

    A second one ends the process at once; the hosts of that moment stay as they are.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda: ""
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        asked.set()
        for one in _SIGNALS:
            signal.signal(one, signal.default_int_handler)

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield lambda: INTERRUPTION if asked.is_set() else ""
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
