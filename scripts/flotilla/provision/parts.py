"""The parts of a fleet in the order they are made, and what each still lacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flotilla.aws.errors import described
from flotilla.errors import BadOption, FlotillaError
from flotilla.provision import groups, hosts, identity, network, storage, templates
from flotilla.provision.change import Change, Stage, carry_out
from flotilla.provision.world import World

PARTS: dict[str, Callable[[World], list[Stage]]] = {
    "network": network.stages,
    "groups": groups.stages,
    "identity": identity.stages,
    "storage": storage.stages,
    "templates": templates.stages,
    "hosts": hosts.stages,
}


def plan(world: World, *, shrink: Sequence[str] = ()) -> dict[str, list[Change]]:
    """Every difference between fleet.yml and AWS, by part. Reads only.

    Raises Refused where fleet.yml asks for what must not or cannot be done.
    """
    with described(world.settings, "compare the fleet with AWS"):
        return {
            name: [change for stage in _stages(world, name, shrink) for change in stage]
            for name in PARTS
        }


def converge(world: World, names: Sequence[str], *, shrink: Sequence[str] = ()) -> list[Change]:
    """Remove every difference of the named parts, in order, and look again; what was changed.

    Raises FlotillaError where a difference is still there afterwards.
    """
    done: list[Change] = []
    for name in names:
        with described(world.settings, f"make the {name} of the fleet"):
            stages = _stages(world, name, shrink)
            if carry_out(stages):
                done += [change for stage in stages for change in stage]
                left = [str(c) for stage in _stages(world, name, shrink) for c in stage]
                if left:
                    raise FlotillaError(
                        f"AWS accepted the changes of {name} but still differs: {'; '.join(left)}",
                        next="fab fleet.provision",
                    )
    return done


def _stages(world: World, name: str, shrink: Sequence[str]) -> list[Stage]:
    if name not in PARTS:
        raise BadOption(f"there is no part {name!r}; there are: {', '.join(PARTS)}")
    if name == "hosts":
        return hosts.stages(world, shrink=shrink)
    return PARTS[name](world)
