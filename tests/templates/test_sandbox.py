"""How much of a host each service could touch if it were taken over, as systemd itself scores it.

0 is nothing, 10 is everything root may do. Ours stay at 4.0 or below; what the packages bring has
what it needs and no more, and may not get worse than it is.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT = 4.0
# Unit to the role and template it is rendered from, and what the rendering needs.
OURS = {
    "app.service": ("app", "app.service.j2", "app-1"),
    "flotilla-archive.service": ("backup", "flotilla-archive.service.j2", "mysql-1"),
    "flotilla-backup.service": ("backup", "flotilla-backup.service.j2", "mysql-1"),
    "flotilla-access.service": ("base", "flotilla-access.service.j2", "bastion-1"),
    "flotilla-certificate.service": ("haproxy", "flotilla-certificate.service.j2", "lb-1"),
    "flotilla-drill.service": ("backup", "flotilla-drill.service.j2", "mysql-1"),
    "flotilla-firewall.service": ("firewall", "flotilla-firewall.service.j2", "lb-1"),
    "flotilla-firewall-tell.service": ("firewall", "flotilla-firewall-tell.service.j2", "lb-1"),
    "flotilla-discovery.service": ("haproxy", "flotilla-discovery.service.j2", "lb-1"),
    "flotilla-address.service": ("keepalived", "address.service.j2", "lb-1"),
    "flotilla-mysql-agent.service": ("mysql", "flotilla-mysql-agent.service.j2", "mysql-1"),
    "flotilla-redis-backup.service": (
        "redis_backup",
        "flotilla-redis-backup.service.j2",
        "redis-1",
    ),
    "flotilla-sshd-boot.service": ("base", "flotilla-sshd-boot.service.j2", "lb-1"),
    "flotilla-tls.service": ("tls", "flotilla-tls.service.j2", "redis-1"),
    "redis-health.service": ("redis", "redis-health.service.j2", "redis-1"),
}
# What a unit is only rendered with: load balancers order certificates where an authority is named.
NEEDED = {
    "flotilla-certificate.service": {
        "fleet": {
            "name": "shop",
            "env": "blue",
            "domain": "shop.example",
            "lb": {
                "acme": {"directory": "https://ca.example", "email": "a@b.example", "ca_pem": None}
            },
        }
    }
}
# It writes the configuration of every service of a host, starts them, and runs their programs to
# check it: a sandbox that lets it do that keeps nothing from it. It runs once.
WITHOUT = {"flotilla-join.service": "join.service.j2"}
# Drop-ins for units of packages, with the score they come to and without. Debian's units of these
# say nothing of a sandbox, so a bare unit scores as theirs; those of Redis have one of their own.
PACKAGED = {
    "haproxy.service": ("haproxy", "service.conf.j2", "lb-1", 3.3),
    "keepalived.service": ("keepalived", "keepalived.service.j2", "lb-1", 4.3),
    "mysql.service": ("mysql", "mysql.service.conf.j2", "mysql-1", 7.0),
    "nginx.service": ("nginx", "service.conf.j2", "app-1", 3.2),
}
Score = Callable[..., float]


@pytest.fixture(scope="module")
def scores() -> Iterator[dict[str, float]]:
    found: dict[str, float] = {}
    yield found
    table = (f"  {score:4.1f}  {unit}\n" for unit, score in sorted(found.items()))
    sys.stdout.write("\n" + "".join(table))


@pytest.fixture
def score(tmp_path: Path, scores: dict[str, float]) -> Score:
    """The exposure of a unit, with a drop-in or without."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed here")

    def scored(name: str, unit: str, drop_in: str = "") -> float:
        folder = tmp_path / "etc/systemd/system"
        (folder / f"{name}.d").mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(unit)
        (folder / f"{name}.d/flotilla.conf").write_text(drop_in)
        said = subprocess.run(
            [
                *("systemd-analyze", "security", "--offline=true", f"--root={tmp_path}"),
                *("--no-pager", name),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        found = re.search(r"Overall exposure level for \S+ (\d+\.\d+)", said.stdout)
        if found is None and "unrecognized option" in said.stderr:
            pytest.skip("systemd 250 or later scores units that are not loaded")
        assert found, said.stdout + said.stderr
        ignored = [line for line in said.stderr.splitlines() if "Unknown" in line]
        assert not ignored, "a misspelt setting protects nobody"
        scores[name] = float(found[1])
        return scores[name]

    return scored


@pytest.mark.parametrize("unit", OURS)
def test_our_services_have_what_they_need_and_little_more(render, score: Score, unit: str):
    role, template, host = OURS[unit]
    needed = {"keepalived_interface": "eth0"} | NEEDED.get(unit, {})
    assert score(unit, render(role, template, host=host, **needed)) <= LIMIT


@pytest.mark.parametrize("unit", PACKAGED)
def test_a_service_of_a_package_gets_a_sandbox_from_us(render, score: Score, unit: str):
    role, template, host, limit = PACKAGED[unit]
    user = "User=mysql\nGroup=mysql\n" if role == "mysql" else ""
    bare = f"[Service]\nExecStart=/bin/true\n{user}"
    without = score(unit, bare)
    assert score(unit, bare, render(role, template, host=host)) <= limit < without


def test_every_unit_that_a_role_brings_is_scored_here():
    named = {template for _, template, *_ in (*OURS.values(), *PACKAGED.values())}
    templates = {path.name for path in REPOSITORY.glob("roles/*/templates/*.service*.j2")}
    # Redis' drop-ins have another name, and Debian's units have the sandbox.
    assert templates - named == set(WITHOUT.values())


@pytest.mark.parametrize("unit", ["haproxy.service", "nginx.service", "flotilla-discovery.service"])
def test_who_compiles_regular_expressions_may_execute_what_it_wrote(render, unit: str):
    """PCRE compiles to memory; HAProxy refuses its configuration where it cannot."""
    role, template, host = (OURS | PACKAGED)[unit][:3]
    assert "MemoryDenyWriteExecute" not in render(role, template, host=host)
