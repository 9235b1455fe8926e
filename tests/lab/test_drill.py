"""Drills of deploys on the standing fleet: short ones, for the shape and the promises."""

from __future__ import annotations

import pytest
from guests import needs_lab
from typed import fab

from flotilla.traffic import KINDS

pytestmark = needs_lab
SHORT = ("--rate", "60", "--calm", "4")


@pytest.mark.drill
def test_a_drill_tells_what_clients_of_every_kind_saw(fleet) -> None:
    told = fab("drill.deploy", *SHORT, "--versions", f"{fleet.version},{fleet.other}")
    assert (told["runs"], told["fault"], told["failed"], told["lost"]) == (1, None, 0, 0)
    assert told["broken"] == []
    (run,) = told["each"]
    assert run["served"] == told["served"] > 60 * (4 + 4)
    assert set(run["kinds"]) == set(KINDS)
    assert all(kind["served"] > 0 for kind in run["kinds"].values())
    assert told["p99_ms"]["during"]["worst"] >= told["p99_ms"]["during"]["median"] > 0
    assert told["seconds"]["median"] == run["seconds"] > 0
    fleet.is_whole(fleet.other)


@pytest.mark.drill
@pytest.mark.thorough
def test_a_drill_with_a_bad_release_ends_where_it_began(fleet) -> None:
    told = fab("drill.deploy", *SHORT, "--fault", "wrong-version")
    (run,) = told["each"]
    assert (run["result"], told["broken"]) == ("rolled back", [])
    fleet.is_whole(fleet.version)


@pytest.mark.drill
@pytest.mark.timeout(480)
def test_clients_that_a_cookie_keeps_on_a_server_lose_no_request(fleet) -> None:
    told = fab(
        *("drill.deploy", *SHORT, "--sticky", "--versions", f"{fleet.version},{fleet.other}")
    )
    assert told["failed"] == 0, told["failures"]
    assert told["each"][0]["cookies"]["FLOTILLA"] == 24, "every sticky client was given a server"
    fleet.is_whole(fleet.other)


@pytest.mark.drill
@pytest.mark.thorough
@pytest.mark.parametrize("fault", ["lb-reload", "operator-kill", "api-down"])
def test_a_fault_in_a_deploy_strikes_and_no_client_notices(fleet, fault: str) -> None:
    told = fab(
        *("drill.deploy", *SHORT, "--fault", fault),
        *("--versions", f"{fleet.version},{fleet.other}"),
    )
    assert told["failed"] == 0, told["failures"]
    assert told["each"][0]["struck_at"]
    with fleet.world() as world:
        seen = world.balancers.servers()
    assert all(one.is_serving for servers in seen.values() for one in servers.values())


def test_a_fault_that_there_is_not_is_a_bad_option_that_names_those_there_are(fleet) -> None:
    told = fab("drill.deploy", "--fault", "earthquake", code=5)
    assert "lb-reload" in told["error"]["what"]
    fleet.is_whole(fleet.version)
