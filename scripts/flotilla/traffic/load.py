"""Open-loop load: a request is sent when it is due, not when the one before was answered.

A closed loop sends less while the servers are slow and so hides the very seconds one looks for.
Latency is counted from the moment a request was due, for slow ones without the time they asked the
server to take: else 3 of 100 slow ones would be the 99th percentile, whatever the others wait.
Nothing is retried in silence: aiohttp sends an idempotent request again when a kept connection was
closed under it, and that counts as retried.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, cycle
from types import SimpleNamespace
from typing import Any

import aiohttp

from flotilla.errors import BadOption
from flotilla.rules.tally import Tally, schedule

# keep-alive and close: pages, on kept and on new connections; sticky: pages asked by clients that
# keep cookies; slow: a request of a second; post: an entry under an id of its own, safe to send
# again.
MIX = {"keep-alive": 45, "close": 20, "sticky": 15, "slow": 3, "post": 17}
KINDS = tuple(MIX)
# A request line may have 4,094 bytes at gunicorn, and an id has 20.
_IDS_AT_ONCE = 100
# Clients with a cookie jar each, in turn: a single one would sit on one server of many.
_STICKY_CLIENTS = 24


@dataclass(frozen=True, slots=True)
class Options:
    """What to send. ``duration`` None: until told to stop. Times in seconds."""

    url: str
    rate: float = 50.0
    duration: float | None = None
    mix: dict[str, int] = field(default_factory=lambda: dict(MIX))
    page: str = "/"
    slow_page: str = "/slow?seconds={seconds:g}"
    slow_seconds: float = 1.0
    post_page: str = "/api/entries"
    timeout: float = 15.0
    # A post is tried again this long; then it has failed.
    retry_for: float = 10.0
    source: str | None = None
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    def __post_init__(self) -> None:
        unknown = sorted(set(self.mix) - set(KINDS))
        if unknown or not any(self.mix.values()) or min(self.mix.values()) < 0:
            raise BadOption(
                f"the mix {self.mix} cannot be sent",
                why=f"it names kinds ({', '.join(KINDS)}) and how often each is sent",
                next="python -m flotilla.traffic --help",
            )
        numbers = {"rate": self.rate, "duration": self.duration, "timeout": self.timeout}
        wrong = [f"{name} {value:g}" for name, value in numbers.items() if not _above(value)]
        if wrong:
            raise BadOption(f"{', '.join(wrong)}: must be above 0")


def _above(value: float | None) -> bool:
    return value is None or value > 0


class Load:
    """One run.

    ``run`` until the duration is over or ``stop`` is called, then ask for ``report``.
    """

    def __init__(self, options: Options, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.options = options
        self._clock = clock
        self._kinds = [kind for kind, weight in options.mix.items() if weight]
        self.tally = Tally(self._kinds, clock())
        self.acked: list[str] = []
        self._stopped = asyncio.Event()
        self._sessions: dict[str, list[aiohttp.ClientSession]] = {}

    def stop(self) -> None:
        """Send no new requests; those under way are still counted."""
        self._stopped.set()

    def mark(self, phase: str) -> None:
        """Requests from now on belong to ``phase``."""
        self.tally.mark(phase, self._clock())

    async def run(self) -> None:
        """Send requests at the rate until it is time to stop, and wait for the last answers."""
        self._sessions = {
            kind: [self._session(kind) for _ in range(_STICKY_CLIENTS if kind == "sticky" else 1)]
            for kind in self._kinds
        }
        under_way: set[asyncio.Task[None]] = set()
        kinds = cycle(schedule(self.options.mix, sum(self.options.mix.values())))
        begun = self._clock()
        try:
            sent = 0
            while not await self._pause(begun, sent):
                due = begun + sent / self.options.rate
                task = asyncio.create_task(self._request(next(kinds), due))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                sent += 1
            if under_way:
                await asyncio.wait(under_way)
        finally:
            for session in chain.from_iterable(self._sessions.values()):
                await session.close()

    def report(self) -> dict[str, Any]:
        """The figures so far."""
        return self.tally.report(self._clock()) | {
            "url": self.options.url,
            "rate": self.options.rate,
            "acked": len(self.acked),
            "cookies": self._cookies(),
        }

    def _cookies(self) -> dict[str, int]:
        """By name of cookie, how many of the sticky clients were given it."""
        jars = [session.cookie_jar for session in self._sessions.get("sticky", [])]
        return dict(Counter(cookie.key for jar in jars for cookie in jar))

    async def lost(self) -> list[str]:
        """Acknowledged entries that the application does not have. Raises aiohttp.ClientError."""
        missing: list[str] = []
        async with aiohttp.ClientSession(timeout=self._timeout()) as session:
            for start in range(0, len(self.acked), _IDS_AT_ONCE):
                ids = ",".join(self.acked[start : start + _IDS_AT_ONCE])
                url = f"{self.options.url}{self.options.post_page}?ids={ids}"
                async with session.get(url) as answer:
                    answer.raise_for_status()
                    missing += (await answer.json())["missing"]
        return missing

    async def _pause(self, begun: float, sent: int) -> bool:
        """Sleep until the next request is due; whether it is time to stop instead."""
        due = begun + sent / self.options.rate
        duration = self.options.duration
        # A count, not a time: 30 requests at 50 a second end after 0.6 s whatever floats say.
        if duration is not None and sent >= round(duration * self.options.rate):
            return True
        delay = due - self._clock()
        if delay <= 0:
            # Behind schedule: let answers be read, or a late sender would starve its own clients.
            await asyncio.sleep(0)
            return self._stopped.is_set()
        try:
            await asyncio.wait_for(self._stopped.wait(), delay)
        except TimeoutError:
            return False
        return True

    def _session(self, kind: str) -> aiohttp.ClientSession:
        trace = aiohttp.TraceConfig()

        async def took_connection(_: object, context: SimpleNamespace, __: object) -> None:
            if isinstance(context.trace_request_ctx, list):
                context.trace_request_ctx.append(1)

        trace.on_connection_create_end.append(took_connection)
        trace.on_connection_reuseconn.append(took_connection)
        source = self.options.source
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                force_close=kind == "close",
                local_addr=(source, 0) if source else None,
            ),
            # The address of a fleet is a number more often than not.
            cookie_jar=aiohttp.CookieJar(unsafe=True)
            if kind == "sticky"
            else aiohttp.DummyCookieJar(),
            timeout=self._timeout(),
            trace_configs=[trace],
        )

    def _timeout(self) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(total=self.options.timeout)

    async def _request(self, kind: str, due: float) -> None:
        phase, client = self.tally.phase, self._client(kind)
        self.tally.sent(kind, phase, self._clock() - due)
        asked = self.options.slow_seconds if kind == "slow" else 0.0
        connections: list[int] = []
        attempts = 0
        while True:
            attempts += 1
            why = await self._attempt(kind, client, connections, f"{self.options.run}-{due:.6f}")
            # One more connection than attempts: aiohttp has sent a request again by itself.
            retries = max(len(connections), attempts) - 1
            now = self._clock()
            if why is None:
                self.tally.served(kind, phase, now, now - due - asked, retries)
                return
            if kind != "post" or now - due > self.options.retry_for:
                self.tally.failed(kind, phase, why, retries)
                return
            await asyncio.sleep(0.1)

    def _client(self, kind: str) -> aiohttp.ClientSession:
        """Whose turn it is."""
        sessions = self._sessions[kind]
        sessions.append(sessions.pop(0))
        return sessions[-1]

    async def _attempt(
        self, kind: str, session: aiohttp.ClientSession, connections: list[int], entry: str
    ) -> str | None:
        """Why the request was not answered as it should be; None when it was."""
        options = self.options
        slow_page = options.slow_page.format(seconds=options.slow_seconds)
        page = {"slow": slow_page, "post": options.post_page}.get(kind, options.page)
        body = {"id": entry, "author": "traffic", "text": f"entry {entry}"}
        try:
            async with session.request(
                "POST" if kind == "post" else "GET",
                options.url + page,
                json=body if kind == "post" else None,
                allow_redirects=False,
                trace_request_ctx=connections,
            ) as answer:
                await answer.read()
                if answer.status != 200:
                    return f"{kind}: status {answer.status}"
        except TimeoutError:
            return f"{kind}: no answer within {options.timeout:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return f"{kind}: {type(error).__name__}"
        if kind == "post":
            self.acked.append(entry)
        return None
