"""Have a replica prove that backups restore, on a host that is launched for it."""

from __future__ import annotations

from typing import Any

from flotilla.backup import operate
from flotilla.mysql.recorded import Confirmed, Said, recorded
from flotilla.mysql.session import session
from flotilla.settings import Settings


def drill(settings: Settings, *, confirmed: Confirmed, said: Said) -> dict[str, Any]:
    """What ``flotilla.agent.drill.drill`` tells of it, as the timer's drills do.

    Raises Refused without a backup or a replica, HostFailed when a restore failed.
    """
    with session(settings, fresh=True) as opened:
        host = operate.nearest(opened)
        confirmed(
            f"{settings.prefix}: launch a host, restore the newest backup there twice, compare it"
            f" with {host}, and end that host"
        )
        with (
            recorded(settings, "fab backup.drill", said) as steps,
            steps.step(f"restore, and compare with {host}"),
        ):
            steps.result = operate.on_host(opened, host, "drill")
        return steps.result
