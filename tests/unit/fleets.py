"""A fleet.yml for tests, and the tested images it needs, in moto's API in this process."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flotilla import config, environment
from flotilla.provision import parts
from flotilla.provision.world import World
from flotilla.settings import ROLES

LAB = environment.root() / "inventory" / "lab" / "group_vars" / "all" / "fleet.yml"
Make = Callable[..., World]


def maker(root: Path) -> Make:
    """A function that gives a World: ``make(app=4)`` is the lab's fleet with four app hosts.

    ``name`` and ``vpc_cidr`` replace those of the lab's fleet.yml.
    """
    text = re.sub(r"(profile|credentials_file|endpoint_url): \S+", r"\1: null", LAB.read_text())

    def make(name: str = "flotilla", vpc_cidr: str = "10.77.0.0/16", **counts: int) -> World:
        changed = text.replace("name: flotilla", f"name: {name}")
        changed = changed.replace("10.77.0.0/16", vpc_cidr)
        for role, count in counts.items():
            changed = re.sub(rf"({role}: {{count: )\d+", rf"\g<1>{count}", changed)
        settings = config.parse(changed.encode(), env="lab", shown="fleet.yml", root=root)
        return World(settings, sleep=lambda _seconds: None)

    return make


def register_images(
    world: World, status: str = "tested", *, replace: bool = False
) -> dict[str, str]:
    """An image for every role, by role; with ``replace`` they are the only ones."""
    old = world.ec2.describe_images(Owners=["self"])["Images"] if replace else []
    for image in old:
        world.ec2.deregister_image(ImageId=image["ImageId"])
    images = {}
    for role in ROLES:
        name = f"{world.settings.name}-{role}-{status}"
        image = world.ec2.register_image(Name=name, RootDeviceName="/dev/sda1")["ImageId"]
        tags = world.tags(name, Role=role, Status=status)
        world.ec2.create_tags(Resources=[image], Tags=tags)
        images[role] = image
    return images


def planned(world: World, **options: Any) -> list[str]:
    """The plan in words."""
    return [str(change) for change in parts.plan(world, **options)]


def secret_values(world: World) -> dict[str, str]:
    """The fleet's secrets by parameter name."""
    pages = world.client("ssm").get_paginator("get_parameters_by_path")
    return {
        found["Name"]: found["Value"]
        for page in pages.paginate(
            Path=f"/{world.settings.name}", Recursive=True, WithDecryption=True
        )
        for found in page["Parameters"]
    }
