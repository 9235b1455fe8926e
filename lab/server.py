"""The lab process: prepares the machine, serves the APIs, runs the hosts, and leaves nothing
behind.

Started by `lab.control`, inside a private mount namespace. Progress goes as JSON lines to the file
descriptor named on the command line: `{"step": ..., "seconds": ...}`, then `{"ready": true}` or
`{"error": ..., "exit_code": ...}`.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import IO, Any

from lab import leftovers, namespace, network, preflight
from lab.baseimage import build, name, recipe
from lab.errors import LabError, Unmet
from lab.layout import ACCOUNT, API_ADDRESS, API_PORT, REGION, ZONES, Layout, layout
from lab.mirror import find
from lab.podman import Podman
from lab.record import Journal


class Progress:
    """Tells whoever started the lab how far it is."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._began = time.monotonic()

    def step(self, text: str) -> None:
        """A step is done; it took the time since the last one."""
        now = time.monotonic()
        self.tell({"step": text, "seconds": round(now - self._began, 2)})
        self._began = now

    def tell(self, what: Mapping[str, Any]) -> None:
        """Send one line; nobody need be listening any more."""
        try:
            self._out.write(json.dumps(what) + "\n")
            self._out.flush()
        except (BrokenPipeError, ValueError):
            pass


def lock(where: Layout) -> IO[str]:
    """Hold the machine's lab lock for as long as the returned file is open."""
    where.machine.mkdir(parents=True, exist_ok=True)
    handle = where.lock.open("a")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        other = preflight.owner(where)
        raise Unmet(
            f"another lab runs here (process {other.get('pid')}, from {other.get('repo')})",
            why="its addresses and bridges are machine-wide; nothing was changed",
            next_command=f"cd {other.get('repo')} && fab lab.down",
        ) from error
    return handle


def prepare(where: Layout, progress: Progress) -> tuple[Podman, str, bool]:
    """Clean up, make the network, have the base image; returns podman, the base image's id, whether
    it is new.
    """
    namespace.enter()
    found = leftovers.remove(where)
    if found:
        progress.step(f"cleaned up after a lab that did not end well: {len(found)} things")
    preflight.port()
    before = network.sysctls()
    state = {
        "pid": os.getpid(),
        "repo": str(where.repo),
        "storage": str(where.storage),
        "sysctls": before,
    }
    where.state.write_text(json.dumps(state))
    network.up()
    progress.step("network")
    podman, how = Podman.of(where), recipe(find())
    image_id = how.image_id()
    from lab.amis import reference  # noqa: PLC0415  moto takes two seconds to import; errors come before

    new = not podman.has_image(reference(image_id))
    if new:
        build(how, podman, reference(image_id), where.cache / "tmp")
        progress.step("base image built")
    return podman, image_id, new


def serve(where: Layout, progress: Progress, stop: threading.Event, ready: threading.Event) -> None:
    """Run the lab until `stop` is set."""
    with ExitStack() as stack:
        stack.enter_context(lock(where))
        stack.callback(_cleaned, where)
        podman, image_id, new = prepare(where, progress)
        from lab.lab import Lab  # noqa: PLC0415  see prepare

        journal = stack.enter_context(Journal(where.log))
        lab = Lab(where, podman, journal, stop)
        stack.callback(lab.close)
        lab.images(image_id, name(datetime.now(UTC).date()))
        progress.step(f"{len(lab.ec2().amis)} machine images")
        lab.listen([("127.0.0.1", API_PORT), (API_ADDRESS, API_PORT)])
        progress.step("APIs")
        ready.set()
        progress.tell({"ready": True})
        journal.log(
            "up",
            {"pid": os.getpid(), "account": ACCOUNT, "region": REGION, "zones": ZONES, "new": new},
        )
        stop.wait()
        journal.log("down", {})


def _cleaned(where: Layout) -> None:
    leftovers.remove(where)


class Interrupted(LabError):  # noqa: N818  not the lab's error
    """Told to end before the lab was up."""

    exit_code = 99


def _on_signals(stop: threading.Event, ready: threading.Event) -> None:
    def handler(_: int, __: object) -> None:
        first = not stop.is_set()
        stop.set()
        if first and not ready.is_set():
            raise Interrupted(
                "interrupted before the lab was up; everything it had made is removed"
            )

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, handler)


def main(argv: list[str]) -> int:
    """Run the lab; returns the exit code."""
    progress = Progress(os.fdopen(int(argv[1]), "w") if len(argv) > 1 else sys.stdout)
    stop, ready = threading.Event(), threading.Event()
    _on_signals(stop, ready)
    try:
        serve(layout(), progress, stop, ready)
    except LabError as error:
        progress.tell({"error": str(error), "exit_code": error.exit_code})
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
