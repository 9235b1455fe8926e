"""``ansible.builtin.apt``, asked only where a package is missing.

apt's module opens the whole package cache to say that all is there: eight seconds for twelve hosts
on one machine, in each role, 42 s of a run of 150 s that changed nothing. dpkg says it in 20 ms.
"""

from __future__ import annotations

from shlex import quote
from typing import Any

from ansible.plugins.action import ActionBase

_ASK = "dpkg-query --show --showformat '${db:Status-Status}\\n' -- "


class ActionModule(ActionBase):
    """The action ``flotilla_packages``: arguments are those of apt, with ``name`` and a state of
    ``present``. A name that dpkg does not know, one with a version too, is apt's to judge.
    """

    _supports_check_mode = True

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """As apt answers; unchanged where dpkg has all of them installed."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = self._task.args
        if arguments.get("state") != "present":
            return result | {
                "failed": True,
                "msg": "flotilla_packages: state present, or use apt",
            }
        wanted = arguments["name"]
        names = [wanted] if isinstance(wanted, str) else list(wanted)
        told = self._low_level_execute_command(_ASK + " ".join(map(quote, names)))
        if told["rc"] == 0 and set(told["stdout_lines"]) == {"installed"}:
            return result | {"changed": False}
        answer: dict[str, Any] = self._execute_module(
            module_name="ansible.builtin.apt", module_args=arguments, task_vars=task_vars
        )
        return result | answer
