"""Ansible's way to the fleet's secrets in SSM: read once, on the operator's machine, for all hosts.

An action plugin for the reason given in ``flotilla_fleet``. The lookup of amazon.aws would ask the
API once for every host, file and secret.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from flotilla import config
from flotilla.aws import secrets
from flotilla.errors import FlotillaError
from flotilla.provision.world import data
from flotilla.rules.secrets import also_accepted


class ActionModule(ActionBase):
    """The action ``flotilla_secrets``: secrets of ``roles``, and ``parameters`` by name."""

    _supports_check_mode = True
    _requires_connection = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """``values``: "<role>/<name>", or the parameter's name, to the secret; needs ``no_log``.

        ``also``: while a secret is rotated, to the further values that servers accept.
        """
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            argument_spec={
                "roles": {"type": "list", "elements": "str", "required": True},
                "parameters": {"type": "list", "elements": "str", "default": []},
            }
        )
        try:
            settings = config.load((task_vars or {})["fleet"]["env"])
            values = secrets.of_roles(settings, arguments["roles"])
            kept = data("secrets.yml")
            made = [f"{role}/{name}" for role in arguments["roles"] for name in kept.get(role, ())]
            secrets.demand(settings, values, made)
            also = also_accepted(values)
            values |= secrets.named(settings, arguments["parameters"])
        except FlotillaError as error:
            return result | {"failed": True, "msg": str(error), "error": error.as_dict()}
        return result | {"changed": False, "values": values, "also": also}
