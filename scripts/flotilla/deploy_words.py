"""The options of a deploy as they are typed, for fab and for the script.

It imports nothing of ours: fab reads it at every start, also of commands that deploy nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from shlex import quote

# What each option means, for fab and for the script.
HELP = {
    "version": "the release to deploy; fab app.list shows them",
    "batches": "sizes of the batches, the last one repeats (default: fleet.yml's)",
    "floor": "percent of the serving hosts that stay in rotation (default: fleet.yml's)",
    "headroom": "percent of the peak load that those must be able to take (default: fleet.yml's); "
    "0 does not look at the load",
    "adopt": "take hosts along that somebody left drained or in maintenance",
    "outage": "accept that nobody serves meanwhile, as with a single host",
    "plan": "run this saved plan; refused, host by host, when anything changed since",
    "reason": "why, for the lock, the audit line and whoever is notified",
    "override-freeze": "deploy in a freeze window, for this reason",
}


@dataclass(frozen=True, slots=True)
class Words:
    """The options as they were typed, "" or False for those that were not."""

    version: str = ""
    batches: str = ""
    floor: str = ""
    headroom: str = ""
    adopt: bool = False
    outage: bool = False
    plan: str = ""
    reason: str = ""
    override_freeze: str = ""

    @property
    def rolling(self) -> dict[str, str | bool]:
        """What says how to roll: a saved plan has all of it."""
        names = ("version", "batches", "floor", "headroom", "adopt", "outage")
        return {name: value for name in names if (value := getattr(self, name))}

    @property
    def typed(self) -> str:
        """The options again, as one types them."""
        others = ("plan", "reason", "override_freeze")
        values = self.rolling | {name: getattr(self, name) for name in others}
        return " ".join(
            f"--{name.replace('_', '-')}" + ("" if value is True else f" {quote(str(value))}")
            for name, value in values.items()
            if value
        )
