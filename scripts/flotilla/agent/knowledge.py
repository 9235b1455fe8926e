"""What a host knows of its cluster beyond its own server: the record, and who the members are.

Read every two seconds on a thread of its own, so that a slow API holds up neither answers nor
detection. The members are kept on the disk: a host that boots while EC2 does not answer must still
find its primary.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from flotilla import files
from flotilla.errors import FlotillaError
from flotilla.mysql.record import Records
from flotilla.rules.mysql_standing import Standing
from flotilla.rules.mysql_state import Place, State

READ_SECONDS = 2.0
PLACES_SECONDS = 60.0
# Nobody who is in a hurry makes the record be read more often.
HURRY_SECONDS = 0.15

log = logging.getLogger("flotilla.watcher")


class Inventory(Protocol):
    """Who lists the members."""

    def places(self) -> tuple[Place, ...]:
        """Every member that may come back to life."""


# Whether some member is seen to follow this host under its term, with the record out of reach.
Vouched = Callable[[State], bool]


class Knowledge:
    """The newest record and members; ``clock`` is monotonic. Reading is for one thread."""

    def __init__(
        self,
        instance_id: str,
        records: Records,
        inventory: Inventory,
        kept: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.instance_id = instance_id
        self.records = records
        self._inventory = inventory
        self._kept = kept
        self._clock = clock
        self._wanted = threading.Event()
        self._places_at: float | None = None
        self._said = ""
        self.state: State | None = None
        self.heard_at: float | None = None
        self.vouched: Vouched = lambda _: False
        self.places: Mapping[str, Place] = _read(kept)

    @property
    def me(self) -> Place | None:
        """This host among the members; None while it is not known."""
        return next((p for p in self.places.values() if p.instance_id == self.instance_id), None)

    @property
    def primary(self) -> Place | None:
        """Whom the record names, as far as both are known."""
        named = self.state.record.instance_id if self.state else None
        return next((p for p in self.places.values() if p.instance_id == named), None)

    def standing(self, gap_at: float) -> Standing:
        """What the endpoint may go by; ``gap_at`` is when this host or its server was away."""
        now, state, heard = self._clock(), self.state, self.heard_at
        return Standing(
            instance_id=self.instance_id,
            record=state.record if state else None,
            heard_age=None if heard is None else now - heard,
            gap_age=now - gap_at,
        )

    def run(self) -> None:
        """Read for ever, every READ_SECONDS and when somebody wants to know."""
        while True:
            start = self._clock()
            self.turn()
            self._wanted.wait(READ_SECONDS)
            self._wanted.clear()
            time.sleep(max(0.0, start + HURRY_SECONDS - self._clock()))

    def hurry(self) -> None:
        """Have the record read again now; does not wait for it."""
        self._wanted.set()

    def turn(self) -> None:
        """Read the record, and the members when it is time for them. Raises nothing of ours."""
        start = self._clock()
        try:
            self.learn(self.records.state(), start)
            self._tell("")
        except FlotillaError as error:
            self._tell(f"the record cannot be read: {error.what}")
            if self.state and self.vouched(self.state):
                self.heard_at = start
        if self._places_at is None or start - self._places_at >= PLACES_SECONDS:
            self._list(start)

    def learn(self, state: State | None, asked_at: float) -> None:
        """Take in a record that was asked for at that moment; an older term is not believed."""
        known = self.state.record.term if self.state else 0
        if state is not None and state.record.term >= known:
            self.state, self.heard_at = state, asked_at

    def _list(self, start: float) -> None:
        try:
            found = self._inventory.places()
        except FlotillaError as error:
            log.info("EC2 does not list the members: %s", error.what)
            # Again soon, but not with every look at the record.
            self._places_at = start - PLACES_SECONDS * 0.8
            return
        self._places_at = start
        # A list without this host is half a list.
        if not any(place.instance_id == self.instance_id for place in found):
            return
        places = {place.name: place for place in found}
        # EC2 forgets a host that was terminated; that its role is still to be taken over stands.
        if self.primary and self.primary.instance_id not in {p.instance_id for p in found}:
            places.setdefault(self.primary.name, self.primary)
        if places != self.places:
            self.places = places
            with suppress(FlotillaError):  # a full disk
                files.replace(self._kept, json.dumps([asdict(p) for p in places.values()]))

    def _tell(self, trouble: str) -> None:
        if trouble != self._said:
            log.info("%s", trouble or "the record can be read again")
            self._said = trouble


def _read(path: Path) -> Mapping[str, Place]:
    try:
        return {one["name"]: Place(**one) for one in json.loads(path.read_text())}
    except (OSError, ValueError, TypeError, KeyError):
        return {}
