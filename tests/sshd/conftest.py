"""Real servers for the tests of this folder; skipped, with the reason, where there can be none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mysqld.binaries import NoImageError
from sshd.machines import Machine, machines


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Machine]:
    """One host with the image's settings."""
    try:
        with machines(tmp_path, [("app-1", "127.0.1.2")]) as made:
            yield made[0]
    except NoImageError as error:
        pytest.skip(str(error))
