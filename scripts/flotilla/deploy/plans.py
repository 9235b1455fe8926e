"""Plans that are kept: made now, read by somebody, run later only if nothing changed meanwhile."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from flotilla import files
from flotilla.errors import BadOption, Refused
from flotilla.lock import holder
from flotilla.settings import Settings

_FOLDER = "plans"
_UNTOUCHED = "No host was touched"
FORMAT = 1


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    batches: list[str]
    floor_percent: int
    adopt: bool
    outage: bool
    headroom_percent: int


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    fleet: str
    release: dict[str, str]
    hosts: dict[str, dict[str, str | bool | None]]
    balancers: dict[str, dict[str, str]]


class _File(BaseModel):
    model_config = ConfigDict(strict=True)
    format: int
    id: str
    made_at: str
    made_by: str
    version: str
    batches: list[list[str]]
    options: _Options
    facts: _Facts


@dataclass(frozen=True, slots=True)
class Saved:
    """A plan as it was saved: what was decided, on which facts, with which options."""

    id: str
    made_at: str
    made_by: str
    version: str
    batches: tuple[tuple[str, ...], ...]
    options: dict[str, Any]
    facts: dict[str, Any]


def folder(settings: Settings) -> Path:
    """Where plans are kept when no file is named."""
    return settings.scratch / _FOLDER


def save(
    settings: Settings, content: dict[str, Any], path: Path | None = None, *, now: datetime
) -> Path:
    """Keep a plan; where. Raises FlotillaError when the disk does not take it."""
    name = f"{now.astimezone(UTC):%Y%m%dT%H%M%S}-{content['version']}"
    head = {"format": FORMAT, "id": name, "made_at": now.isoformat(), "made_by": holder()}
    text = json.dumps(head | content, indent=2) + "\n"
    return files.replace(path or folder(settings) / f"{name}.json", text)


def load(settings: Settings, path: Path) -> Saved:
    """A plan that was saved. Raises BadOption when there is none, Refused when it is no plan."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        known = sorted(folder(settings).glob("*.json"), reverse=True)[:5]
        raise BadOption(
            f"the plan {path} cannot be read: {getattr(error, 'strerror', 'it is no text')}; "
            f"saved are: {', '.join(str(one) for one in known) or 'none'}",
            untouched=_UNTOUCHED,
            next="fab deploy.plan --version V --save",
        ) from error
    try:
        found = _File.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise _refusal(path, f"{where}: {fault['msg']}" if where else fault["msg"]) from None
    if found.format != FORMAT:
        raise _refusal(path, f"it has format {found.format}, and this is format {FORMAT}")
    return Saved(
        id=found.id,
        made_at=found.made_at,
        made_by=found.made_by,
        version=found.version,
        batches=tuple(tuple(batch) for batch in found.batches),
        options=found.options.model_dump(),
        facts=found.facts.model_dump(),
    )


def _refusal(path: Path, why: str) -> Refused:
    return Refused(
        f"{path} is not a plan that can be run: {why}",
        untouched=_UNTOUCHED,
        next="fab deploy.plan --version V --save",
    )
