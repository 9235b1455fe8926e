"""Launch templates: how a host of each role is made, on AWS's side, for us and for Auto Scaling
alike.

A version's description is a hash of what is in it, so a version is added only when the content
differs. AWS adds fields of its own to what it stores, which makes the stored content itself a poor
thing to compare.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from typing import Any

from flotilla.provision.change import Change, Stage
from flotilla.provision.world import World
from flotilla.settings import ROLES, SCRATCH

TAGGED = ("instance", "volume", "network-interface")


def stages(world: World) -> list[Stage]:
    """Templates need groups, profiles, the key and a tested image; nothing among them needs
    another.
    """
    found = _found(world)
    changes = []
    for role in (*ROLES, *SCRATCH):
        name = world.settings.name_of(role)
        present = found.get(name)
        if present is None:
            act = partial(_create, world, role)
            changes.append(Change("create", "launch template", name, act, _says(world, role)))
        elif not _is_current(world, role, present):
            act = partial(_add_version, world, role)
            changes.append(Change("change", "launch template", name, act, _says(world, role)))
        else:
            world.ids["launch template version", name] = str(present["DefaultVersionNumber"])
    return [changes]


def content(world: World, role: str) -> dict[str, Any]:
    """``LaunchTemplateData`` of a role. Ids of things that are still to be made read "new"."""
    settings = world.settings
    of = SCRATCH.get(role, role)
    tier = getattr(settings.tiers, of)
    image = world.image(of)
    return {
        "ImageId": image.image_id,
        "InstanceType": tier.type,
        "KeyName": settings.name_of("operator"),
        "IamInstanceProfile": {"Name": settings.name_of(role)},
        "SecurityGroupIds": [world.ids.get(("security group", settings.name_of(of)), "new")],
        # A hop limit of 1 keeps tokens from anything that forwards packets, such as a container on
        # the host.
        "MetadataOptions": {
            "HttpEndpoint": "enabled",
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": 1,
            "InstanceMetadataTags": "enabled",
        },
        "BlockDeviceMappings": [
            {
                "DeviceName": image.root_device,
                "Ebs": {
                    "Encrypted": True,
                    "VolumeType": "gp3",
                    "VolumeSize": tier.disk_gb,
                    "DeleteOnTermination": True,
                },
            }
        ],
        "TagSpecifications": [
            {"ResourceType": resource, "Tags": world.tags("", Role=role)} for resource in TAGGED
        ],
    }


def fingerprint(data: dict[str, Any]) -> str:
    """What a version's description says: the same for the same content, whatever the order of its
    keys.
    """
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:32]


def reference(world: World, role: str) -> dict[str, str]:
    """The current version, for a launch. A number, not ``$Latest``: Auto Scaling cannot roll back
    from that.

    The number reads "new" while the version is still to be made.
    """
    name = world.settings.name_of(role)
    version = world.ids.get(("launch template version", name), "new")
    return {"LaunchTemplateName": name, "Version": version}


def _found(world: World) -> dict[str, Any]:
    pages = world.ec2.get_paginator("describe_launch_templates").paginate(Filters=world.mine())
    return {
        template["LaunchTemplateName"]: template
        for page in pages
        for template in page["LaunchTemplates"]
    }


def _is_current(world: World, role: str, template: dict[str, Any]) -> bool:
    latest = world.ec2.describe_launch_template_versions(
        LaunchTemplateName=template["LaunchTemplateName"], Versions=["$Default"]
    )["LaunchTemplateVersions"][0]
    return bool(latest.get("VersionDescription") == fingerprint(content(world, role)))


def _says(world: World, role: str) -> str:
    data = content(world, role)
    return f"{data['ImageId']} on {data['InstanceType']}"


def _create(world: World, role: str) -> None:
    name, data = world.settings.name_of(role), content(world, role)
    world.ec2.create_launch_template(
        LaunchTemplateName=name,
        VersionDescription=fingerprint(data),
        LaunchTemplateData=data,
        TagSpecifications=world.tagged("launch-template", name, Role=role),
    )
    world.ids["launch template version", name] = "1"


def _add_version(world: World, role: str) -> None:
    """Add a version with all of the content: one that only names what it changes would depend on
    its parent.
    """
    name, data = world.settings.name_of(role), content(world, role)
    made = world.ec2.create_launch_template_version(
        LaunchTemplateName=name, VersionDescription=fingerprint(data), LaunchTemplateData=data
    )["LaunchTemplateVersion"]["VersionNumber"]
    world.ec2.modify_launch_template(LaunchTemplateName=name, DefaultVersion=str(made))
    world.ids["launch template version", name] = str(made)
