"""Real servers for the tests of this folder; skipped, with the reason, where there can be none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redisd.group import Group, NoImageError, running


@pytest.fixture
def group(tmp_path) -> Iterator[Group]:
    """Three hosts, redis-1 their primary."""
    try:
        with running(tmp_path) as made:
            yield made
    except NoImageError as error:
        pytest.skip(str(error))
