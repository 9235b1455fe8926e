"""A program on another host that answers questions, through one SSH session that stays open.

A question costs one round trip instead of a session, sudo and an interpreter each: on a host with
half a core to spare those take a third of a second. Questions and answers are JSON objects, a line
each.
"""

from __future__ import annotations

import contextlib
import json
import select
import threading
from collections.abc import Mapping
from typing import Any, Protocol

from flotilla.errors import HostFailed, Unreachable
from flotilla.words import last_line

# How long a program that said something else than an answer has to end its last words.
_LAST_WORDS_SECONDS = 1.0
_CHUNK = 1 << 18


class Channel(Protocol):
    """What of a paramiko channel is used here."""

    def fileno(self) -> int:
        """For select: readable when there is something to read, or the end."""

    def settimeout(self, seconds: float) -> None:
        """Time limit of one read or write."""

    def sendall(self, data: bytes) -> None:
        """Write all of it. Raises OSError."""

    def recv(self, size: int) -> bytes:
        """Read; empty at the end. Raises OSError, TimeoutError."""

    def close(self) -> None:
        """End it; the program ends with its input."""


class Streams(Protocol):
    """What is asked of SSH; `flotilla.hosts.ssh.Runner` is one."""

    def stream(self, host: str, command: str, *, sudo: bool = False) -> Channel:
        """A running command as a socket. Raises Unreachable."""


class Lines:
    """One program on one host. Safe for threads; it is started when it is first needed."""

    def __init__(self, runner: Streams, host: str, command: str) -> None:
        self._runner = runner
        self._host = host
        self._command = command
        self._lock = threading.Lock()
        self._channel: Channel | None = None
        self._unread = b""

    def ask(self, question: Mapping[str, Any], *, seconds: float, again: bool) -> dict[str, Any]:
        """The answer. A program that has ended since the last question is started again.

        ``again``: also ask again when it ends in the middle of this one. Raises Unreachable after
        ``seconds``, ConnectionError when it ended, HostFailed with what it said instead.
        """
        line = (json.dumps(question) + "\n").encode()
        with self._lock:
            if self._channel is not None and self._has_ended(self._channel):
                self._closed()
            fresh = self._channel is None
            try:
                return self._exchange(line, seconds)
            except ConnectionError:
                if fresh or not again:
                    raise
                return self._exchange(line, seconds)

    @staticmethod
    def _has_ended(channel: Channel) -> bool:
        # Nothing was asked, so all there can be to read is the end.
        try:
            return bool(select.select([channel], [], [], 0)[0])
        except (OSError, ValueError):
            return True

    def _exchange(self, line: bytes, seconds: float) -> dict[str, Any]:
        try:
            channel = self._opened(seconds)
            self._sent(channel, line)
            while b"\n" not in self._unread:
                self._unread += self._received(channel)
        except TimeoutError:
            self._closed()
            raise Unreachable(
                f"{self._host}: no answer in {seconds:g} s", next="fab fleet.status"
            ) from None
        except OSError as error:
            self._closed()
            raise ConnectionError(str(error) or type(error).__name__) from error
        answer, _, rest = self._unread.partition(b"\n")
        try:
            said: dict[str, Any] = json.loads(answer)
        except ValueError:
            raise HostFailed(f"{self._host}: {self._last_words(channel)}") from None
        self._unread = rest
        return said

    @staticmethod
    def _sent(channel: Channel, line: bytes) -> None:
        try:
            channel.sendall(line)
        except TimeoutError:
            raise
        except OSError:
            pass  # it has ended, and may have said why: that is read next

    @staticmethod
    def _received(channel: Channel) -> bytes:
        chunk = channel.recv(_CHUNK)
        if not chunk:
            raise ConnectionError("its SSH session ended")
        return chunk

    def _last_words(self, channel: Channel) -> str:
        """The last line of a program that is no such program, or that broke."""
        said = self._unread
        channel.settimeout(_LAST_WORDS_SECONDS)
        with contextlib.suppress(OSError):
            while True:
                said += self._received(channel)
        self._closed()
        return last_line(said.decode(errors="replace"), "it said nothing")

    def _opened(self, seconds: float) -> Channel:
        if self._channel is None:
            self._channel = self._runner.stream(self._host, self._command, sudo=True)
            self._unread = b""
        self._channel.settimeout(seconds)
        return self._channel

    def _closed(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = None
