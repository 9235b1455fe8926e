"""What holds for every test."""

from __future__ import annotations

import gc
import os
import signal
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# A test run that was itself put in the background ignores interrupts and hands that down: programs
# that are to be interrupted would not hear of it. With a handler here, theirs is the default again.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A test makes its own account, and there are hundreds: moto would fill each with 850 images of
# Amazon's that no test asks for.
os.environ.setdefault("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")

# What they make lives on by the million: going through all of it was a fifth of the tests' time.
gc.set_threshold(100_000, 50, 100)

# Its limit of 200 ms an example is a timed test: it fails where a machine is busy.
settings.register_profile("flotilla", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("flotilla")

_SCORES = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_SCORES] = {}


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for tool, words in sorted(config.stash[_SCORES].items()):
        terminalreporter.write_line(f"security: {tool:15} {words}")


@pytest.fixture(scope="session")
def scores(pytestconfig: pytest.Config) -> dict[str, str]:
    """What the summary says of security, by tool."""
    return pytestconfig.stash[_SCORES]
