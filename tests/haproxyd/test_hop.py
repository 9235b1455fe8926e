"""Load balancers speak to application hosts by TLS, and only to those that prove the name."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from haproxyd import hop
from haproxyd.certificates import certificate
from haproxyd.clients import clients
from haproxyd.edge import SERVERS, Edge, _reloader, application, running

from flotilla.rules import haproxy_file
from flotilla.wait import until

RENEWALS = 10
STRANGER = "127.0.70.3"


def statuses(edge: Edge) -> dict[str, str]:
    return {name: one.status for name, one in edge.runtime().servers().items()}


def is_up(edge: Edge, name: str) -> bool:
    return statuses(edge)[name] == "UP"


BAD: dict[str, Callable[[], bytes]] = {
    "of another authority": lambda: hop.leaf(STRANGER, root="other"),
    "of another role": lambda: hop.leaf(STRANGER, zone=hop.OTHER),
    "expired": lambda: hop.leaf(STRANGER, age_days=8),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_server_added_at_run_time_is_used_only_if_it_proves_the_name(
    edge: Edge, tmp_path: Path, kind: str
) -> None:
    leaf = tmp_path / "stranger.pem"
    hop.put(leaf, BAD[kind]())
    options = haproxy_file.options((tmp_path / "haproxy.cfg").read_text(), "app-3")
    with application(STRANGER, edge.behind, leaf):
        until(lambda: _listens(STRANGER, edge.behind), seconds=10, every=0.05)
        said = edge.runtime().add({"app-3": f"{STRANGER}:{edge.behind} {options}"})
        assert not said
        time.sleep(2.5)  # a dozen checks
        assert not is_up(edge, "app-3"), kind
        hop.put(leaf, hop.leaf(STRANGER))
        until(lambda: is_up(edge, "app-3"), seconds=10, every=0.1)


@pytest.mark.parametrize("kind", BAD)
def test_a_server_that_can_prove_its_name_no_more_gets_nothing(
    edge: Edge, tmp_path: Path, kind: str
) -> None:
    until(lambda: set(statuses(edge).values()) == {"UP"}, seconds=10, every=0.1)
    hop.put(tmp_path / "leaf-1.pem", BAD[kind]())
    until(lambda: not is_up(edge, "app-1"), seconds=10, every=0.1)
    assert is_up(edge, "app-2")


def test_a_server_without_tls_is_not_used(edge: Edge) -> None:
    options = haproxy_file.options((edge.folder / "haproxy.cfg").read_text(), "app-3")
    with socket.create_server((STRANGER, edge.behind)):
        edge.runtime().add({"app-3": f"{STRANGER}:{edge.behind} {options}"})
        time.sleep(2.5)
        assert not is_up(edge, "app-3")


def test_ten_renewals_fail_no_request(tmp_path: Path) -> None:
    with running(tmp_path, pem=certificate(1001)) as edge, clients(edge) as seen:
        time.sleep(2)
        for _ in range(RENEWALS):
            for number, address in enumerate(SERVERS.values(), 1):
                hop.put(tmp_path / f"leaf-{number}.pem", hop.leaf(address))
            time.sleep(1)
        assert set(statuses(edge).values()) == {"UP"}
    for kind, found in seen.items():
        assert found.failed == 0, f"{kind}: {found}"
        assert found.served > 200, f"{kind}: {found}"


def _listens(address: str, port: int) -> bool:
    with socket.socket() as stream:
        return stream.connect_ex((address, port)) == 0


def test_states_from_before_the_move_do_not_switch_tls_off(edge: Edge, tmp_path: Path) -> None:
    """HAProxy believes a state file before its configuration."""
    script = _reloader()
    before = edge.runtime().dump()
    old = script.starting(before, {n: (a, "80") for n, a in SERVERS.items()}, tls=False)
    assert script.plain(old) == [f"{address} up" for address in SERVERS.values()]
    text = (tmp_path / "haproxy.cfg").read_text()
    assert script.encrypted(text)
    fresh = script.starting(old, script.configured(text), tls=script.encrypted(text))
    assert script.plain(fresh) == []
    assert f" {edge.behind} " in fresh
    edge.reload()
    assert script.plain(edge.runtime().dump()) == []
    assert set(statuses(edge).values()) == {"UP"}
