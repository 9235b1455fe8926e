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


def test_a_host_gets_what_its_watcher_runs():
    packed = names(bundle("flotilla.agent.mysql"))
    assert {"flotilla/agent/service.py", "flotilla/mysql/failover.py"} <= packed


# What needs boto3, pydantic or an SSH client must not be imported by what a host runs.
@pytest.mark.parametrize(
    "module", ["flotilla.agent.mysql", "flotilla.agent.service", "flotilla.agent.ledger_mysql"]
)
def test_it_runs_without_the_repository(module, tmp_path):
    file = tmp_path / "bundle.zip"
    packed = {"flotilla.agent.service": "flotilla.agent.mysql"}.get(module, module)
    file.write_bytes(bundle(packed, carry=("pymysql",)))
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
