"""Machine images in EC2: list ours, find what uses them, finish a new one, remove an old one."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from botocore.exceptions import ClientError

from flotilla.aws.errors import code
from flotilla.aws.session import client, described
from flotilla.aws.waiters import paginate
from flotilla.errors import Refused
from flotilla.rules.images import Image
from flotilla.settings import Settings


def ours(settings: Settings) -> list[Image]:
    """Every image of this fleet, oldest first."""
    filters = [
        {"Name": "tag:Fleet", "Values": [settings.name]},
        {"Name": "tag:ManagedBy", "Values": ["flotilla"]},
    ]
    found = paginate(settings, "ec2", "describe_images", "Images", Owners=["self"], Filters=filters)
    images = [_image(one) for one in found]
    return sorted(images, key=lambda image: (image.created_at, image.image_id))


def source(settings: Settings) -> Mapping[str, Any]:
    """The newest public image that fleet.images.source names, as EC2 describes it.

    Raises Refused when there is none.
    """
    wanted = settings.images.source
    filters = [
        {"Name": "name", "Values": [wanted.name]},
        {"Name": "state", "Values": ["available"]},
    ]
    with described(settings, f"look for source images {wanted.name}"):
        found = client(settings, "ec2").describe_images(Owners=[wanted.owner], Filters=filters)
    if not found["Images"]:
        raise Refused(
            f"account {wanted.owner} has no image named {wanted.name} in {settings.region}",
            why="fleet.images.source says what our images are built from",
            untouched="Nothing was changed",
            next=settings.aws.hint,
        )
    newest: Mapping[str, Any] = max(
        found["Images"], key=lambda one: (one["CreationDate"], one["ImageId"])
    )
    return newest


def describe(settings: Settings, image_id: str) -> Mapping[str, Any]:
    """One image as EC2 describes it."""
    with described(settings, f"describe image {image_id}"):
        found = client(settings, "ec2").describe_images(ImageIds=[image_id])
    image: Mapping[str, Any] = found["Images"][0]
    return image


def in_use(settings: Settings) -> dict[str, str]:
    """What uses images, by image id: instances that exist and every launch template version."""
    used = {}
    templates = paginate(settings, "ec2", "describe_launch_templates", "LaunchTemplates")
    for template in list(templates):
        versions = paginate(
            settings,
            "ec2",
            "describe_launch_template_versions",
            "LaunchTemplateVersions",
            LaunchTemplateId=template["LaunchTemplateId"],
        )
        for version in versions:
            image_id = version["LaunchTemplateData"].get("ImageId")
            if image_id:
                number = version["VersionNumber"]
                used[image_id] = f"launch template {template['LaunchTemplateName']}, {number}"
    existing = ["pending", "running", "shutting-down", "stopping", "stopped"]
    filters = [{"Name": "instance-state-name", "Values": existing}]
    for reservation in paginate(
        settings, "ec2", "describe_instances", "Reservations", Filters=filters
    ):
        for instance in reservation["Instances"]:
            used[instance["ImageId"]] = f"instance {instance['InstanceId']}"
    return used


def finish(settings: Settings, image_id: str, *, deprecate_at: datetime) -> None:
    """Make hosts booted from the image use IMDSv2 only, and date its end.

    By API after the bake, because Packer before 1.7 can do neither.
    """
    ec2 = client(settings, "ec2")
    with described(settings, f"set IMDSv2 and the deprecation date of {image_id}"):
        ec2.modify_image_attribute(ImageId=image_id, ImdsSupport={"Value": "v2.0"})
        ec2.enable_image_deprecation(ImageId=image_id, DeprecateAt=deprecate_at)


def tag(settings: Settings, image: Image, **tags: str) -> None:
    """Set tags of an image and of its snapshots."""
    with described(settings, f"tag {image.image_id}"):
        client(settings, "ec2").create_tags(
            Resources=[image.image_id, *image.snapshots],
            Tags=[{"Key": key, "Value": value} for key, value in tags.items()],
        )


def remove(settings: Settings, image: Image) -> None:
    """Deregister an image and delete its snapshots; one that is gone already is fine."""
    ec2 = client(settings, "ec2")
    with described(settings, f"remove {image.image_id}"):
        _unless_gone("InvalidAMIID", lambda: ec2.deregister_image(ImageId=image.image_id))
        for snapshot in image.snapshots:
            _unless_gone(
                "InvalidSnapshot", lambda one=snapshot: ec2.delete_snapshot(SnapshotId=one)
            )


def _unless_gone(prefix: str, act: Any) -> None:
    try:
        act()
    except ClientError as error:
        if not code(error).startswith(prefix):
            raise


def _image(found: Mapping[str, Any]) -> Image:
    tags = {tag["Key"]: tag["Value"] for tag in found.get("Tags", ())}
    disks = [mapping["Ebs"] for mapping in found.get("BlockDeviceMappings", ()) if "Ebs" in mapping]
    return Image(
        image_id=found["ImageId"],
        name=found["Name"],
        role=tags.get("Role", ""),
        state=found["State"],
        status=tags.get("Status", ""),
        created_at=datetime.fromisoformat(found["CreationDate"]),
        content_hash=tags.get("ContentHash", ""),
        source_image=tags.get("SourceImage", ""),
        build_id=tags.get("BuildId", ""),
        git_commit=tags.get("GitCommit", ""),
        git_dirty=tags.get("GitDirty") == "true",
        root_device=found.get("RootDeviceName", "/dev/xvda"),
        snapshots=tuple(disk["SnapshotId"] for disk in disks if "SnapshotId" in disk),
    )
