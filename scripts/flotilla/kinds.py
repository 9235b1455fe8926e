"""What a key of fleet.yml may hold: the kinds that ``flotilla.settings`` is made of."""

from __future__ import annotations

import shlex
import ssl
from ipaddress import IPv4Network
from typing import Annotated, Any
from urllib.parse import urlsplit

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
    # Python also reads 10.0.0.0/255.255.0.0 and 10.0.0.0; EC2 does not.
    if str(network := IPv4Network(text)) != text:
        raise ValueError(f"write it as {network}")
    return text


def _different(values: tuple[str, ...]) -> tuple[str, ...]:
    # EC2 refuses a rule that names a network twice, when half of the fleet is there.
    if twice := sorted({value for value in values if values.count(value) > 1}):
        raise ValueError(f"{', '.join(twice)} is named twice")
    return values


def split_by_shell(text: str) -> str:
    """The text, if a shell can split it; raises ValueError."""
    try:
        shlex.split(text)
    except ValueError as error:
        raise ValueError(f"no shell reads this: {str(error).lower()}") from None
    return text


def _address(text: str) -> str:
    try:
        parts = urlsplit(text)
        good = bool(parts.hostname) and parts.port != 0  # reading the port checks it
    except ValueError:
        good = False
    if not good:
        raise ValueError("it must be an address with a host, and a port of 1 to 65535 or none")
    return text


def root_certificates(text: str) -> str:
    """The text, if certificates can be read from it; raises ValueError."""
    try:
        ssl.create_default_context(cadata=text)
    except (ssl.SSLError, ValueError):
        raise ValueError("it must be certificates as PEM text, or null") from None
    if "PRIVATE KEY" in text:
        raise ValueError("it holds a private key, which is no business of a fleet's")
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
# It stands in the configuration of HAProxy, where a quote or a # would end it.
UrlPath = Annotated[
    str,
    Text(
        r"/[A-Za-z0-9._~:@%+/-]*",
        "the path of a URL, beginning with /, of letters, digits and any of . _ ~ : @ % + / -",
    ),
]
Url = Annotated[
    str,
    Text(r"https?://[^\s/]+(/\S*)?", "an http:// or https:// address, or null"),
    AfterValidator(_address),
]
InstanceType = Annotated[
    str, Text(rf"[a-z][a-z0-9-]*\.{_SIZES}", "an EC2 instance type such as t3.medium")
]
Region = Annotated[str, Text(r"[a-z]{2}(-[a-z]+)+-\d", "an AWS region such as eu-central-1")]
Line = Annotated[
    str,
    Text(
        r"\S[^\x00-\x1f\x7f-\x9f\u{2028}\u{2029}]*",
        "one line of text, not empty, without control characters",
    ),
]
Command = Annotated[Line, AfterValidator(split_by_shell)]
# A path on the operator's machine. ssh_config has no way to write a quote, and reads % itself.
LocalPath = Annotated[
    str,
    Text(
        r'(~/|[^\s~"%])[^\x00-\x1f\x7f"%]*',
        "a path on this machine, without quotes and %; ~/ is your home",
    ),
]
Folder = Annotated[
    str,
    Text(
        r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*",
        "a folder inside the release, of letters, digits and any of _ . - /",
    ),
]
Word = Annotated[str, Text(r"[A-Za-z0-9][A-Za-z0-9.+~:_/-]*", "one word, as apt knows it")]
Account = Annotated[str, Text(r"[a-z_][a-z0-9_-]{0,31}", "a Unix account such as admin")]
Names = Annotated[tuple[Line, ...], BeforeValidator(listed), Field(min_length=1)]
Words = Annotated[tuple[Word, ...], BeforeValidator(listed), Field(min_length=1)]
Networks = Annotated[
    tuple[Network, ...],
    BeforeValidator(listed),
    Field(min_length=1),
    AfterValidator(_different),
]
Parameter = Annotated[
    str, Text(r"/[A-Za-z0-9_./-]+", "the name of an SSM parameter, beginning with /")
]


class Section(BaseModel):
    """A group of keys: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def words(pattern: str) -> str:
    """What a pattern of a key means, for a sentence that begins with "it must be"."""
    return _WORDS.get(pattern, f"text that matches {pattern}")
