"""Ansible's way to ``flotilla.access.authority``: the certificate of a host.

An action plugin for the reason given in ``flotilla_fleet``; the CA's key stays on this machine.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from flotilla import config
from flotilla.access import authority
from flotilla.errors import FlotillaError


class ActionModule(ActionBase):
    """The action ``flotilla_certificate``: ``certificate`` is the one to have, old or new."""

    _supports_check_mode = True
    _requires_connection = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """``key`` is the host's, ``names`` what it is reached by; nothing secret is returned."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, given = self.validate_argument_spec(
            argument_spec={
                "key": {"type": "str", "required": True, "no_log": False},
                "certificate": {"type": "str", "default": ""},
                "names": {"type": "list", "elements": "str", "required": True},
            }
        )
        try:
            settings = config.load((task_vars or {})["fleet"]["env"])
            signer = authority.Authority(settings)
            made = authority.renewed(
                signer, given["key"], given["certificate"], given["names"], now=int(time.time())
            )
        except FlotillaError as error:
            return result | {"failed": True, "msg": str(error), "error": error.as_dict()}
        return result | {"changed": made != given["certificate"], "certificate": made}
