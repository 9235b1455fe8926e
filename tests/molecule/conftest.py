"""Scenarios run one after the other: the lab has two cores, and one launches up to four hosts."""

from __future__ import annotations

import pytest
from standing import bring_up_lab


@pytest.fixture(scope="session", autouse=True)
def lab() -> None:
    bring_up_lab()
