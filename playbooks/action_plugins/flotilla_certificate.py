"""Ansible's way to ``flotilla.access.authority``: the certificate of a host.

An action plugin for the reason given in ``flotilla_fleet``; the CA's key stays on this machine.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from shlex import quote
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from flotilla.errors import FlotillaError
from flotilla.hosts import certificates


class ActionModule(ActionBase):
    """The action ``flotilla_certificate``: ``certificate`` is the one to have, old or new."""

    _supports_check_mode = True

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """``key`` and ``certificate`` are the host's files of them; a new host has no certificate.

        ``ca`` is who should have signed it, ``names`` what the host is reached by. Nothing secret
        is returned.
        """
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, given = self.validate_argument_spec(
            argument_spec={
                "key": {"type": "str", "required": True, "no_log": False},
                "ca": {"type": "str", "required": True},
                "certificate": {"type": "str", "required": True},
                "names": {"type": "list", "elements": "str", "required": True},
            }
        )
        files = [quote(given[name]) for name in ("key", "certificate")]
        command = f"cat {files[0]} && {{ cat {files[1]} 2>/dev/null || true; }}"
        read = self._low_level_execute_command(command)
        if read["rc"]:
            return result | {"failed": True, "msg": f"{given['key']}: {read['stderr'].strip()}"}
        key, has = [*read["stdout_lines"], ""][:2]
        now = int(time.time())
        try:
            if certificates.lasts(has, key, given["ca"], given["names"], now=now):
                return result | {"changed": False, "certificate": has}
            # AWS's library costs each of a fleet's hosts a fifth of a second, and is rarely needed.
            from flotilla import config  # noqa: PLC0415
            from flotilla.access import authority  # noqa: PLC0415

            signer = authority.Authority(config.load((task_vars or {})["fleet"]["env"]))
            made = signer.machine(key, given["names"], now=now)
        except FlotillaError as error:
            return result | {"failed": True, "msg": str(error), "error": error.as_dict()}
        return result | {"changed": True, "certificate": made}
