"""HAProxy's statistics page, for rates that people look at; nothing is ever decided by it.

haproxy-stats reads it. One object for each look: after one failed fetch it parses nothing any more.
It splits on commas, so a check's message with a comma in it shifts the columns after it; only those
before are read here. The runtime socket, read by a CSV parser, says which servers are up.
"""

from __future__ import annotations

import logging
from typing import Any

from flotilla.rules.status_world import Traffic

PORT = 8404
PATH = "/;csv;norefresh"


def command(address: str, seconds: float) -> str:
    """The shell command that fetches the page; the bastion may, the operator's machine may not."""
    return (
        f"curl --fail --silent --show-error --max-time {seconds:g} 'http://{address}:{PORT}{PATH}'"
    )


def traffic(name: str, text: str, frontend: str = "edge", backend: str = "app") -> Traffic | None:
    """The figures of a page; None for a page without them."""
    library = _library()

    class Page(library.HAProxyServer):  # type: ignore[name-defined,misc]  # a base made at run time
        def _fetch(self) -> str:
            return text

    try:
        page = Page(f"{name}:{PORT}")
        fronts = {one.name: one for one in page.frontends}
        backs = {one.name: one for one in page.backends}
        return Traffic(
            requests_per_second=int(fronts[frontend].req_rate),
            sessions=int(fronts[frontend].scur),
            errors=int(backs[backend].hrsp_5xx),
            milliseconds=int(backs[backend].ttime or 0),
        )
    except (AttributeError, KeyError, IndexError, ValueError):
        return None


def _library() -> Any:
    # On import it calls logging.basicConfig, which does nothing where there is a handler; else
    # every library's warnings would be printed into the board from then on.
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.NullHandler())
    import haproxystats  # noqa: PLC0415

    return haproxystats
