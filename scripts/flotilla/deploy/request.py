"""What an operator asked for, from the words of a command line: fab's and the script's alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flotilla.deploy import plans
from flotilla.deploy.proposal import Terms
from flotilla.deploy_words import Words
from flotilla.errors import BadOption
from flotilla.options import whole
from flotilla.rules.deploy import Options, size_faults
from flotilla.settings import Settings

_UNTOUCHED = "No host was touched"
NEXT = "fab --help deploy.run"


@dataclass(frozen=True, slots=True)
class Request:
    """A release, how to roll it, and what else was said."""

    version: str
    options: Options
    terms: Terms


def request(settings: Settings, words: Words) -> Request:
    """What was asked for. Raises BadOption naming the wrong option, Refused for a bad plan."""
    terms = Terms(reason=words.reason, override_freeze=words.override_freeze)
    if words.plan:
        return _of_plan(settings, words, terms)
    if not words.version:
        raise _bad("neither --version nor --plan is given")
    section = settings.deploy
    sizes = tuple(part.strip() for part in words.batches.split(",") if part.strip())
    options = Options(
        batches=sizes or tuple(section.batches),
        floor_percent=_number("floor", words.floor, 1, 99, section.floor_percent),
        adopt=words.adopt,
        outage=words.outage,
    )
    if sizes and (faults := list(size_faults(options))):
        raise _bad(f"--batches is {words.batches!r}: {'; '.join(faults)}")
    headroom = _number("headroom", words.headroom, 0, 1000, section.headroom_percent)
    return Request(words.version, options, _with(terms, headroom))


def _of_plan(settings: Settings, words: Words, terms: Terms) -> Request:
    if words.rolling:
        raise _bad(f"--plan has its own --{', --'.join(words.rolling)}; give one or the other")
    saved = plans.load(settings, Path(words.plan))
    said = saved.options
    options = Options(
        batches=tuple(said["batches"]),
        floor_percent=said["floor_percent"],
        adopt=said["adopt"],
        outage=said["outage"],
    )
    held = Terms(terms.reason, terms.override_freeze, said["headroom_percent"], saved)
    return Request(saved.version, options, held)


def _with(terms: Terms, headroom: int) -> Terms:
    return Terms(terms.reason, terms.override_freeze, headroom)


def _number(name: str, text: str, least: int, most: int, default: int) -> int:
    if not text:
        return default
    number = whole(text, least, most)
    if number is None:
        raise _bad(f"--{name} is {text[:20]!r}: it must be a number from {least} to {most}")
    return number


def _bad(what: str) -> BadOption:
    return BadOption(what, untouched=_UNTOUCHED, next=NEXT)
