"""Bring what Ansible's files say to a running Redis and its Sentinel, and tell what did not arrive.

Most settings take effect at once. Those that Redis reads at its start only are named, never their
values: passwords are among them.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import redis

RETRY_MS = 200

_SIZE = re.compile(r"(\d+)([kmg])(b?)", re.IGNORECASE)
_POWER = {"k": 1, "m": 2, "g": 3}


def owned_lines(text: str) -> list[tuple[str, str]]:
    """Name and value of every setting in a Redis configuration, in order."""
    lines = (line.strip() for line in text.splitlines())
    pairs = (line.partition(" ") for line in lines if line and not line.startswith("#"))
    return [(name, value.strip().strip('"')) for name, _, value in pairs]


def apply(client: Any, owned: Iterable[tuple[str, str]]) -> list[str]:
    """Set them on a running Redis; those that need a restart, each with Redis' own reason."""
    later = []
    for name, value in owned:
        try:
            client.execute_command("CONFIG", "SET", name, value)
        except redis.exceptions.ResponseError as error:
            if not holds(client.config_get(name), name, value):
                later.append(f"{name} ({error})")
    client.execute_command("ACL", "LOAD")
    return later


def apply_sentinel(client: Any, cluster: str, options: Mapping[str, str]) -> None:
    """The same for a Sentinel, which takes all of them at once."""
    client.execute_command("ACL", "LOAD")
    for name, value in options.items():
        client.execute_command("SENTINEL", "SET", cluster, name, value)
    # As whom Sentinels speak to each other: the same account, which nothing else would renew.
    client.execute_command("SENTINEL", "CONFIG", "SET", "sentinel-user", options["auth-user"])
    client.execute_command("SENTINEL", "CONFIG", "SET", "sentinel-pass", options["auth-pass"])


def hasten(client: Any) -> None:
    """Have a Sentinel try a lost connection again after 0.2 s. It forgets this when it ends.

    It tries once in a ping period, a second. Whoever becomes primary within a second of the last
    try is therefore not asked before that is over, and with less than a second to answer he is
    found down and replaced at once: one planned move was two failovers, and the second threw away
    what had been acknowledged in between.
    """
    client.execute_command("SENTINEL", "DEBUG", "PING-PERIOD", RETRY_MS)


def unread(client: Any, owned: Iterable[tuple[str, str]]) -> list[str]:
    """The names of those that the running Redis does not have as they are in the file."""
    return [name for name, value in owned if not holds(client.config_get(name), name, value)]


def holds(found: Mapping[str, str], name: str, value: str) -> bool:
    """Whether CONFIG GET of a setting gave this value, however either is written."""
    return name in found and _plain(found[name]) == _plain(value)


def _plain(value: str) -> str:
    size = _SIZE.fullmatch(value)
    if size is None:
        return value
    # Redis' own units: 1k is 1000, 1kb is 1024.
    base = 1024 if size[3] else 1000
    return str(int(size[1]) * base ** _POWER[size[2].lower()])
