"""What the standing fleet's own ports offer, judged against Mozilla's profiles.

The same by the newest images' own programs, where there is no lab, is in tests/security.
"""

from __future__ import annotations

from pathlib import Path

import certifi
import pytest
from guests import needs_lab
from security import tls

from flotilla import inventory
from flotilla.aws import edge
from flotilla.hosts.ssh import Runner
from flotilla.settings import Settings

pytestmark = [needs_lab, pytest.mark.drill, pytest.mark.timeout(1200)]

INTERMEDIATE, MODERN = "intermediate", "modern"
# From a host that may, by the table, to one that answers.
HOPS = [
    ("nginx", "lb", "app", 443),
    ("mysql", "app", "mysql", 3306),
    ("redis", "app", "redis", 6379),
]


@pytest.fixture
def root(runner: Runner, names: dict[str, list[str]], tmp_path: Path) -> Path:
    """What application hosts believe."""
    path = tmp_path / "root.pem"
    command = "cat /etc/flotilla/tls/authority.pem"
    path.write_text(runner.run(names["app"][0], command, sudo=True).stdout)
    return path


@pytest.mark.parametrize("hop", HOPS, ids=[hop[0] for hop in HOPS])
def test_every_hop_behind_the_edge_is_modern(
    standing_fleet: Settings,
    runner: Runner,
    root: Path,
    scores: dict[str, str],
    hop: tuple[str, str, str, int],
) -> None:
    what, asking, role, port = hop
    snapshot = inventory.load(standing_fleet)
    source, host = snapshot.by_role(asking)[0].name, snapshot.by_role(role)[0]
    name = standing_fleet.zone(role)

    def dial() -> tls.Stream:
        stream = runner.stream(source, f"socat - TCP:{host.private_ip}:{port},connect-timeout=5")
        stream.settimeout(30)
        return stream

    with tls.front(dial, mysql=what == "mysql") as where:
        found = tls.differences(where, MODERN, root, name=name)
    scores[f"tls {what}"] = tls.score(what, MODERN, found)
    assert found == tls.ACCEPTED.get(what, [])


def test_the_edge_is_intermediate_with_an_a_plus(
    standing_fleet: Settings, scores: dict[str, str], tmp_path: Path
) -> None:
    if not edge.url(standing_fleet).startswith("https://"):
        pytest.skip("this fleet's edge has no certificate; tests/security gives it one")
    where, name = (edge.address(standing_fleet), 443), standing_fleet.domain
    root = Path(certifi.where())
    found = tls.differences(where, INTERMEDIATE, root, name=name)
    letter, number, weighty = tls.grade(where, root, tmp_path, name=name)
    scores["tls edge"] = tls.score("edge", INTERMEDIATE, found)
    scores["testssl.sh edge"] = f"{letter}, {number} of 100, {len(weighty)} findings of weight"
    assert found == []
    assert letter == "A+"
    assert weighty == []
