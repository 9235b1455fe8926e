"""The launch template version that starts hosts of one image."""

from __future__ import annotations

from flotilla.aws import scaling
from flotilla.aws.session import described
from flotilla.errors import Refused
from flotilla.images import Image
from flotilla.provision import groups, network, templates
from flotilla.provision.world import World
from flotilla.rules import placement
from flotilla.settings import Settings


def version(settings: Settings, image: Image) -> str:
    """The number of the version for ``image``, as provisioning would make it; added when missing.

    Nobody launches from it yet. Raises Refused where the fleet is not as fleet.yml says.
    """
    world = World(settings)
    world.use(image)
    # What these find is what a template refers to.
    missing = [
        str(change)
        for look in (network.stages, groups.stages)
        for stage in look(world)
        for change in stage
    ]
    if missing:
        raise Refused(
            f"AWS is not as fleet.yml says: {'; '.join(missing)}",
            why="new hosts would be launched into something else than what was provisioned",
            untouched="Nothing was changed",
            next="fab fleet.provision",
        )
    data = templates.content(world, image.role)
    content = templates.fingerprint(data)
    for known in scaling.versions(settings, image.role):
        if (known.content, known.image_id) == (content, image.image_id):
            return known.number
    return scaling.add_version(settings, image.role, data, content)


def version_of(settings: Settings, role: str, image_id: str) -> str:
    """The newest version that starts hosts of an image; "" when there is none."""
    found = scaling.versions(settings, role)
    return next((one.number for one in found if one.image_id == image_id), "")


def start(settings: Settings, role: str, image_id: str, *, name: str, zone: str) -> str:
    """Start one host of a role that has no Auto Scaling group; its instance id."""
    world = World(settings)
    network.stages(world)
    place = "public" if role in placement.PUBLIC else "private"
    template = {
        "LaunchTemplateName": settings.name_of(role),
        "Version": version_of(settings, role, image_id),
    }
    with described(settings, f"launch {name}"):
        made = world.ec2.run_instances(
            LaunchTemplate=template,
            SubnetId=world.id("subnet", network.subnet(world, place, zone)),
            MinCount=1,
            MaxCount=1,
            TagSpecifications=world.tagged("instance", name, Role=role),
        )["Instances"][0]
    return str(made["InstanceId"])
