"""Hosts replaced by hosts of another image, as an operator types it, judged by clients.

The other image is a copy with the same tags, as a bake of the same sources would be; the bad one is
the bastion's, tagged as an application image: it boots, and serves nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest
from guests import needs_lab, until
from rolling import Rolling
from typed import KILL, fab, interfered, typed

from flotilla import images
from flotilla.aws import edge, scaling
from flotilla.aws import images as image_edge
from flotilla.aws.session import client
from flotilla.replace.record import unfinished
from flotilla.settings import Settings

# Both tiers are brought back to their images behind the last test.
pytestmark = [needs_lab, pytest.mark.timeout(900)]
# What is found out about one moment is much what is found out about the next one.
AGAIN = pytest.mark.thorough

JOIN_SECONDS = 90
_LB = ("deploy.image", "--role", "lb", "--image")
COPY_SECONDS = 60


def copied(settings: Settings, source: str, **tags: str) -> str:
    """Another image with the same disk, and the tags that say what is in it."""
    original, ec2 = images.find(settings, source), client(settings, "ec2")
    said = image_edge.describe(settings, original.image_id)["Tags"]
    wanted = {tag["Key"]: tag["Value"] for tag in said} | tags
    name = f"{original.name}-{uuid.uuid4().hex[:6]}"
    made = ec2.copy_image(Name=name, SourceImageId=original.image_id, SourceRegion=settings.region)[
        "ImageId"
    ]
    until(
        lambda: image_edge.describe(settings, made)["State"] == "available", COPY_SECONDS, "a copy"
    )
    wanted["Name"] = name
    ec2.create_tags(Resources=[made], Tags=[{"Key": k, "Value": v} for k, v in wanted.items()])
    return str(made)


Copy = Callable[..., str]


@pytest.fixture(scope="module")
def copy(rolling: Rolling) -> Iterator[Copy]:
    """Makes images; at the end every host is again of the image it was of, and they are gone."""
    settings, made = rolling.settings, []
    before = {role: rolling.hosts(role)[0].image_id for role in ("app", "lb")}

    def make(role: str, **tags: str) -> str:
        """A copy of what hosts of a role are of now."""
        made.append(copied(settings, rolling.hosts(role)[0].image_id, **tags))
        return made[-1]

    yield make
    for role, image in before.items():
        if unfinished(settings, role):
            # What a test that failed has left: it would be gone on with, and nothing else begun.
            typed("deploy.image", "--role", role, "--back", "--take-over", "--yes", code=2)
        if {host.image_id for host in rolling.hosts(role)} != {image}:
            fab("deploy.image", "--role", role, "--image", image, "--take-over", "--yes")
    for image in made:
        client(settings, "ec2").deregister_image(ImageId=image)


def of(fleet: Rolling, role: str = "app") -> set[str]:
    """The images that the hosts of a role are of."""
    return {host.image_id for host in fleet.hosts(role) if host.is_active}


@pytest.mark.drill
def test_a_host_that_auto_scaling_adds_serves_with_nobody_there(fleet) -> None:
    size = fleet.settings.tiers.app.count
    try:
        with fleet.clients() as clients:
            fleet.desire(size + 1)
            until(lambda: len(fleet.up()) == size + 1, JOIN_SECONDS, "a new host serves")
            added = max(fleet.hosts("app"), key=lambda host: host.launched_at)
            clients.saw_nothing()
        assert added.name in fleet.up()
        assert fleet.served() == {fleet.version}
        told = fab("fleet.configure", "--check", "--limit", added.name)
        assert told["hosts"][added.name]["changed"] == 0, "the playbook would do nothing else"
    finally:
        fleet.desire(size)
        until(lambda: len(fleet.up()) == size, JOIN_SECONDS, "the group has its size")
    fleet.is_whole(fleet.version)


@pytest.mark.drill
def test_every_host_is_replaced_under_load_and_none_is_missed(fleet, copy) -> None:
    other = copy("app")
    size = fleet.settings.tiers.app.count
    with fleet.clients() as clients:
        outcome = fab("deploy.image", "--image", other, "--yes")
        clients.saw_nothing()
    assert outcome["result"] == "done"
    assert outcome["failed"] == 0
    assert outcome["least_serving"] >= size
    assert of(fleet) == {other}
    assert scaling.group(fleet.settings, "app").desired == size
    assert not scaling.group(fleet.settings, "app").suspended
    fleet.is_whole(fleet.version)
    assert fab("fleet.configure", "--check", "--limit", "app")["changed"] == 0


@pytest.mark.drill
def test_an_image_that_never_serves_costs_one_host_that_no_client_saw(fleet, copy) -> None:
    bad = copy("bastion", Role="app")
    before = {host.instance_id for host in fleet.hosts("app")}
    version = scaling.group(fleet.settings, "app").version
    with fleet.clients() as clients:
        outcome = fab(*("deploy.image", "--image", bad, "--come-seconds", "40", "--yes"), code=2)
        clients.saw_nothing()
    assert outcome["result"] == "rolled back"
    assert len(outcome["launched"]) == 1
    # EC2 takes a moment between the order to terminate and the end.
    until(
        lambda: {host.instance_id for host in fleet.hosts("app")} == before,
        60,
        "only the hosts of before are left",
    )
    assert scaling.group(fleet.settings, "app").version == version
    assert images.find(fleet.settings, bad).status == "failed"
    refused = fab("deploy.image", "--image", bad, "--yes", code=3)
    assert "Status 'failed'" in refused["error"]["what"]
    fleet.is_whole(fleet.version)


def test_an_image_that_was_not_tested_is_refused(fleet, copy) -> None:
    untested = copy("app", Status="baked")
    told = fab("deploy.image", "--image", untested, "--yes", code=3)
    assert "Status 'baked'" in told["error"]["what"]
    assert told["error"]["untouched"] == "Nothing was changed"


@pytest.mark.drill
@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(r"before write serves .*", id="once the first one serves", marks=AGAIN),
        pytest.param(r"before order .* state drain", id="while an old one is drained"),
        pytest.param(r"before write intent .*terminate.*", id="before it is ended", marks=AGAIN),
    ],
)
def test_a_killed_run_is_gone_on_with_by_the_same_command(fleet, copy, moment: str) -> None:
    other = copy("app")
    with fleet.clients() as clients:
        with interfered(moment, KILL, "deploy.image", "--image", other, "--yes") as run:
            run.exits(-9)
        told = fab("deploy.image", "--image", other, "--yes", code=3)
        assert "--take-over" in told["error"]["next"]
        outcome = fab("deploy.image", "--take-over", "--yes")
        clients.saw_nothing()
    assert outcome["result"] == "done"
    assert outcome["least_serving"] >= fleet.settings.tiers.app.count
    assert of(fleet) == {other}
    fleet.is_whole(fleet.version)


@pytest.mark.drill
def test_a_killed_run_is_taken_back(fleet, copy) -> None:
    before = of(fleet)
    with fleet.clients() as clients:
        moment = "before order .* state drain"
        with interfered(moment, KILL, "deploy.image", "--image", copy("app"), "--yes") as run:
            run.exits(-9)
        outcome = fab("deploy.image", "--back", "--take-over", "--yes", code=2)
        clients.saw_nothing()
    assert outcome["result"] == "rolled back"
    assert of(fleet) == before
    fleet.is_whole(fleet.version)


@pytest.mark.drill
def test_both_load_balancers_are_replaced_and_the_address_moves_once(fleet, copy) -> None:
    other = copy("lb")
    before = {host.instance_id for host in fleet.hosts("lb")}
    with fleet.clients() as clients:
        with interfered("before write end .*", "true", *_LB, other, "--yes") as run:
            code, outcome, said = run.ends()
        seen = clients.stop()
    assert code == (1 if outcome["failed"] else 0), said
    assert outcome["result"] == "done"
    assert outcome["least_serving"] == 2, "one serves and another one could, at every look"
    assert outcome["outage_seconds"] <= 10
    assert seen["gap_seconds"] <= 10
    assert of(fleet, "lb") == {other}
    now = fleet.hosts("lb")
    assert {host.name for host in now} == {"lb-1", "lb-2"}
    assert not before & {host.instance_id for host in now}
    (owner,) = edge.owners(fleet.settings)
    assert owner in {host.instance_id for host in now}
    fleet.is_whole(fleet.version)
