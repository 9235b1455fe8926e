"""The load balancer pair as a drill sees it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from flotilla.aws import edge
from flotilla.drill.subject import START_SECONDS, awaited, started
from flotilla.errors import FlotillaError
from flotilla.hosts.ssh import Runner
from flotilla.rules.drill_lb import Told, disorder
from flotilla.settings import Settings
from flotilla.snapshot import Host

# The address service writes at every look, which are 5 s apart, and at every event.
FRESH_SECONDS = 12.0
WHOLE_SECONDS = 90.0
ASK_SECONDS = 4.0
_ASK = "cat /run/flotilla-address/state.json; echo; date +%s.%N"


class Pair:
    """Who has the address, who believes to be master, and how the pair comes back."""

    def __init__(self, settings: Settings, runner: Runner, hosts: Mapping[str, Host]) -> None:
        self._settings, self._runner, self._hosts = settings, runner, hosts
        self._names = {host.instance_id: name for name, host in hosts.items()}

    def owners(self) -> list[str]:
        """Whom the address is with, by name; "" for a host that is no load balancer of ours."""
        return [self._names.get(one, "") for one in edge.owners(self._settings)]

    def disorder(self, but: str = "") -> str:
        """See ``rules.drill_lb.disorder``. Raises FlotillaError when EC2 does not answer."""
        asked = [name for name in self._hosts if name != but]
        with ThreadPoolExecutor(max(1, len(asked))) as pool:
            told = dict(zip(asked, pool.map(self._told, asked), strict=True))
        return disorder(self.owners(), told | {but: Told()} if but else told, but=but)

    def mend(self, name: str) -> None:
        """Start a host that was stopped, and wait until all is in order. Raises FlotillaError."""
        if started(self._settings, self._hosts[name].instance_id):
            awaited(lambda: not self._told(name).why, START_SECONDS, f"{name} answers SSH")
        why = ""

        def whole() -> bool:
            nonlocal why
            why = self.disorder()
            return not why

        try:
            awaited(whole, WHOLE_SECONDS, "the pair is whole")
        except FlotillaError:
            raise FlotillaError(
                f"the load balancers are not in order after the drill: {why}", next="fab lb.status"
            ) from None

    def _told(self, name: str) -> Told:
        try:
            said = self._runner.run(name, _ASK, sudo=True, seconds=ASK_SECONDS).stdout
            state, _, clock = said.strip().rpartition("\n")
            seen = json.loads(state)
            return Told(str(seen["vrrp"]), float(clock) - float(seen["at"]) < FRESH_SECONDS)
        except FlotillaError as error:
            return Told(why=error.what)
        except (ValueError, KeyError, TypeError) as error:
            return Told(why=f"its report cannot be read ({type(error).__name__})")
