"""The load balancer's own configuration on this HAProxy, in front of a small application."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from haproxyd.edge import Edge, running
from haproxyd.pair import Pair
from haproxyd.pair import pair as pair_running
from mysqld.conftest import api, api_server

__all__ = ["api", "api_server", "edge", "pair"]


@pytest.fixture
def edge(tmp_path) -> Iterator[Edge]:
    if shutil.which("haproxy") is None:
        pytest.skip("HAProxy is not installed")
    with running(tmp_path) as made:
        yield made


@pytest.fixture
def pair(tmp_path, api: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """Both load balancers and an authority, whose own address is trusted."""
    pytest.importorskip("acme", reason="the ACME library is not installed")
    if shutil.which("haproxy") is None:
        pytest.skip("HAProxy is not installed")
    with pair_running(tmp_path, api) as made:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(made.authority.root))
        yield made
