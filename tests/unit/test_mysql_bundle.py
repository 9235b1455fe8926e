"""The one file that runs on a host."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from io import BytesIO

import pytest

from flotilla.agent.bundle import bundle


def names(content):
    return set(zipfile.ZipFile(BytesIO(content)).namelist())


def test_the_same_sources_make_the_same_bytes():
    assert bundle("flotilla.agent.mysql") == bundle("flotilla.agent.mysql")


def test_a_host_gets_nothing_that_acts_on_aws_or_on_other_hosts():
    packed = names(bundle("flotilla.agent.mysql"))
    assert "flotilla/agent/mysql.py" in packed
    assert not [n for n in packed if "/aws/" in n or "ssh" in n or "config" in n]


@pytest.mark.parametrize("module", ["flotilla.agent.mysql", "flotilla.agent.ledger"])
def test_it_runs_without_the_repository(module, tmp_path):
    file = tmp_path / "bundle.zip"
    file.write_bytes(bundle(module, carry=("pymysql",)))
    ran = subprocess.run(
        [
            sys.executable,
            "-S",
            "-c",
            f"import sys; sys.path.insert(0, {str(file)!r})\nimport {module}",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={},
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
