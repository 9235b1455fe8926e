"""Learn at once when a host ends: one thread that waits on process descriptors."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable


class Watch:
    """Calls `ended(name, pid)` in a thread of its own, once for each process that was added."""

    def __init__(self, ended: Callable[[str, int], None]) -> None:
        self._ended = ended
        self._poll = select.poll()
        self._known: dict[int, tuple[str, int]] = {}
        self._wake, self._waker = os.pipe()
        self._poll.register(self._wake, select.POLLIN)
        self._closed = False
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def add(self, name: str, pid: int) -> None:
        """Watch a process; one that is already gone is reported as ended."""
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            threading.Thread(target=self._ended, args=(name, pid), daemon=True).start()
            return
        self._known[descriptor] = (name, pid)
        self._poll.register(descriptor, select.POLLIN)
        os.write(self._waker, b"+")

    def close(self) -> None:
        """Stop watching."""
        self._closed = True
        os.write(self._waker, b"x")

    def _run(self) -> None:
        while not self._closed:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._wake:
                    os.read(self._wake, 64)
                    continue
                self._poll.unregister(descriptor)
                name, pid = self._known.pop(descriptor)
                os.close(descriptor)
                threading.Thread(
                    target=self._ended, args=(name, pid), name=f"end-{name}", daemon=True
                ).start()
