"""The parts of a fleet in the order they are made, and what each still lacks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from flotilla.aws.errors import described
from flotilla.errors import FlotillaError
from flotilla.provision import (
    authority,
    copies,
    groups,
    hosts,
    identity,
    network,
    storage,
    templates,
)
from flotilla.provision.change import Change, Stage, carry_out
from flotilla.provision.world import World

Look = Callable[[World, Sequence[str]], list[Stage]]

PARTS: dict[str, Look] = {
    "network": lambda world, _shrink: network.stages(world),
    "groups": lambda world, _shrink: groups.stages(world),
    "identity": lambda world, _shrink: identity.stages(world),
    "storage": lambda world, _shrink: storage.stages(world),
    "authority": lambda world, _shrink: authority.stages(world),
    "copies": lambda world, _shrink: copies.stages(world),
    "templates": lambda world, _shrink: templates.stages(world),
    "hosts": lambda world, shrink: hosts.stages(world, shrink=shrink),
}


def plan(world: World, *, shrink: Sequence[str] = ()) -> list[Change]:
    """Every difference between fleet.yml and AWS, in the order they would go. Reads only.

    ``shrink`` names the stateful roles that may lose hosts. Raises Refused where fleet.yml asks for
    what must not or cannot be done.
    """
    with described(world.settings, "compare the fleet with AWS"):
        return [
            change for look in PARTS.values() for stage in look(world, shrink) for change in stage
        ]


def converge(
    world: World,
    *,
    shrink: Sequence[str] = (),
    told: Callable[[str, int, float], None] = lambda _part, _changes, _seconds: None,
    clock: Callable[[], float] = time.monotonic,
) -> list[Change]:
    """Remove every difference, part by part, and look at each part again; what was changed.

    ``told`` hears of each part that is done: its name, how many changes, how many seconds. Raises
    FlotillaError where a difference is still there afterwards; later parts are then untouched.
    """
    done: list[Change] = []
    for part, look in PARTS.items():
        start = clock()
        with described(world.settings, f"make the {part} of the fleet"):
            stages = look(world, shrink)
            changes = [change for stage in stages for change in stage]
            carry_out(stages)
            left = [str(c) for stage in look(world, shrink) for c in stage] if changes else []
        if left:
            raise FlotillaError(
                f"AWS accepted the changes of {part} but still differs: {'; '.join(left)}",
                next="fab fleet.provision",
            )
        done += changes
        told(part, len(changes), clock() - start)
    return done
