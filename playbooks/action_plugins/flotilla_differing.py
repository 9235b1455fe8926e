"""Which of a role's directories and files are not on a host as they should be, by one question.

A loop of ``template`` or ``file`` asks a host once an item, of which twelve hosts on one machine
take half a second. Where a role has many of them, its loops go over what this returns, and over
nothing on most runs. They stay what changes hosts, and what tells handlers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from shlex import quote
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.plugins.loader import lookup_loader

_LISTS = ("directories", "templates", "copies")
_OWNER = "root:root"


def asked(paths: Iterable[str]) -> str:
    """A shell command that prints a line for each path that is there, then sums of the files."""
    words = " ".join(map(quote, paths))
    told = f"stat --printf '%F\\t%a\\t%U:%G\\t%n\\n' -- {words}; sha256sum -- {words}"
    return f"({told}) 2>/dev/null; true"


def found(lines: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """By path: (kind, mode, owner), and for a file the sum of its content."""
    there: dict[str, tuple[str, ...]] = {}
    for line in lines:
        if "\t" in line:
            *said, path = line.split("\t")
            there[path] = tuple(said)
        elif line:
            digest, _, path = line.partition("  ")
            there[path] = (*there.get(path, ()), digest)
    return there


def as_wanted(kind: str, mode: str, content: bytes | None = None) -> tuple[str, ...]:
    """What ``found`` has of something that is as it should be."""
    told = (kind, mode.lstrip("0"), _OWNER)
    return told if content is None else (*told, hashlib.sha256(content).hexdigest())


class ActionModule(ActionBase):
    """The action ``flotilla_differing``.

    ``directories`` are paths (mode 0755); ``templates`` and ``copies`` have ``src``, ``dest`` and
    perhaps ``mode`` (0644). All are root's. Returns the three lists with only those that differ.
    """

    _supports_check_mode = True

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Never changes anything."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        spec = {name: {"type": "list", "default": []} for name in _LISTS}
        _, given = self.validate_argument_spec(argument_spec=spec)
        wanted = dict.fromkeys(given["directories"], as_wanted("directory", "0755"))
        for item in given["templates"]:
            wanted[item["dest"]] = self._file(item, self._rendered(item["src"], task_vars or {}))
        for item in given["copies"]:
            path = self._find_needle("files", item["src"])
            with open(path, "rb") as file:  # noqa: PTH123
                wanted[item["dest"]] = self._file(item, file.read())
        told = self._low_level_execute_command(asked(wanted))
        there = found(told["stdout_lines"])
        differ = {path for path, how in wanted.items() if _same(there.get(path)) != how}
        lists = {name: [one for one in given[name] if _path(one) in differ] for name in _LISTS}
        return result | lists | {"changed": False}

    def _rendered(self, name: str, task_vars: dict[str, Any]) -> bytes:
        lookup = lookup_loader.get("ansible.builtin.template", self._loader, self._templar)
        text: str = lookup.run([name], variables=task_vars)[0]
        return text.encode()

    @staticmethod
    def _file(item: Mapping[str, Any], content: bytes) -> tuple[str, ...]:
        return as_wanted("regular file", item.get("mode", "0644"), content)


def _same(told: tuple[str, ...] | None) -> tuple[str, ...] | None:
    # stat has a word of its own for a file with nothing in it.
    return told and (told[0].replace("regular empty file", "regular file"), *told[1:])


def _path(one: str | Mapping[str, Any]) -> str:
    return one if isinstance(one, str) else str(one["dest"])
