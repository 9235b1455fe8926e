"""This host's HAProxy serves what is stored: tokens by its map, the certificate without a reload.

The file is written first, then the process is told: whatever starts in between has the new one, and
a turn that was cut off is done again by the next one, which compares with both.
"""

from __future__ import annotations

from pathlib import Path

from flotilla import files
from flotilla.certificate import pem
from flotilla.certificate.store import Shared
from flotilla.errors import FlotillaError, HostFailed
from flotilla.hosts.haproxy import Runtime
from flotilla.rules import acme as rules
from flotilla.rules.acme import MAP, Issued


class Follower:
    """One HAProxy, its certificate's file and its map's."""

    def __init__(
        self,
        runtime: Runtime,
        domain: str,
        *,
        certificate: Path = Path("/etc/haproxy/edge.pem"),
        map_file: Path = Path(MAP),
    ) -> None:
        self._runtime, self._domain = runtime, domain
        self._certificate, self._map_file = certificate, map_file

    def follow(self, shared: Shared, now: float) -> str:
        """Serve what is stored; the serial number that is served, "" for none of a stored one.

        Raises Refused for a stored certificate that is none of ours: what is served stays.
        """
        serial, trouble = "", None
        try:
            serial = self._serve(shared.certificate, now) if shared.certificate else ""
        except FlotillaError as error:
            trouble = error
        # A certificate that was trusted a turn ago still is: nothing else was loaded.
        certified = bool(serial) if trouble is None else rules.CERTIFIED in self._running()
        self._answer(rules.entries(shared.tokens.now(now), certified=certified))
        if trouble:
            raise trouble
        return serial

    def _serve(self, text: str, now: float) -> str:
        wanted = pem.read(text)
        if why := rules.unfit(wanted, self._domain, now):
            raise HostFailed(f"the stored certificate is {why}, and is not served")
        before = self._certificate.read_text() if self._certificate.exists() else ""
        files.replace(self._certificate, text)
        if self._served() != wanted.serial:
            try:
                self._runtime.load_certificate(str(self._certificate), text)
            except FlotillaError:
                # What HAProxy refuses now, it would refuse to start with.
                if before:
                    files.replace(self._certificate, before)
                raise
        if (found := self._served()) != wanted.serial:
            raise HostFailed(f"HAProxy serves {found or 'nothing'} and was given {wanted.serial}")
        return wanted.serial

    def _served(self) -> str:
        found = self._runtime.certificates()
        mine = (one for one in found if one.file == str(self._certificate))
        return next((one.serial.lstrip("0") for one in mine), "")

    def _running(self) -> dict[str, str]:
        try:
            return rules.running(self._runtime.map(MAP))
        except ValueError as error:
            raise HostFailed(
                f"HAProxy answers {str(error)!r} to 'show map {MAP}'",
                "its configuration is older than fleet.lb.acme",
                next="fab fleet.configure --limit lb",
            ) from None

    def _answer(self, wanted: dict[str, str]) -> None:
        files.replace(self._map_file, rules.map_text(wanted), mode=0o644)
        if commands := rules.map_commands(self._running(), wanted):
            self._runtime.command(*commands)


def current(text: str) -> Issued | None:
    """What a stored certificate says; None for none, and for one that cannot be read."""
    try:
        return pem.read(text) if text else None
    except FlotillaError:
        return None
