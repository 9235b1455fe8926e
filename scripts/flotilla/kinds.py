"""What a key of fleet.yml may hold: the kinds that ``flotilla.settings`` is made of."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

_SIZES = r"(nano|micro|small|medium|large|\d*xlarge|metal(-\d+xl)?)"


def _network(text: str) -> str:
    IPv4Network(text)
    return text


def listed(value: Any) -> Any:
    """YAML has lists only; a frozen model holds tuples."""
    return tuple(value) if isinstance(value, list) else value


# What a pattern means in words, for messages; filled by Text.
_WORDS: dict[str, str] = {}


def Text(pattern: str, words: str) -> StringConstraints:  # noqa: N802  used as a type
    """A string that must match all of ``pattern``; ``words`` follows "it must be"."""
    whole = f"^(?:{pattern})$"
    _WORDS[whole] = words
    return StringConstraints(pattern=whole)


Name = Annotated[
    str,
    Text(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", "lower case letters and digits, with dashes between"),
    Field(max_length=24),
]
Network = Annotated[str, AfterValidator(_network)]
UrlPath = Annotated[str, Text(r"/[^\s?#]*", "the path of a URL, beginning with /")]
Url = Annotated[str, Text(r"https?://[^\s/]+(/\S*)?", "an http:// or https:// address, or null")]
InstanceType = Annotated[
    str, Text(rf"[a-z][a-z0-9-]*\.{_SIZES}", "an EC2 instance type such as t3.medium")
]
Region = Annotated[str, Text(r"[a-z]{2}(-[a-z]+)+-\d", "an AWS region such as eu-central-1")]
Line = Annotated[str, Text(r"\S[^\r\n]*", "one line of text, not empty")]
Account = Annotated[str, Text(r"[a-z_][a-z0-9_-]{0,31}", "a Unix account such as admin")]
Names = Annotated[tuple[Line, ...], BeforeValidator(listed), Field(min_length=1)]
Networks = Annotated[tuple[Network, ...], BeforeValidator(listed), Field(min_length=1)]


Parameter = Annotated[
    str, Text(r"/[A-Za-z0-9_./-]+", "the name of an SSM parameter, beginning with /")
]


class Section(BaseModel):
    """A group of keys: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def words(pattern: str) -> str:
    """What a pattern of a key means, for a sentence that begins with "it must be"."""
    return _WORDS.get(pattern, f"text that matches {pattern}")
