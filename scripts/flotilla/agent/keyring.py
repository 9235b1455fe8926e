"""The passwords that a watcher holds: read from SSM when it starts, and again while it runs.

A rotation gives clients a new value while servers accept both, and refuses the old one once every
watcher has the new one. A restart for it would have HAProxy cut every session of the server.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flotilla.errors import FlotillaError
from flotilla.mysql.accounts import Secrets

# A rotation has them read at once; this is for whoever stores a value by hand.
READ_SECONDS = 300.0
# Nobody who is in a hurry makes SSM be asked more often.
HURRY_SECONDS = 0.5

log = logging.getLogger("flotilla.watcher")


@dataclass(frozen=True, slots=True, repr=False)
class Password:
    """A value, and how often SSM's parameter was written until then. No repr: no logs."""

    value: str
    version: int


# By account. Raises FlotillaError.
Read = Callable[[], Mapping[str, Password]]


class Keyring:
    """The newest passwords that were read; the first are read here. ``turn`` is for one thread."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._held = read()
        self._wanted = threading.Event()
        self._said = ""

    def password(self, account: str) -> str:
        """Of one account, as it is now."""
        return self._held[account].value

    def secrets(self) -> Secrets:
        """Of all accounts, as they are now."""
        return Secrets({account: one.value for account, one in self._held.items()})

    def versions(self) -> dict[str, int]:
        """Account to the version that is used from now on; no value."""
        return {account: one.version for account, one in self._held.items()}

    def hurry(self) -> None:
        """Have them read again now; does not wait for it."""
        self._wanted.set()

    def run(self) -> None:
        """Read for ever, every READ_SECONDS and when somebody wants to know."""
        while True:
            self._wanted.wait(READ_SECONDS)
            self._wanted.clear()
            self.turn()
            time.sleep(HURRY_SECONDS)

    def turn(self) -> None:
        """Read once. What cannot be read leaves what is held. Raises nothing of ours."""
        try:
            found = self._read()
        except FlotillaError as error:
            if error.what != self._said:
                log.warning("the passwords cannot be read again: %s", error.what)
            self._said = error.what
            return
        self._said = ""
        before = self.versions()
        # At once: a session that is opened meanwhile has all of the old ones or all of the new.
        self._held = found
        for account, version in self.versions().items():
            if version != before.get(account):
                log.info("%s: version %d of its password is used from now on", account, version)
