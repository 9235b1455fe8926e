"""Deploys over two real HAProxies and three real HTTP servers, judged by clients."""

from __future__ import annotations

import socket
import threading

import pytest
from deploy_fleet import LIMITS, Fleet, fleet, sticky, traffic, until

from flotilla.deploy import Roll
from flotilla.deploy.journal import read
from flotilla.errors import HostFailed

__all__ = ["fleet", "sticky"]  # fixtures, which pytest finds by name


def test_a_deploy_under_mixed_traffic_fails_no_request(fleet: Fleet) -> None:
    with traffic(fleet) as clients:
        outcome = fleet.deploy("2")
        seen = clients.stop()
    assert outcome.result == "done"
    assert fleet.versions == ["2", "2", "2"]
    assert (seen["failed"], outcome.failed) == (0, 0)
    assert seen["served"] > 100
    assert outcome.served > 0
    assert fleet.everything_up()
    assert outcome.line.startswith(f"served {outcome.served}, failed 0, retried ")


@pytest.mark.parametrize("sticky", [True])
def test_clients_kept_by_a_cookie_are_moved_and_lose_nothing(fleet: Fleet) -> None:
    with traffic(fleet) as clients:
        outcome = fleet.deploy("2")
        seen = clients.stop()
    assert outcome.result == "done"
    assert seen["failed"] == 0
    assert seen["kinds"]["sticky"]["served"] > 10


@pytest.mark.parametrize("fault", ["broken", "lies"])
def test_a_bad_release_is_seen_by_the_canary_only_and_taken_back(fleet: Fleet, fault: str) -> None:
    for machine in fleet.machines.values():
        getattr(machine, fault).add("2")
    with traffic(fleet) as clients:
        outcome = fleet.deploy("2")
        seen = clients.stop()
    assert outcome.result == "rolled back"
    assert fleet.versions == ["1", "1", "1"]
    assert seen["failed"] == 0
    assert sum("switch 2" in machine.calls for machine in fleet.machines.values()) == 1
    assert fleet.everything_up()
    with pytest.raises(HostFailed, match="Every host runs again what it ran before"):
        outcome.raise_failure()


def test_a_failure_on_the_last_host_takes_the_finished_ones_back_too(fleet: Fleet) -> None:
    last = fleet.machines["app-3"]
    last.broken.add("2")
    with traffic(fleet) as clients:
        outcome = fleet.deploy("2")
        seen = clients.stop()
    assert outcome.result == "rolled back"
    assert fleet.versions == ["1", "1", "1"]
    assert seen["failed"] == 0
    assert fleet.everything_up()


def test_a_second_failure_stops_and_names_the_hosts(fleet: Fleet) -> None:
    fleet.machines["app-2"].broken.add("2")
    fleet.machines["app-2"].fails["switch 1"] = "the disk is gone"
    with traffic(fleet) as clients:
        outcome = fleet.deploy("2")
        seen = clients.stop()
    assert outcome.result == "stopped"
    assert "the disk is gone" in outcome.left["app-2"]
    assert outcome.left["app-1"] == "runs 2"
    assert seen["failed"] == 0, "hosts that are broken must not be in rotation"
    with pytest.raises(HostFailed, match=r"app-2: .*the disk is gone.*--adopt"):
        outcome.raise_failure()


def test_staging_that_fails_on_one_host_takes_none_out_of_rotation(fleet: Fleet) -> None:
    fleet.machines["app-3"].fails["stage 2"] = "checksum differs"
    with pytest.raises(HostFailed, match="No host left rotation"):
        fleet.deploy("2")
    assert fleet.versions == ["1", "1", "1"]
    assert fleet.everything_up()
    assert not any("switch 2" in machine.calls for machine in fleet.machines.values())


def test_the_schema_is_migrated_once_and_before_any_host_is_switched(fleet: Fleet) -> None:
    fleet.deploy("2")
    calls = [call for machine in fleet.machines.values() for call in machine.calls]
    assert calls.count("migrate 2") == 1
    canary = next(m for m in fleet.machines.values() if "migrate 2" in m.calls)
    assert canary.calls.index("migrate 2") < canary.calls.index("switch 2")


def test_a_migration_that_fails_changes_no_host(fleet: Fleet) -> None:
    for machine in fleet.machines.values():
        machine.fails["migrate 2"] = "no such table"
    with pytest.raises(HostFailed, match="no such table"):
        fleet.deploy("2")
    assert fleet.everything_up()


def test_the_first_release_ever_is_deployed_to_empty_hosts(fleet: Fleet) -> None:
    for machine in fleet.machines.values():
        machine.call("retire")
    until(lambda: not any(host.is_serving for host in fleet.hosts()))
    outcome = fleet.deploy("2")
    assert outcome.result == "done"
    assert fleet.versions == ["2", "2", "2"]
    assert fleet.everything_up()


def test_a_first_release_that_is_bad_leaves_the_hosts_empty_and_out(fleet: Fleet) -> None:
    for machine in fleet.machines.values():
        machine.call("retire")
        machine.broken.add("2")
    until(lambda: not any(host.is_serving for host in fleet.hosts()))
    outcome = fleet.deploy("2")
    assert outcome.result == "rolled back"
    assert fleet.versions == [None, None, None]
    until(lambda: not any(host.is_serving or host.is_out for host in fleet.hosts()))


def test_a_host_that_cannot_be_emptied_goes_back_into_rotation(fleet: Fleet) -> None:
    """A client that holds a request open for longer than the drain deadline."""
    port = int(fleet.url.rpartition(":")[2])
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
    for connection in held:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
    until(lambda: any(v.sessions for h in fleet.hosts() for v in h.views.values()))
    outcome = fleet.deploy("2")
    for connection in held:
        connection.close()
    assert outcome.result == "rolled back"
    assert "in flight" in outcome.reason
    assert fleet.versions == ["1", "1", "1"]
    assert fleet.everything_up()


def test_a_host_lost_in_mid_deploy_stops_it_before_too_few_serve(fleet: Fleet) -> None:
    lost = fleet.machines["app-3"]
    roll = Roll(fleet.world, LIMITS, said=lambda _: None)
    lost.stop()
    until(lambda: not fleet.hosts()[2].is_serving)
    assert roll.why_too_few(["app-1"], 2) == "besides app-1 only app-2 would serve, and 2 must"
    threading.Thread(target=lost.start).start()
    assert roll.why_too_few(["app-1"], 2) is None, "a host that comes back is waited for"


def test_an_interruption_between_batches_takes_everything_back(fleet: Fleet) -> None:
    def stopping() -> str:
        done = any(line["event"] == "proved" for line in read(fleet.journal.path))
        return "interrupted by the operator" if done else ""

    outcome = fleet.deploy("2", stopping=stopping)
    assert outcome.result == "rolled back"
    assert outcome.reason == "interrupted by the operator"
    assert fleet.versions == ["1", "1", "1"]


def test_the_journal_tells_every_step_and_how_it_ended(fleet: Fleet) -> None:
    outcome = fleet.deploy("2")
    lines = read(fleet.journal.path)
    assert [line["event"] for line in lines][:2] == ["stage", "migrate"]
    assert lines[-1]["event"] == "end"
    assert lines[-1]["served"] == outcome.served
    told = {(line["host"], line["step"]) for line in lines if line["event"] == "step"}
    assert ("app-1", "drain") in told
    assert ("app-3", "return") in told


def test_a_host_that_is_right_already_is_not_touched(fleet: Fleet) -> None:
    fleet.deploy("2")
    for machine in fleet.machines.values():
        machine.calls.clear()
    assert fleet.deploy("2").result == "nothing to do"
    assert not any(machine.calls for machine in fleet.machines.values())
