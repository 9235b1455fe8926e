"""Every Molecule scenario keeps its promise: the first line of its molecule.yml."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SCENARIOS = sorted(path.parent.name for path in REPO.glob("molecule/*/molecule.yml"))
SECONDS = 600


@pytest.mark.lab
@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_scenario_keeps_its_promise(scenario: str) -> None:
    log = REPO / "var" / "lab" / "log" / f"molecule-{scenario}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    binaries = Path(sys.executable).parent
    with log.open("w") as out:
        done = subprocess.run(
            [binaries / "molecule", "test", "--scenario-name", scenario],
            cwd=REPO,
            env=os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}", "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
            check=False,
        )
    assert done.returncode == 0, f"{log}:\n" + "\n".join(log.read_text().splitlines()[-60:])


def test_every_role_that_needs_one_has_a_scenario() -> None:
    assert {"base", "haproxy", "mysql", "redis", "bastion"} <= set(SCENARIOS)
