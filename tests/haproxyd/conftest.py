"""The load balancer's own configuration on this HAProxy, in front of a small application."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from haproxyd.edge import Edge, running


@pytest.fixture
def edge(tmp_path) -> Iterator[Edge]:
    if shutil.which("haproxy") is None:
        pytest.skip("HAProxy is not installed")
    with running(tmp_path) as made:
        yield made
