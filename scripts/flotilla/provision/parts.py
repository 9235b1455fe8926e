"""The parts of a fleet in the order they are made, and what each still lacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flotilla.aws.errors import described
from flotilla.errors import FlotillaError
from flotilla.provision import groups, hosts, identity, network, storage, templates
from flotilla.provision.change import Change, Stage, carry_out
from flotilla.provision.world import World

Look = Callable[[World, Sequence[str]], list[Stage]]

PARTS: dict[str, Look] = {
    "network": lambda world, _shrink: network.stages(world),
    "groups": lambda world, _shrink: groups.stages(world),
    "identity": lambda world, _shrink: identity.stages(world),
    "storage": lambda world, _shrink: storage.stages(world),
    "templates": lambda world, _shrink: templates.stages(world),
    "hosts": lambda world, shrink: hosts.stages(world, shrink=shrink),
}


def plan(world: World, *, shrink: Sequence[str] = ()) -> dict[str, list[Change]]:
    """Every difference between fleet.yml and AWS, by part. Reads only.

    ``shrink`` names the stateful roles that may lose hosts. Raises Refused where fleet.yml asks for
    what must not or cannot be done.
    """
    with described(world.settings, "compare the fleet with AWS"):
        return {
            part: [change for stage in stages(world, shrink) for change in stage]
            for part, stages in PARTS.items()
        }


def converge(
    world: World,
    *,
    shrink: Sequence[str] = (),
    began: Callable[[str, Sequence[Change]], None] = lambda _part, _changes: None,
) -> list[Change]:
    """Remove every difference, part by part, and look at each part again; what was changed.

    ``began`` hears of each part and its changes before they are made. Raises FlotillaError where a
    difference is still there afterwards; the parts after it are then untouched.
    """
    done: list[Change] = []
    for part, look in PARTS.items():
        with described(world.settings, f"make the {part} of the fleet"):
            stages = look(world, shrink)
            changes = [change for stage in stages for change in stage]
            began(part, changes)
            carry_out(stages)
            left = [str(c) for stage in look(world, shrink) for c in stage] if changes else []
        if left:
            raise FlotillaError(
                f"AWS accepted the changes of {part} but still differs: {'; '.join(left)}",
                next="fab fleet.provision",
            )
        done += changes
    return done
