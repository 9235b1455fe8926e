"""Two load balancers: what one knows of clients outlives it, and its own reload."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from haproxyd.edge import ADDRESSES, Edge, running
from unit.ports import free_port

from flotilla.wait import until

# Over ten seconds.
LIMIT = 40
GREEDY, MODEST = "127.0.72.1", "127.0.72.2"
# A move of the address takes longer.
SOON_SECONDS = 5.0


@pytest.fixture
def pair(tmp_path) -> Iterator[tuple[Edge, Edge]]:
    port = free_port()
    with ExitStack() as stack:
        made = []
        for name in ADDRESSES:
            (tmp_path / name).mkdir()
            others = {other: address for other, address in ADDRESSES.items() if other != name}
            edge = running(
                tmp_path / name,
                name=name,
                haproxy_edge_peers=others,
                haproxy_edge_peers_port=port,
                haproxy_edge_sticky_enabled=True,
                haproxy_edge_client_requests_per_second=LIMIT // 10,
                haproxy_edge_client_connections=10,
            )
            made.append(stack.enter_context(edge))
        for edge in made:
            until(lambda edge=edge: is_ready(edge), seconds=30)
        yield made[0], made[1]


def is_ready(edge: Edge) -> bool:
    """Both servers are up, and it has learned what there is to learn: before that, it tells nothing
    to its own next process (5 s are given to its last one, and 5 s to the other load balancer).
    """
    flags = re.search(r" id=edges .* flags=0x([0-9a-f]+)", edge.runtime()._send("show peers"))
    servers = edge.runtime().servers().values()
    return bool(flags and int(flags[1], 16) & 3 == 3) and all(one.is_serving for one in servers)


def ask(edge: Edge, source: str, cookie: str = "") -> tuple[int, str]:
    """The status of one request, and the cookie that came with it."""
    connection = http.client.HTTPConnection(
        edge.host, edge.port, timeout=10, source_address=(source, 0)
    )
    connection.request(
        "GET", "/", headers={"Host": "shop"} | ({"Cookie": cookie} if cookie else {})
    )
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, (answer.headers["Set-Cookie"] or "").partition(";")[0]


def open_connections(edge: Edge, source: str) -> int:
    """How many of an address this load balancer counts."""
    table = edge.runtime()._send("show table clients")
    row = next((line for line in table.splitlines() if f"key=::ffff:{source} " in line), "")
    found = re.search(r"conn_cur=(\d+)", row)
    return int(found[1]) if found else 0


def limited(edge: Edge) -> None:
    for _ in range(LIMIT + 5):
        ask(edge, GREEDY)
    assert ask(edge, GREEDY)[0] == 429


def test_whoever_is_limited_is_limited_by_the_one_that_takes_over(pair: tuple[Edge, Edge]) -> None:
    first, second = pair
    limited(first)
    assert first.process
    first.process.kill()
    until(lambda: ask(second, GREEDY)[0] == 429, seconds=SOON_SECONDS)
    assert ask(second, MODEST)[0] == 200


def test_whoever_is_limited_is_so_after_a_reload(pair: tuple[Edge, Edge]) -> None:
    first, _ = pair
    limited(first)
    first.reload()
    until(lambda: ask(first, GREEDY)[0] == 429, seconds=SOON_SECONDS)
    assert ask(first, MODEST)[0] == 200


def test_connections_of_one_load_balancer_do_not_count_on_the_other(
    pair: tuple[Edge, Edge],
) -> None:
    """Else a client that had many there when it died could open none here, ever."""
    first, second = pair
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(first.connected(MODEST))
        until(lambda: open_connections(first, MODEST) == 8, seconds=10)
        assert ask(first, MODEST)[0] == 200, "its rate is told to the other one"
        until(lambda: MODEST in second.runtime()._send("show table clients"), seconds=10)
        assert open_connections(second, MODEST) == 0
        assert first.process
        first.process.kill()
        for _ in range(8):
            stack.enter_context(second.connected(MODEST))
        until(lambda: open_connections(second, MODEST) == 8, seconds=10)
        assert ask(second, MODEST)[0] == 200
    until(lambda: open_connections(second, MODEST) == 0, seconds=10)


def test_a_client_keeps_its_server_over_a_move_of_the_address(pair: tuple[Edge, Edge]) -> None:
    first, second = pair
    _, cookie = ask(first, MODEST)
    assert cookie.startswith("FLOTILLA=app-")
    for edge in (first, second):
        # Whoever already has the server that its cookie names is not given another cookie.
        assert ask(edge, MODEST, cookie) == (200, "")
