"""The lab process: prepares the machine, serves the APIs, runs the hosts, and leaves nothing
behind.

Started by `lab.control`, inside a private mount namespace. Progress goes as JSON lines to the file
descriptor named on the command line: `{"step": ..., "seconds": ...}`, then `{"ready": true}` or
`{"error": ..., "exit_code": ...}`.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
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
from lab.layout import (
    ACCOUNT,
    API_ADDRESS,
    API_PORT,
    APT_ADDRESS,
    APT_PORT,
    METADATA_ADDRESS,
    REGION,
    ZONES,
    Layout,
    layout,
)
from lab.mirror import find
from lab.podman import Podman
from lab.record import Journal
from lab.run import replace

# A clean-up has the lock for a moment.
_LOCK_SECONDS = 5.0
# glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, mallopt(3), and the most that it takes.
_KEPT = {-3: 32 << 20, -1: 512 << 20}
# Where the lab's parts answer, and for whom.
PORTS = {
    ("127.0.0.1", API_PORT): "the lab's API",
    (API_ADDRESS, API_PORT): "the lab's API, for hosts,",
    (METADATA_ADDRESS, 80): "the instance metadata service",
    (APT_ADDRESS, APT_PORT): "the lab's proxy of package mirrors",
}


class Interrupted(LabError):  # noqa: N818  not the lab's error
    """Told to end before the lab was up."""

    exit_code = 99


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

    def demand_listener(self) -> None:
        """Raise Interrupted when whoever started the lab is gone, as after a kill."""
        end = select.poll()
        end.register(self._out.fileno(), 0)
        if any(event & select.POLLERR for _, event in end.poll(0)):
            raise Interrupted(
                "whoever started the lab has ended; everything it had made is removed"
            )

    def tell(self, what: Mapping[str, Any]) -> None:
        """Send one line; nobody need be listening any more."""
        try:
            self._out.write(json.dumps(what) + "\n")
            self._out.flush()
        except (BrokenPipeError, ValueError):
            pass


def lock(where: Layout) -> None:
    """Hold the machine's lab lock until this process is gone, which is what others wait for.

    So it is a bare descriptor: Python closes its files some time before a process ends.
    """
    where.machine.mkdir(parents=True, exist_ok=True)
    handle = os.open(where.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise occupied(preflight.owner(where)) from error
            time.sleep(0.1)
        else:
            return


def occupied(other: preflight.Owner | None) -> Unmet:
    """The error for whoever wants a lab while there is one already."""
    who = f"process {other.pid}, from {other.repo}" if other else "it ends just now"
    return Unmet(
        f"another lab runs on this machine ({who})",
        why="its addresses and bridges are machine-wide; nothing was changed",
        next_command=f"cd {other.repo} && fab lab.down" if other else "the same command again",
    )


def prepare(where: Layout, progress: Progress) -> tuple[Podman, str, bool]:
    """Clean up, make the network, have the base image; returns podman, the base image's id, whether
    it is new.
    """
    namespace.enter()
    found = leftovers.remove(where)
    if found:
        progress.step(f"cleaned up after a lab that did not end well: {len(found)} things")
    preflight.ports(PORTS)
    before = network.sysctls()
    state = {
        "pid": os.getpid(),
        "repo": str(where.repo),
        "storage": str(where.storage),
        "sysctls": before,
    }
    replace(where.state, json.dumps(state))
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
        lock(where)
        stack.callback(_cleaned, where)
        # Nobody may come to have a lab whose start was killed: `lab.down` may have been there.
        progress.demand_listener()
        podman, image_id, new = prepare(where, progress)
        from lab.lab import Lab  # noqa: PLC0415  see prepare

        journal = stack.enter_context(Journal(where.log))
        progress.demand_listener()
        lab = Lab(where, podman, journal, stop)
        stack.callback(lab.close)
        lab.images(image_id, name(datetime.now(UTC).date()))
        progress.step(f"{len(lab.ec2().amis)} machine images")
        lab.listen([("127.0.0.1", API_PORT), (API_ADDRESS, API_PORT)])
        progress.step("APIs")
        progress.demand_listener()
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
    # S3 takes and gives megabytes at a time. To map them anew each time takes more processor time
    # from the hosts than all else that a request does.
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # the C library may be another
        for option, value in _KEPT.items():
            mallopt(option, value)
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
