"""What tests on real hosts share: a lab that answers, or the reason there is none."""

from __future__ import annotations

import sys

import pytest

from lab import control
from lab.errors import LabError, Unmet
from lab.layout import layout


def said(line: str) -> None:
    """Progress of what takes minutes; pytest shows it for a test that fails, or with -s."""
    sys.stderr.write(f"{line}\n")


def bring_up_lab() -> None:
    """Start the lab, or skip the tests with the reason. Whoever runs them takes it down."""
    try:
        control.up(layout(), lambda step: said(f"{step['step']} ... ok"))
    except Unmet as missing:
        pytest.skip(f"no lab on this machine: {missing}")
    except LabError as error:
        pytest.exit(f"the lab does not start: {error}", returncode=1)
