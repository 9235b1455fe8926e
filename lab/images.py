"""The image actions of the EC2 API, on real disks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moto.core.responses import ActionResult
from moto.ec2.exceptions import EC2ClientError

from lab import amis
from lab.amis import AmiStore
from lab.instances import Instances
from lab.launching import check_image


@dataclass(frozen=True, slots=True)
class Parts:
    """What the image actions act on."""

    instances: Instances
    store: AmiStore


def create_image(
    parts: Parts, original: Any, self: Any, instance_id: str, name: str, *args: Any, **kwargs: Any
) -> Any:
    """CreateImage: `pending` until the disk is written; a running instance is shut down for it."""
    parts.store.check_name(self, name)
    instance = self.get_instance(instance_id)
    if instance.state not in ("running", "stopped"):
        raise EC2ClientError(
            "IncorrectInstanceState", f"The instance '{instance_id}' is {instance.state}"
        )
    specifications = kwargs.pop("tag_specifications", None) or []
    images = [s for s in specifications if s["ResourceType"] == "image"]
    ami = original(self, instance_id, name, *args, tag_specifications=images, **kwargs)
    for specification in specifications:
        if specification["ResourceType"] == "snapshot":
            ami.ebs_snapshot.add_tags({tag["Key"]: tag["Value"] for tag in specification["Tags"]})
    amis.as_virtual_machine(ami)
    ami.state, ami.source_image_id = "pending", instance.image_id
    _like_disk(self, ami, instance)
    hosts, was_up = parts.instances.hosts, instance.state == "running"

    def make() -> None:
        if was_up:
            hosts.stop(instance_id)
        try:
            hosts.commit(instance_id, amis.reference(ami.id))
        finally:
            if was_up and instance.state == "running":
                hosts.start(instance_id)

    _finish(parts, self, ami, make)
    return ami


def _like_disk(ec2: Any, ami: Any, instance: Any) -> None:
    """Give an image the size and the encryption of its instance's root volume."""
    root = instance.block_device_mapping.get(instance.root_device_name)
    if root is not None:
        volume = ec2.volumes[root.volume_id]  # moto notes neither on the device
        ami.volume_size, ami.encrypted = volume.size, volume.encrypted
        ami.ebs_snapshot.encrypted = volume.encrypted


def copy_image(
    parts: Parts, original: Any, self: Any, source_image_id: str, *args: Any, **kwargs: Any
) -> Any:
    """CopyImage: the same disk under another id."""
    check_image(self, source_image_id)
    ami = original(self, source_image_id, *args, **kwargs)
    amis.as_virtual_machine(ami)
    ami.state, ami.source_image_id = "pending", source_image_id
    ami.volume_size = getattr(self.amis[source_image_id], "volume_size", None)
    source, target = amis.reference(source_image_id), amis.reference(ami.id)
    _finish(parts, self, ami, lambda: parts.store.podman.tag(source, target))
    return ami


def copy_image_encrypted(original: Any, self: Any) -> Any:
    """CopyImage with `Encrypted`, which moto does not read."""
    answer = original(self)
    source = self.ec2_backend.amis[self._get_param("SourceImageId")]
    copy = self.ec2_backend.amis[answer.result["ImageId"]]
    asked = str(self._get_param("Encrypted", "false")).lower() == "true"
    copy.encrypted = copy.ebs_snapshot.encrypted = asked or bool(
        getattr(source, "encrypted", False)
    )
    return answer


def _finish(parts: Parts, ec2: Any, ami: Any, make: Callable[[], None]) -> None:
    def work() -> None:
        parts.store.finish(ami, make)
        with parts.instances.lock:
            parts.store.save(ec2)

    parts.instances.in_thread(f"image {ami.id}", work)


def block_device_mappings(self: Any) -> list[dict[str, Any]]:
    """What DescribeImages says of the disk."""
    disk = {
        "SnapshotId": self.ebs_snapshot.id,
        "VolumeSize": int(getattr(self, "volume_size", None) or 8),
        "DeleteOnTermination": True,
        "VolumeType": "gp3",
        "Encrypted": bool(getattr(self, "encrypted", False)),
    }
    return [{"DeviceName": self.root_device_name, "Ebs": disk}]


def modify_image_attribute(original: Any, self: Any) -> Any:
    """ModifyImageAttribute, with the IMDS support and description that moto leaves out."""
    ami = self.ec2_backend.describe_images(ami_ids=[self._get_param("ImageId")])[0]
    support = self._get_param("ImdsSupport.Value") or (
        self._get_param("Value") if self._get_param("Attribute") == "imdsSupport" else None
    )
    if support:
        ami.imds_support = support
    description = self._get_param("Description.Value")
    if description:
        ami.description = description
    return original(self)


def enable_image_deprecation(self: Any) -> ActionResult:
    """EnableImageDeprecation, which moto does not have."""
    ami = self.ec2_backend.describe_images(ami_ids=[self._get_param("ImageId")])[0]
    at = self._get_param("DeprecateAt")
    ami.deprecation_time = at if isinstance(at, str) else at.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return ActionResult({"Return": True})


def disable_image_deprecation(self: Any) -> ActionResult:
    """DisableImageDeprecation, which moto does not have."""
    ami = self.ec2_backend.describe_images(ami_ids=[self._get_param("ImageId")])[0]
    ami.deprecation_time = None
    return ActionResult({"Return": True})
