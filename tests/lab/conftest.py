"""The lab, and on it the fleet of inventory/lab, brought up once for all tests of this folder.

Where a machine cannot run hosts, every test here is skipped and counted with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from databases import Databases
from releases import Releases
from rolling import Rolling
from standing import bring_up_lab, said
from typed import fab, typed

from flotilla import config, demo, inventory
from flotilla.drill.subject import started
from flotilla.hosts.ssh import Runner, prepare
from flotilla.mysql.session import session
from flotilla.settings import ROLES, Settings

# A bare machine makes its images first.
_FLEET_SECONDS = 900.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First what needs the standing fleet, then the lab's own tests, which take it down: any other
    order configures 12 hosts again, 40 s each time. Before all what wants it freshly configured,
    and with the names that hosts have before Auto Scaling takes one and adds another.
    """
    first = ["test_site.py", "test_fleet_view.py"]
    # They read what all the others left, and what hosts did in them.
    last = ["test_security_secrets.py", "test_security_rights.py"]
    ours = [item for item in items if "lab" in item.path.parts]
    ours.sort(
        key=lambda item: (
            "standing_fleet" not in getattr(item, "fixturenames", ()),
            first.index(item.path.name) if item.path.name in first else len(first),
            last.index(item.path.name) if item.path.name in last else -1,
        )
    )
    others = [item for item in items if "lab" not in item.path.parts]
    items[:] = others + ours
    for item in ours:
        # Whichever comes first also waits for the fleet: on a bare machine for its images too,
        # 150 s of 250. The limit is for a hang, so it is not taken from the test's own.
        if "standing_fleet" in getattr(item, "fixturenames", ()):
            own = item.get_closest_marker("timeout")
            limit = own.args[0] if own else float(item.config.getini("timeout"))
            item.add_marker(pytest.mark.timeout(limit + _FLEET_SECONDS), append=False)


@pytest.fixture(scope="session", autouse=True)
def lab() -> None:
    bring_up_lab()


@pytest.fixture(scope="session")
def standing_fleet() -> Settings:
    """The 12 hosts of inventory/lab, configured and serving the guestbook."""
    settings = config.load("lab")
    if not _is_as_first_made(settings):
        typed("lab.down")
        bring_up_lab()
    demo.serve(settings, demo.Phases(said))
    return settings


def _is_as_first_made(settings: Settings) -> bool:
    """Whether hosts have the names of a new fleet: other tests let Auto Scaling exchange some."""
    numbers = {role: tier.count for role, tier in settings.tiers.items()}
    hosts = inventory.load(settings, refresh=True).hosts
    found = [(host.number, numbers[host.role]) for host in hosts if host.is_active]
    return all(number is not None and number <= count for number, count in found)


@pytest.fixture(scope="module")
def names(standing_fleet: Settings) -> dict[str, list[str]]:
    """The hosts that run, by role. Other tests exchange some, so app-1 need not be one."""
    snapshot = inventory.load(standing_fleet, refresh=True)
    return {role: [host.name for host in snapshot.by_role(role)] for role in ROLES}


@pytest.fixture(scope="module")
def runner(standing_fleet: Settings) -> Iterator[Runner]:
    """Commands on the standing fleet's hosts, over SSH."""
    snapshot = inventory.load(standing_fleet, refresh=True)
    prepare(standing_fleet, snapshot)
    with Runner(standing_fleet, snapshot) as opened:
        yield opened


@pytest.fixture(scope="session")
def rolling(standing_fleet: Settings, tmp_path_factory: pytest.TempPathFactory) -> Rolling:
    """The standing fleet and the releases to deploy there."""
    releases = Releases(standing_fleet, tmp_path_factory.mktemp("releases"))
    return Rolling(standing_fleet, releases)


@pytest.fixture
def fleet(rolling: Rolling) -> Iterator[Rolling]:
    """The same, whole at the beginning: one good release, every server UP, nobody at work.

    A test ends with ``is_whole``; what one that fails leaves is mended for the next one.
    """
    rolling.make_whole()
    yield rolling
    rolling.heal()


@pytest.fixture(scope="module")
def mysql_tier(standing_fleet: Settings) -> Iterator[Databases]:
    """The standing fleet's database hosts, and sessions on all of them; whole at the end."""
    # Of a session that was killed, a host may be left that its fence has stopped.
    for host in inventory.load(standing_fleet, refresh=True).stopped("mysql"):
        started(standing_fleet, host.instance_id)
    with session(standing_fleet, fresh=True) as opened:
        made = Databases(standing_fleet, opened)
        yield made
        made.make_whole()


@pytest.fixture
def databases(mysql_tier: Databases) -> Iterator[Databases]:
    """The same, whole at the beginning and without a fault at the end."""
    mysql_tier.make_whole()
    yield mysql_tier
    for target in list(mysql_tier.struck):
        mysql_tier.heal(target)


@pytest.fixture(scope="module")
def backup(standing_fleet: Settings) -> dict[str, Any]:
    """A full backup of now, taken as an operator takes it."""
    return fab("backup.run", "--yes")
