"""Ansible's way to ``flotilla.access.authority``: tell hosts which certificates are good.

An action plugin for the reason given in ``flotilla_fleet``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from flotilla import config
from flotilla.access import authority
from flotilla.errors import FlotillaError


class ActionModule(ActionBase):
    """The action ``flotilla_trust``; it has no arguments."""

    _supports_check_mode = True
    _requires_connection = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Changed when hosts were told something else before; ``host_ca`` is who signs hosts."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        try:
            settings = config.load((task_vars or {})["fleet"]["env"])
            signer = authority.Authority(settings)
            changed = authority.publish(settings, signer, dry=self._task.check_mode)
        except FlotillaError as error:
            return result | {"failed": True, "msg": str(error), "error": error.as_dict()}
        return result | {"changed": changed, "host_ca": signer.host}
