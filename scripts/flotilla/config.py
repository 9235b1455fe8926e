"""Read ``inventory/<env>/group_vars/all/fleet.yml`` and refuse it with a message worth reading.

A refusal names the file, the line, the key, the value and what is allowed, all faults at once.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from flotilla import environment
from flotilla.errors import BadOption, Refused
from flotilla.kinds import words
from flotilla.rules import fleet as fleet_rules
from flotilla.settings import Settings

__all__ = ["Settings", "load", "parse"]

_UNTOUCHED = "Nothing was changed"
# The example has 8 kB. A file this large is something else, and a megabyte takes a second to read.
_MOST_BYTES = 256 * 1024
# No key is deeper; an anchor that contains itself has no end.
_MOST_LEVELS = 8
# A value longer than this tells nobody more.
_MOST_SHOWN = 120
_EXAMPLE = "inventory/production.example/group_vars/all/fleet.yml"


# Where pydantic's own words are about Python.
_IN_WORDS = {
    "tuple_type": "it must be a list",
    "dict_type": "it must be a mapping",
    "model_type": "it must be a mapping",
    "too_short": "it must have at least {min_length} entry",
    "string_too_long": "it must have at most {max_length} characters",
}


def load(env: str | None = None, *, root: Path | None = None) -> Settings:
    """The settings of an environment; without a name, the one in ``FLOTILLA_ENV`` (default lab).

    Raises BadOption for an environment that does not exist, Refused for a file that is not valid.
    """
    base = root or environment.root()
    chosen = env or environment.current()
    known = environment.names(base)
    if chosen not in known:
        raise BadOption(
            f"there is no environment {chosen!r}; inventory/ has: {', '.join(known) or 'none'}",
            why=f"{environment.VARIABLE} (default {environment.DEFAULT}) picks a folder of "
            f"inventory/ that holds {environment.FLEET_FILE}",
            untouched=_UNTOUCHED,
            next=_instead(chosen, known),
        )
    path = environment.fleet_file(base, chosen)
    shown = str(path.relative_to(base))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _refusal(shown, [f"it cannot be read: {error.strerror}"]) from error
    return parse(content, env=chosen, shown=shown, root=base)


def parse(content: bytes, *, env: str, shown: str, root: Path) -> Settings:
    """Settings from the bytes of a fleet.yml; ``shown`` is how messages name the file."""
    tree, values = _read(content, shown)
    faults = list(_structure(tree, values))
    if not faults:
        try:
            settings = Settings.model_validate(values["fleet"])
        except ValidationError as error:
            faults = [_fault(detail, tree) for detail in error.errors(include_url=False)]
        else:
            faults = [
                _at(_line(tree, ("fleet", *path)), f"{_dotted(('fleet', *path))} {message}")
                for path, message in fleet_rules.faults(settings, env=env)
            ]
    if faults:
        raise _refusal(shown, faults)
    return settings.placed(root, hashlib.sha256(content).hexdigest())


def _instead(chosen: str, known: Sequence[str]) -> str:
    if not known:
        return f"create inventory/<env>/{environment.FLEET_FILE} from {_EXAMPLE}"
    close = difflib.get_close_matches(chosen, known, n=1)
    return f"{environment.VARIABLE}={(close or known)[0]} fab --list"


def _refusal(shown: str, faults: Sequence[str]) -> Refused:
    return Refused(
        f"{shown}: {faults[0]}"
        if len(faults) == 1
        else "\n  ".join([f"{shown} has {len(faults)} faults:", *faults]),
        untouched=_UNTOUCHED,
        next=f"correct {shown}; every key is explained in {_EXAMPLE}",
    )


def _read(content: bytes, shown: str) -> tuple[yaml.Node | None, Any]:
    if len(content) > _MOST_BYTES:
        raise _refusal(shown, [f"it has {len(content)} bytes and may have {_MOST_BYTES}"])
    try:
        return yaml.compose(content, yaml.SafeLoader), yaml.safe_load(content)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise _refusal(
            shown, [f"{where}not valid YAML: {error.problem or error.context}"]
        ) from None
    except RecursionError:
        raise _refusal(shown, ["it is nested too deeply"]) from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise _refusal(shown, [f"not valid YAML: {str(error).splitlines()[0]}"]) from None


def _structure(tree: yaml.Node | None, values: Any) -> Iterator[str]:
    if not isinstance(values, Mapping):
        yield "must be one mapping with the key fleet; it holds " + type(values).__name__
        return
    for key in values:
        if key != "fleet":
            yield _at(_line(tree, (key,)), f"{key!r} is not a key here; the only one is fleet")
    if not isinstance(values.get("fleet"), Mapping):
        yield f"the key fleet must hold a mapping, not {_shown(values.get('fleet'))}"
    yield from _repeated(tree, ())


def _repeated(node: yaml.Node | None, path: tuple[str, ...]) -> Iterator[str]:
    """YAML keeps the last of two equal keys and says nothing; people rarely meant that."""
    if isinstance(node, yaml.MappingNode) and len(path) < _MOST_LEVELS:
        first: dict[str, int] = {}
        for key, value in node.value:
            here = (*path, str(key.value))
            line = key.start_mark.line + 1
            if key.value in first:
                yield _at(line, f"{_dotted(here)} is already set on line {first[key.value]}")
            first.setdefault(key.value, line)
            yield from _repeated(value, here)


def _fault(detail: ErrorDetails, tree: yaml.Node | None) -> str:
    # pydantic marks a faulty KEY of a mapping with a last element of its own.
    path = ("fleet", *(part for part in detail["loc"] if part != "[key]"))
    if detail["type"] == "missing":
        return _at(_line(tree, path[:-1]), f"{_dotted(path)} is missing")
    where = _line(tree, path)
    if detail["type"] == "extra_forbidden":
        return _at(where, f"{_dotted(path)} is not a key{_siblings(path)}")
    return _at(where, f"{_dotted(path)} is {_shown(detail['input'])}: {_allowed(detail)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}... ({len(text)} characters)"


def _allowed(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    if detail["type"] == "string_pattern_mismatch":
        return f"it must be {words(context['pattern'])}"
    if detail["type"] == "value_error":
        return str(context["error"])
    if detail["type"] in _IN_WORDS:
        return _IN_WORDS[detail["type"]].format(**context)
    return detail["msg"].replace("Input should be", "it must be")


def _siblings(path: tuple[str | int, ...]) -> str:
    """The keys that exist beside an unknown one, and the nearest of them."""
    model: Any = Settings
    for part in path[1:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field else None
    if not hasattr(model, "model_fields"):
        return ""
    keys = sorted(model.model_fields)
    close = difflib.get_close_matches(str(path[-1]), keys, n=1)
    return f"; here: {', '.join(keys)}" + (f". Did you mean {close[0]}?" if close else "")


def _dotted(path: Sequence[str | int]) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")


def _at(line: int | None, message: str) -> str:
    return f"line {line}: {message}" if line else message


def _line(node: yaml.Node | None, path: Sequence[str | int]) -> int | None:
    """The line of a key, or of the nearest enclosing one that exists."""
    line = None
    for part in path:
        step = _step(node, part)
        if step is None:
            break
        mark, node = step
        line = mark.start_mark.line + 1
    return line


def _step(node: yaml.Node | None, part: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        return next(((k, v) for k, v in node.value if k.value == str(part)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None
