"""Which images are made, launched and let go, and what makes one unfit."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules import images as rules

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
HASHES = {name: f"hash-of-{name}" for name in rules.NAMES}


def image(number, *, role="app", status="tested", age_days=0.0, state="available", content=None):
    return rules.Image(
        image_id=f"ami-{number}",
        name=f"flotilla-{role}-{number}",
        role=role,
        state=state,
        status=status,
        created_at=NOW - timedelta(days=age_days),
        content_hash=HASHES.get(role, "") if content is None else content,
        source_image="ami-source",
        build_id="build",
        git_commit="0" * 40,
        git_dirty=False,
        root_device="/dev/xvda",
    )


def actions(steps):
    return [(step.role, step.action) for step in steps]


def dropped(images, *, in_use=None, keep=2):
    verdicts = rules.prune(images, in_use=in_use or {}, keep=keep, now=NOW)
    return {verdict.image.image_id for verdict in verdicts if verdict.drop}


# What to make


def test_everything_is_baked_where_nothing_exists_and_base_comes_first():
    steps = rules.plan(rules.NAMES, [], HASHES)
    assert actions(steps)[0] == ("base", "bake")
    assert {role for role, action in actions(steps) if action == "bake"} == set(rules.NAMES)


def test_an_image_with_the_same_content_is_reused():
    same = image(1)
    (step,) = rules.plan(["app"], [same], HASHES)
    assert (step.action, step.image) == ("reuse", same)


def test_base_is_made_first_for_an_image_that_changed_even_if_nobody_asked_for_it():
    steps = rules.plan(["app"], [image(1, content="older")], HASHES)
    assert actions(steps) == [("base", "bake"), ("app", "bake")]
    assert "differs from flotilla-app-1" in steps[1].reason


def test_base_is_left_alone_when_no_image_is_made_from_it():
    assert actions(rules.plan(["app"], [image(1)], HASHES)) == [("app", "reuse")]


def test_what_was_baked_and_not_tested_is_tested_and_not_baked_again():
    (step,) = rules.plan(["app"], [image(1, status="baked")], HASHES)
    assert (step.action, step.image.image_id) == ("test", "ami-1")


def test_an_image_that_is_not_available_is_not_reused():
    steps = rules.plan(["base"], [image(1, role="base", state="failed")], HASHES)
    assert actions(steps) == [("base", "bake")]


def test_force_bakes_what_was_asked_for_and_reuses_a_base_that_was_not():
    images = [image(1), image(2, role="base")]
    steps = rules.plan(["app"], images, HASHES, force=True)
    assert actions(steps) == [("base", "reuse"), ("app", "bake")]


def test_hosts_are_launched_from_the_newest_image_that_is_tested_and_available():
    images = [
        image(1, age_days=9),
        image(2, age_days=3),
        image(3, status="baked", age_days=2),
        image(4, state="pending", age_days=1),
        image(5, role="lb"),
    ]
    assert rules.latest_tested(images, "app") == images[1]
    assert rules.latest_tested(images, "mysql") is None


# What to let go


def test_an_image_in_use_survives_however_old():
    images = [image(n, age_days=n) for n in range(1, 6)]
    assert dropped(images, in_use={"ami-5": "instance i-1"}, keep=2) == {"ami-3", "ami-4"}


def test_a_reason_names_what_uses_the_image():
    (verdict,) = rules.prune([image(1)], in_use={"ami-1": "instance i-7"}, keep=1, now=NOW)
    assert "instance i-7" in str(verdict)


def test_the_newest_tested_image_stays_when_newer_ones_never_passed():
    images = [image(1, age_days=90), image(2, status="baked", age_days=3)]
    assert dropped(images, keep=1) == {"ami-2"}


def test_an_untested_image_is_left_to_the_bake_that_may_be_making_it():
    young = image(1, status="baked", age_days=1 / 24)
    assert dropped([young, image(2)]) == set()


@st.composite
def worlds(draw):
    count = draw(st.integers(0, 14))
    images = [
        image(
            number,
            role=draw(st.sampled_from(["app", "lb", "base"])),
            status=draw(st.sampled_from(["tested", "baked", ""])),
            state=draw(st.sampled_from(["available", "available", "pending", "failed"])),
            # Few ages, so that equal ones are met.
            age_days=draw(st.sampled_from([0.01, 1, 1, 5, 30, 400])),
        )
        for number in range(count)
    ]
    used = draw(st.sets(st.sampled_from([i.image_id for i in images]))) if images else set()
    return images, dict.fromkeys(used, "launch template app, 3")


@given(worlds(), st.integers(-1, 6))
def test_nothing_in_use_and_no_roles_newest_tested_image_is_ever_dropped(world, keep):
    images, in_use = world
    gone = dropped(images, in_use=in_use, keep=keep)
    assert not gone & set(in_use)
    for role in {one.role for one in images}:
        newest = rules.latest_tested(images, role)
        assert newest is None or newest.image_id not in gone


@given(worlds(), st.integers(1, 6))
def test_every_image_gets_one_verdict_with_a_reason_and_keeping_more_drops_no_more(world, keep):
    images, in_use = world
    verdicts = rules.prune(images, in_use=in_use, keep=keep, now=NOW)
    assert sorted(v.image.image_id for v in verdicts) == sorted(i.image_id for i in images)
    assert all(verdict.reason for verdict in verdicts)
    assert dropped(images, in_use=in_use, keep=keep + 1) <= dropped(
        images, in_use=in_use, keep=keep
    )


@given(worlds(), st.integers(1, 6))
def test_a_second_prune_finds_nothing_to_drop(world, keep):
    images, in_use = world
    gone = dropped(images, in_use=in_use, keep=keep)
    left = [one for one in images if one.image_id not in gone]
    assert dropped(left, in_use=in_use, keep=keep) == set()


@given(worlds())
def test_a_plan_reuses_only_tested_images_with_the_wanted_content(world):
    images, _ = world
    mixed = [replace(one, content_hash="x") if n % 2 else one for n, one in enumerate(images)]
    for step in rules.plan(["app", "lb", "base"], mixed, HASHES):
        if step.action == "reuse":
            assert step.image.is_tested
            assert step.image.content_hash == HASHES[step.role]
        assert (step.image is None) == (step.action == "bake")


# Whether one is fit for use

EXPECTED = {
    "units": {"ssh.service": ["enabled", "active"], "mysql.service": ["disabled", None]},
    "commands": {"mysqld": ["mysqld", "--version"]},
}


def found(**changes):
    return {
        "units": {"ssh.service": ["enabled", "active"], "mysql.service": ["disabled", "inactive"]},
        "commands": {"mysqld": {"rc": 0, "output": "9.7.4"}},
        "present": [],
        "failed_units": [],
        "image": {"machine_id_sha256": "built", "host_keys": ["SHA256:built"]},
        "machine_id_sha256": "own",
        "host_keys": ["SHA256:own"],
        "authorized_keys": ["SHA256:launch"],
    } | changes


def test_a_host_that_is_as_it_should_be_has_no_faults():
    assert rules.faults(EXPECTED, found()) == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"units": {"ssh.service": ["enabled", "active"]}}, "mysql.service is not-found"),
        (
            {"units": {"ssh.service": ["enabled", "failed"], "mysql.service": ["disabled", ""]}},
            "ssh.service is failed, not active",
        ),
        ({"commands": {"mysqld": {"rc": 127, "output": "no such"}}}, "mysqld does not run"),
        ({"commands": {}}, "mysqld does not run: not tried"),
        ({"present": ["/root/.aws/credentials"]}, "/root/.aws/credentials must not be"),
        ({"failed_units": ["redis.service"]}, "unit redis.service failed"),
        ({"image": None}, "was not sealed"),
        ({"machine_id_sha256": "built"}, "machine id is the build host's"),
        ({"host_keys": ["SHA256:own", "SHA256:built"]}, "host keys were baked in: SHA256:built"),
        ({"host_keys": []}, "no SSH host keys"),
        ({"authorized_keys": ["SHA256:launch", "SHA256:other"]}, "2 keys may log in"),
        ({"authorized_keys": []}, "0 keys may log in"),
    ],
)
def test_each_fault_is_found_and_named(changes, fault):
    faults = rules.faults(EXPECTED, found(**changes))
    assert len(faults) == 1
    assert fault in faults[0]
