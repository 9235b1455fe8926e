"""Ansible's way to ``flotilla.provision``: the fleet planned, made, awaited or taken away.

An action plugin, because it runs in Ansible's own interpreter, which has boto3 and this repository;
a module would be copied to a temporary place first and find neither.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from flotilla import config
from flotilla.errors import FlotillaError
from flotilla.provision import destroy, operate, parts
from flotilla.provision.change import Change
from flotilla.provision.world import World

ARGUMENTS = {
    # planned and leaving only look; ready waits until every host answers SSH.
    "state": {
        "required": True,
        "choices": ["planned", "present", "ready", "leaving", "absent"],
    },
    # Stateful roles that may lose hosts.
    "shrink": {"type": "list", "elements": "str", "default": []},
    # With leaving and absent: buckets and secrets too.
    "data": {"type": "bool", "default": False},
}


class ActionModule(ActionBase):
    """The action ``flotilla_fleet`` on the environment of ``fleet.env``; see ``ARGUMENTS``."""

    _supports_check_mode = True
    _requires_connection = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """``changes`` as sentences; when failed, one message that says what to do next."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(argument_spec=ARGUMENTS)
        try:
            world = World(config.load((task_vars or {})["fleet"]["env"]))
            lines = [str(change) for change in self._act(world, **arguments)]
        except FlotillaError as error:
            return result | {"failed": True, "msg": str(error), "error": error.as_dict()}
        changed = arguments["state"] in {"present", "absent"} and bool(lines)
        if changed and self._task.diff:
            result["diff"] = {"prepared": "\n".join(lines) + "\n"}
        return result | {"changed": changed, "changes": lines}

    def _act(self, world: World, state: str, shrink: list[str], *, data: bool) -> list[Change]:
        if self._task.check_mode:
            state = {"present": "planned", "absent": "leaving", "ready": "skipped"}.get(
                state, state
            )
        quiet = {"confirmed": lambda _plan: None, "said": self._display.vv}
        if state == "present":
            return list(operate.provision(world.settings, shrink=shrink, **quiet).changes)
        if state == "absent":
            return list(operate.take_away(world.settings, data=data, **quiet).changes)
        if state == "planned":
            return parts.plan(world, shrink=shrink)
        if state == "leaving":
            return destroy.plan(world, data=data)
        if state == "ready":
            operate.await_hosts(world.settings, said=self._display.vv)
        return []
