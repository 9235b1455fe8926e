"""The lab, and on it the fleet of inventory/lab, brought up once for all tests of this folder.

Where a machine cannot run hosts, every test here is skipped and counted with the reason.
"""

from __future__ import annotations

import pytest
from standing import bring_up_lab, said

from flotilla import config, demo
from flotilla.settings import Settings


@pytest.fixture(scope="session", autouse=True)
def lab() -> None:
    bring_up_lab()


@pytest.fixture(scope="session")
def standing_fleet() -> Settings:
    """The 12 hosts of inventory/lab, configured and serving the guestbook."""
    settings = config.load("lab")
    demo.serve(settings, demo.Phases(said))
    return settings
