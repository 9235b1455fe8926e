"""Which of a role's directories, files and units are not as they should be, by one question.

A loop of ``template``, ``file`` or ``systemd_service`` asks a host once an item, of which twelve
hosts on one machine take half a second. Where a role has many of them, its loops go over what this
returns, and over nothing on most runs. They stay what changes hosts, and what tells handlers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from shlex import quote
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.plugins.loader import lookup_loader

_FILES = ("directories", "templates", "copies")
_LISTS = (*_FILES, "present", "units")
_OWNER = "root:root"
_UNIT = "unit\t"


def asked(paths: Iterable[str], units: Iterable[str] = ()) -> str:
    """A shell command: a line for each path that is there, sums of the files, lines for units."""
    words = " ".join(map(quote, paths))
    told = f"stat --printf '%F\\t%a\\t%U:%G\\t%n\\n' -- {words}; sha256sum -- {words}; "
    for unit in units:
        # A unit of its own each time: systemctl names an alias by its other name.
        told += (
            f"printf '{_UNIT}%s\\t' {quote(unit)}; systemctl show --value "
            f"--property=UnitFileState --property=ActiveState -- {quote(unit)} | paste -sd'\\t'; "
        )
    return f"({told}) 2>/dev/null; true"


def found(lines: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """By path: (kind, mode, owner), and for a file the sum of its content.

    By ``unit`` and its name: what systemd says of it.
    """
    there: dict[str, tuple[str, ...]] = {}
    for line in lines:
        if line.startswith(_UNIT):
            _, name, *states = line.split("\t")
            there[_UNIT + name] = tuple(states)
        elif "\t" in line:
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


def as_it_should(unit: Mapping[str, Any], states: Iterable[str]) -> bool:
    """Whether what systemd says of a unit is what ``systemd_service`` would leave as it is."""
    told = set(states)
    wanted = {
        "enabled": {True: bool(told & {"enabled", "enabled-runtime"}), False: "disabled" in told},
        "masked": {True: "masked" in told, False: "masked" not in told},
        "state": {"started": bool(told & {"active", "activating"})},
    }
    return all(wanted[key][value] for key, value in unit.items() if key != "name")


class _Shallow(dict[str, Any]):
    """Variables that the lookup copies as the action ``template`` does.

    ``ansible.builtin.template`` copies a host's variables deeply for each file, facts and all.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return dict(self)


class ActionModule(ActionBase):
    """The action ``flotilla_differing``.

    ``directories`` are paths (mode 0755); ``templates`` and ``copies`` have ``src``, ``dest`` and
    perhaps ``mode`` (0644). All are root's. ``present`` are files that only have to be there.
    ``units`` have ``name`` and perhaps ``enabled``, ``masked`` and ``state`` (started). Returns the
    lists with only those that differ.
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
        units = [unit["name"] for unit in given["units"]]
        command = asked([*wanted, *given["present"]], units)
        there = found(self._low_level_execute_command(command)["stdout_lines"])
        differ = {path for path, how in wanted.items() if _same(there.get(path)) != how}
        lists = {name: [one for one in given[name] if _path(one) in differ] for name in _FILES}
        lists["present"] = [path for path in given["present"] if path not in there]
        lists["units"] = [
            unit
            for unit in given["units"]
            if not as_it_should(unit, there.get(_UNIT + unit["name"], ()))
        ]
        return result | lists | {"changed": False}

    def _rendered(self, name: str, task_vars: dict[str, Any]) -> bytes:
        lookup = lookup_loader.get("ansible.builtin.template", self._loader, self._templar)
        text: str = lookup.run([name], variables=_Shallow(task_vars))[0]
        return text.encode()

    @staticmethod
    def _file(item: Mapping[str, Any], content: bytes) -> tuple[str, ...]:
        return as_wanted("regular file", item.get("mode", "0644"), content)


def _same(told: tuple[str, ...] | None) -> tuple[str, ...] | None:
    # stat has a word of its own for a file with nothing in it.
    return told and (told[0].replace("regular empty file", "regular file"), *told[1:])


def _path(one: str | Mapping[str, Any]) -> str:
    return one if isinstance(one, str) else str(one["dest"])
