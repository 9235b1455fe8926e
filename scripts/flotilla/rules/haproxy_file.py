"""The servers in haproxy.cfg: read them, and write others in their place. Text in, text out.

The lines between two marks belong to whoever follows the fleet on that host; the role writes the
rest and keeps what it finds there. Invariant: replacing the servers changes no other byte.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

BEGIN = "    # Servers: written by flotilla-discovery"
END = "    # End of the servers"
PEERS = "lb_peers"

_LINE = re.compile(r"^\s+server (?P<name>\S+) (?P<address>[\d.]+):(?P<port>\d+)(?P<rest>.*)$")


def servers(text: str) -> dict[str, str]:
    """Name to private address. ``ValueError`` when the marks are not there once each."""
    found = (_LINE.match(line) for line in _parts(text)[1].splitlines())
    return {match["name"]: match["address"] for match in found if match}


def with_servers(text: str, wanted: Mapping[str, str], *, port: int) -> str:
    """The text with these servers and no others. ``ValueError`` as above."""
    before, _, after = _parts(text)
    lines = (
        f"    server {name} {address}:{port}{_own(before, name)}\n"
        for name, address in sorted(wanted.items())
    )
    return before + "".join(lines) + after


def options(text: str, name: str) -> str:
    """What the file would give this server: a server that is added by command inherits nothing from
    the ``default-server``. ``ValueError`` without one.
    """
    before = _parts(text)[0]
    found = re.findall(r"^\s+default-server (.+)$", _section(before), re.MULTILINE)
    if not found:
        raise ValueError("the backend has no default-server line")
    return f"{found[-1].strip()}{_own(before, name)}"


def _own(before: str, name: str) -> str:
    """What is a server's own: its cookie, where clients are kept on a server by one."""
    is_sticky = re.search(r"^\s+cookie \S", _section(before), re.MULTILINE)
    return f" cookie {name}" if is_sticky else ""


def peers(text: str) -> list[str]:
    """Where the statistics of the other load balancers are, ``address:port`` each."""
    sections = re.split(r"^(?=\S)", text, flags=re.MULTILINE)
    mine = next((one for one in sections if one.startswith(f"backend {PEERS}\n")), "")
    found = (_LINE.match(line) for line in mine.splitlines())
    return [f"{match['address']}:{match['port']}" for match in found if match]


def _section(before: str) -> str:
    """The lines of the section that the marks stand in, so far."""
    return re.split(r"^(?=\S)", before, flags=re.MULTILINE)[-1]


def _parts(text: str) -> tuple[str, str, str]:
    """Up to and with the first mark, what is between, and the rest."""
    begin, end = BEGIN + "\n", END + "\n"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the configuration has no lines {BEGIN.strip()!r} to {END.strip()!r}")
    first, last = text.index(begin) + len(begin), text.index(end)
    return text[:first], text[first:last], text[last:]
