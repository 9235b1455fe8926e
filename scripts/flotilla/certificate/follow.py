"""This host's HAProxy serves what is stored: tokens by its map, the certificate without a reload.

Invariant: what lies where HAProxy's next start reads it is what HAProxy took. So the certificate is
given to the process first and written when it is served; whatever starts in between has the old one
for a turn. A turn that was cut off is done again by the next one, which compares with both.
"""

from __future__ import annotations

from pathlib import Path

from flotilla import files
from flotilla.certificate import pem
from flotilla.certificate.store import Shared
from flotilla.errors import FlotillaError, HostFailed, Unreachable
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
        # What HAProxy took last: while the disk refuses it, it is not given to it again and again.
        self._taken = ""

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
        kept = self._kept()
        try:
            if self._served() != wanted.serial or text not in (kept, self._taken):
                self._runtime.load_certificate(str(self._certificate), text)
        except Unreachable:
            # Nobody can say whether HAProxy takes it; with what is there it does not start.
            if current(kept) is None:
                files.replace(self._certificate, text, durable=True)
            raise
        if (found := self._served()) != wanted.serial:
            raise HostFailed(f"HAProxy serves {found or 'nothing'} and was given {wanted.serial}")
        self._taken = text
        files.replace(self._certificate, text, durable=True)
        return wanted.serial

    def _kept(self) -> str:
        """What HAProxy's next start would read; "" for nothing."""
        try:
            return self._certificate.read_bytes().decode(errors="replace")
        except OSError:
            return ""

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
