"""What of a role's part of a host is not as it should be, by one question.

A loop of ``template``, ``file`` or ``systemd_service`` asks a host once an item, of which twelve
hosts on one machine take half a second, and a third of one even to be skipped. So a role asks this
first, and includes its tasks where something differs. They stay what changes hosts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from shlex import quote
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.plugins.loader import lookup_loader

_FILES = ("directories", "templates", "copies")
_LISTS = (*_FILES, "blocks", "present", "absent", "staged", "packages", "units")
_OWNER = "root:root"
_UNIT, _BLOCK, _PACKAGE, _STAGED = "unit\t", "block\t", "package\t", "staged\t"
# Those of ansible.builtin.blockinfile.
_BEGIN, _END = "# BEGIN ANSIBLE MANAGED BLOCK", "# END ANSIBLE MANAGED BLOCK"


def asked(given: Mapping[str, Any], paths: Iterable[str]) -> str:
    """A shell command: a line for each path that is there, sums of the files, and of the rest."""
    words = " ".join(map(quote, paths))
    told = f"stat --printf '%F\\t%a\\t%U:%G\\t%n\\n' -- {words}; sha256sum -- {words}; "
    for unit in given["units"]:
        # A unit of its own each time: systemctl names an alias by its other name.
        name = quote(unit["name"])
        told += (
            f"printf '{_UNIT}%s\\t' {name}; systemctl show --value "
            f"--property=UnitFileState --property=ActiveState -- {name} | paste -sd'\\t'; "
        )
    for block in given["blocks"]:
        path = quote(block["dest"])
        told += (
            f"printf '{_BLOCK}%s\\t' {path}; sed -n '/^{_BEGIN}$/,/^{_END}$/p' {path} | sha256sum; "
        )
    if given["packages"]:
        names = " ".join(map(quote, given["packages"]))
        shown = f"{_PACKAGE}${{Package}}\\t${{db:Status-Status}}\\n"
        told += f"dpkg-query --show --showformat '{shown}' -- {names}; "
    for folder in map(quote, given["staged"]):
        differ = 'find . -type f -exec sh -c \'cmp -s "$1" "/$1" || echo "$1"\' - {} \\;'
        told += f"(cd {folder} && {differ}) | sed 's/^/{_STAGED}/'; "
    return f"({told}) 2>/dev/null; true"


def found(lines: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """By path: (kind, mode, owner), and for a file the sum of its content.

    By ``unit``, ``block``, ``package`` or ``staged`` and its name: what was said of that.
    """
    there: dict[str, tuple[str, ...]] = {}
    for line in lines:
        if line.startswith((_UNIT, _BLOCK, _PACKAGE, _STAGED)):
            kind, name, *said = line.split("\t")
            there[f"{kind}\t{name}"] = tuple(said)
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

    - ``directories`` (mode 0755) are paths; ``templates`` and ``copies`` have ``src`` (copies also
      ``content``), ``dest`` and perhaps ``mode`` (0644). All are root's.
    - ``blocks`` have ``src``, a template, and ``dest``, as ``blockinfile`` writes them there.
    - ``present`` and ``absent`` are paths that only have to be there, or not.
    - ``staged`` are folders: what is below has to be below / with the same content.
    - ``packages`` are names; ``units`` have ``name`` and perhaps ``enabled``, ``masked`` and
      ``state`` (started).

    Returns the lists with only those that differ, of ``staged`` the files, and ``any``.
    """

    _supports_check_mode = True

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Never changes anything."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        spec = {name: {"type": "list", "default": []} for name in _LISTS}
        _, given = self.validate_argument_spec(argument_spec=spec)
        variables = task_vars or {}
        wanted = dict.fromkeys(given["directories"], as_wanted("directory", "0755"))
        for item in given["templates"]:
            wanted[item["dest"]] = self._file(item, self._rendered(item["src"], variables))
        for item in given["copies"]:
            wanted[item["dest"]] = self._file(item, self._copied(item))
        command = asked(given, [*wanted, *given["present"], *given["absent"]])
        there = found(self._low_level_execute_command(command)["stdout_lines"])
        differ = {path for path, how in wanted.items() if _same(there.get(path)) != how}
        lists: dict[str, list[Any]] = {
            name: [one for one in given[name] if _path(one) in differ] for name in _FILES
        }
        lists["blocks"] = [
            one
            for one in given["blocks"]
            if there.get(_BLOCK + one["dest"]) != _sum(self._rendered(one["src"], variables))
        ]
        lists["present"] = [path for path in given["present"] if path not in there]
        lists["absent"] = [path for path in given["absent"] if path in there]
        lists["staged"] = [key.removeprefix(_STAGED) for key in there if key.startswith(_STAGED)]
        lists["packages"] = [
            name for name in given["packages"] if there.get(_PACKAGE + name) != ("installed",)
        ]
        lists["units"] = [
            unit
            for unit in given["units"]
            if not as_it_should(unit, there.get(_UNIT + unit["name"], ()))
        ]
        return result | lists | {"any": any(lists.values()), "changed": False}

    def _rendered(self, name: str, variables: dict[str, Any]) -> bytes:
        lookup = lookup_loader.get("ansible.builtin.template", self._loader, self._templar)
        text: str = lookup.run([name], variables=_Shallow(variables))[0]
        return text.encode()

    def _copied(self, item: Mapping[str, Any]) -> bytes:
        if "content" in item:
            return str(item["content"]).encode()
        with open(self._find_needle("files", item["src"]), "rb") as file:  # noqa: PTH123
            return file.read()

    @staticmethod
    def _file(item: Mapping[str, Any], content: bytes) -> tuple[str, ...]:
        return as_wanted("regular file", item.get("mode", "0644"), content)


def _sum(block: bytes) -> tuple[str]:
    """What sha256sum says of a block between its marks."""
    lines = [_BEGIN.encode(), *block.splitlines(), _END.encode(), b""]
    return (hashlib.sha256(b"\n".join(lines)).hexdigest() + "  -",)


def _same(told: tuple[str, ...] | None) -> tuple[str, ...] | None:
    # stat has a word of its own for a file with nothing in it.
    return told and (told[0].replace("regular empty file", "regular file"), *told[1:])


def _path(one: str | Mapping[str, Any]) -> str:
    return one if isinstance(one, str) else str(one["dest"])
