"""Ansible's way to ``flotilla.aws.joining``: what a new host of a tier needs, kept in S3.

An action plugin for the reason given in ``flotilla_fleet``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from flotilla import config
from flotilla.aws import joining
from flotilla.errors import FlotillaError
from flotilla.rules import join as rules

_STRINGS = {"type": "list", "elements": "str", "required": True}


class ActionModule(ActionBase):
    """The action ``flotilla_bundle``: ``contents`` are the texts of ``files``, in their order."""

    _supports_check_mode = True
    _requires_connection = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Changed when what was published differs; no file may hold a secret."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, given = self.validate_argument_spec(
            argument_spec={
                "role": {"type": "str", "required": True},
                "parameters": _STRINGS,
                "enable": _STRINGS,
                "start": _STRINGS,
                "files": {"type": "list", "elements": "dict", "required": True},
                "contents": _STRINGS,
            }
        )
        try:
            settings = config.load((task_vars or {})["fleet"]["env"])
            bundle = rules.bundle(
                given["files"],
                given["contents"],
                vpc_id=joining.vpc(settings),
                parameters={
                    name: settings.parameter(*name.split("/")) for name in given["parameters"]
                },
                enable=given["enable"],
                start=given["start"],
            )
            changed = joining.publish(
                settings, given["role"], joining.BUNDLE, bundle, dry=self._task.check_mode
            )
        except FlotillaError as error:
            return result | {"failed": True, "msg": str(error), "error": error.as_dict()}
        return result | {"changed": changed}
