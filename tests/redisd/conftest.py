"""Real servers for the tests of this folder; skipped, with the reason, where there can be none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mysqld.conftest import api, api_server, settings
from redisd.group import Group, NoImageError, running
from redisd.operators import Hands, operator

__all__ = ["api", "api_server", "group", "hands", "settings"]


@pytest.fixture
def group(tmp_path) -> Iterator[Group]:
    """Three hosts, redis-1 their primary."""
    try:
        with running(tmp_path) as made:
            yield made
    except NoImageError as error:
        pytest.skip(str(error))


@pytest.fixture
def hands(group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hands]:
    """An operator's hands on them."""
    with operator(group, tmp_path, monkeypatch) as (made, _):
        yield made
