"""The health endpoint of a MySQL host: GET /primary and /replica answer 200 or 503 with a reason.

HAProxy on every application host asks it several times a second. The server is read at most once in
``CACHE_SECONDS`` whoever asks, over one connection that stays open, and an answer that takes longer
than ``PROBE_SECONDS`` is a no: a frozen server must never look healthy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from flotilla.errors import FlotillaError
from flotilla.hosts.mysql import SOCKET, Server, read_health
from flotilla.rules.mysql_health import Health, primary_objection, replica_objection

USER = "flotilla_agent"
CACHE_SECONDS = 0.05
PROBE_SECONDS = 0.4
REQUEST_SECONDS = 2.0

log = logging.getLogger("flotilla.agent.mysql")


class Probe:
    """The newest look at the local server, shared by all who ask at the same moment."""

    def __init__(self, read: Callable[[], Health], clock: Callable[[], float]) -> None:
        self._read = read
        self._clock = clock
        # One thread: while a look hangs, everybody waits for that look and no other is started.
        self._pool = ThreadPoolExecutor(1, "probe")
        self._running: asyncio.Future[Health] | None = None
        self._taken = 0.0

    async def health(self) -> Health:
        """Health read within the last CACHE_SECONDS; raises TimeoutError or FlotillaError."""
        if self._running is None or (
            self._running.done() and self._clock() - self._taken > CACHE_SECONDS
        ):
            self._taken = self._clock()
            loop = asyncio.get_running_loop()
            self._running = loop.run_in_executor(self._pool, self._read)
        return await asyncio.wait_for(asyncio.shield(self._running), PROBE_SECONDS)


class Endpoint:
    """Turns a request line into a status and a JSON body."""

    def __init__(self, probe: Probe, lag_limit_seconds: float) -> None:
        self._probe = probe
        self._lag_limit = lag_limit_seconds
        self._said: dict[str, str] = {}

    async def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and body for a path: {"ok", "why", and what was seen of the server}."""
        if path not in {"/primary", "/replica"}:
            return 404, {"ok": False, "why": "there are /primary and /replica"}
        try:
            health = await self._probe.health()
        except TimeoutError:
            return self._say(path, f"MySQL gave no answer within {PROBE_SECONDS:g} s", {})
        except FlotillaError as error:
            return self._say(path, error.what, {})
        objection = (
            primary_objection(health)
            if path == "/primary"
            else replica_objection(health, self._lag_limit)
        )
        return self._say(path, objection or "", asdict(health))

    def _say(self, path: str, why: str, seen: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self._said.get(path) != why:
            self._said[path] = why
            log.info("%s: %s", path, why or "yes")
        return (503 if why else 200), {"ok": not why, "why": why, **seen}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request: HAProxy opens a new one for each check."""
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                request = (await reader.readline()).split()
                while (await reader.readline()).strip():
                    pass
                status, body = await self.answer(request[1].decode("ascii", "replace"))
                writer.write(_response(status, body))
                await writer.drain()
        except (TimeoutError, OSError, ValueError, IndexError):
            log.debug("a request broke off")
        finally:
            writer.close()


def _response(status: int, body: dict[str, Any]) -> bytes:
    reason = {200: "OK", 404: "Not Found", 503: "Service Unavailable"}[status]
    content = json.dumps(body).encode() + b"\n"
    head = (
        f"HTTP/1.0 {status} {reason}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + content


def local_socket() -> socket.socket:
    """A connection to this host's server, where the operating system vouches for who we are."""
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(PROBE_SECONDS)
    stream.connect(SOCKET)
    return stream


async def run(port: int, lag_limit_seconds: float) -> None:
    """Serve for ever."""
    server = Server("local", local_socket, USER)
    probe = Probe(lambda: read_health(server, seconds=PROBE_SECONDS), time.monotonic)
    endpoint = Endpoint(probe, lag_limit_seconds)
    listener = await asyncio.start_server(endpoint.serve, None, port, backlog=256)
    async with listener:
        await listener.serve_forever()


def main() -> None:
    """Parse the command line of the unit and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=3380)
    parser.add_argument("--lag-limit-seconds", type=float, default=5.0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asyncio.run(run(options.port, options.lag_limit_seconds))


if __name__ == "__main__":
    main()
