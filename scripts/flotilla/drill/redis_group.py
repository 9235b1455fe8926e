"""The Redis hosts that Sentinel keeps, as a drill sees them."""

from __future__ import annotations

from collections.abc import Mapping

from flotilla.drill.commands import told
from flotilla.drill.subject import Alive, View, awaited, revived
from flotilla.errors import FlotillaError
from flotilla.hosts.ssh import Runner
from flotilla.redis.status import status
from flotilla.settings import Settings
from flotilla.snapshot import Host

# A host that boots, Redis that starts later than a failover takes, a full copy of the data.
WHOLE_SECONDS = 120.0


class Group:
    """A ``Subject`` of a drill, seen from the operator's place."""

    def __init__(self, settings: Settings, runner: Runner, hosts: Mapping[str, Host]) -> None:
        self._settings, self._runner, self._hosts = settings, runner, hosts

    def view(self, but: str = "") -> View:
        """See ``Subject``. ``term`` is 0: what Sentinel counts is nobody's fence."""
        found = status(self._runner, [h for name, h in self._hosts.items() if name != but])
        heard = [one for one in found["members"] if one["role"] != "silent"]
        names = {one["address"]: one["name"] for one in heard}
        return View(found["primary"] or "", 0, "; ".join(found["problems"]), names)

    def arm(self) -> None:
        """See ``Subject``. Nothing holds up a failover of Sentinel."""

    def give(self, to: str) -> None:
        """See ``Subject``."""
        awaited(lambda: not self.view().why, WHOLE_SECONDS, "Redis is whole")
        told(self._settings, "redis.switchover", "--to", to, "--yes")

    def mend(self, old: str, alive: Alive) -> list[str]:
        """See ``Subject``. Whoever comes back follows by itself."""
        words: list[str] = []
        if revived(self._settings, self._runner, self._hosts[old]):
            words.append("stopped")
            alive(old)
        why = ""

        def whole() -> bool:
            nonlocal why
            try:
                why = self.view().why
            except FlotillaError as error:
                why = error.what
            return not why

        try:
            awaited(whole, WHOLE_SECONDS, "Redis is whole")
        except FlotillaError as error:
            raise FlotillaError(
                f"Redis is not whole after the drill: {why}", next="fab redis.status"
            ) from error
        return [*words, "kept" if self.view().primary == old else "rejoined"]
