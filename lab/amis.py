"""Machine images: podman images plus what the API knows about them, kept from one lab to the next.

An AWS account keeps its images while instances come and go; so does the cache directory. One JSON
file an image, written whenever the API's view of it changed, read back with the same ids when the
lab starts.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models.amis import Ami

from lab.errors import LabError
from lab.layout import IMAGE_OWNER, REGION
from lab.podman import Podman

_PREFIX = "localhost/flab/"
_KEPT = ("name", "description", "owner_id", "architecture", "state", "boot_mode", "platform")
_ATTRIBUTES = (
    "imds_support",
    "deprecation_time",
    "encrypted",
    "source_image_id",
    "instance_id",
    "volume_size",
)


def reference(image_id: str) -> str:
    """Name of an image's disk in podman's storage."""
    return f"{_PREFIX}{image_id}"


def describe(ami: Any) -> dict[str, Any]:
    """What is kept of an image, as JSON."""
    snapshot = ami.ebs_snapshot
    return {
        "id": ami.id,
        "creation_date": ami.creation_date.isoformat(),
        **{key: getattr(ami, key) for key in _KEPT},
        **{key: getattr(ami, key, None) for key in _ATTRIBUTES},
        "launch_permissions": ami.launch_permissions,
        "tags": {tag["key"]: tag["value"] for tag in ami.get_tags()},
        "snapshot": {
            "id": snapshot.id,
            "description": snapshot.description,
            "tags": {tag["key"]: tag["value"] for tag in snapshot.get_tags()},
        },
    }


def register(ec2: Any, kept: Mapping[str, Any]) -> Any:
    """Make an image known to the API, with the ids it had."""
    ami = Ami(
        ec2,
        kept["id"],
        name=kept["name"],
        description=kept["description"],
        owner_id=kept["owner_id"],
        architecture=kept["architecture"],
        platform=kept["platform"],
        boot_mode=kept["boot_mode"],
        state=kept["state"],
        creation_date=datetime.fromisoformat(kept["creation_date"]),
        region_name=f"{REGION}a",
        tags=kept["tags"],
    )
    as_virtual_machine(ami)
    ami.launch_permissions = list(kept["launch_permissions"])
    for key in _ATTRIBUTES:
        if kept.get(key) is not None:
            setattr(ami, key, kept[key])
    snapshot = ami.ebs_snapshot
    ec2.snapshots.pop(snapshot.id)
    snapshot.id = kept["snapshot"]["id"]
    snapshot.description = kept["snapshot"]["description"]
    snapshot.encrypted = bool(kept.get("encrypted"))
    ec2.snapshots[snapshot.id] = snapshot
    snapshot.add_tags(kept["snapshot"]["tags"])
    ec2.amis[ami.id] = ami
    return ami


def as_virtual_machine(ami: Any) -> None:
    """What every current image on AWS is; moto's `standard` root device makes Packer refuse an
    image.
    """
    ami.root_device_type, ami.virtualization_type = "ebs", "hvm"
    ami.hypervisor, ami.ena_support = "xen", True
    ami.root_device_name = "/dev/xvda"
    ami.architecture = ami.architecture or "x86_64"


@dataclass(slots=True)
class AmiStore:
    """Images on disk and in the API."""

    directory: Path
    podman: Podman
    log: Callable[[str, Mapping[str, Any]], None]
    _written: dict[str, str] = field(default_factory=dict)
    _condemned: set[str] = field(default_factory=set)
    _sweeping: threading.Lock = field(default_factory=threading.Lock)

    def load(self, ec2: Any, keep: str) -> int:
        """Register every kept image whose disk is there; returns how many.

        What has only one half is removed, except the disk of the image `keep`.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        disks = {name.removesuffix(":latest") for name in self.podman.image_references()}
        for path in sorted(self.directory.glob("ami-*.json")):
            kept = json.loads(path.read_text())
            if reference(kept["id"]) in disks and kept["state"] == "available":
                register(ec2, kept)
                self._written[kept["id"]] = path.read_text()
            else:
                path.unlink()
        for name in disks:
            if name.startswith(_PREFIX) and name.removeprefix(_PREFIX) not in (keep, *ec2.amis):
                self.podman.remove_image(name)
        return len(ec2.amis)

    def add_base(self, ec2: Any, image_id: str, name: str, created: datetime) -> None:
        """Register the base image, as its publisher's public one."""
        kept = {
            "id": image_id,
            "name": name,
            "description": "Debian 13",
            "owner_id": IMAGE_OWNER,
            "architecture": "x86_64",
            "platform": None,
            "boot_mode": "uefi",
            "state": "available",
            "creation_date": created.isoformat(),
            "tags": {},
            "launch_permissions": [{"Group": "all"}],
            "snapshot": {"id": image_id.replace("ami-", "snap-"), "description": name, "tags": {}},
        }
        for ami in [ami for ami in ec2.amis.values() if ami.owner_id == IMAGE_OWNER]:
            ec2.deregister_image(ami.id)
        register(ec2, kept)
        self.save(ec2)

    def save(self, ec2: Any) -> bool:
        """Write what changed since the last call; forget what is no longer registered.

        True when there is a disk that nobody may need any more, for `sweep`.
        """
        current = {}
        for image_id, ami in list(ec2.amis.items()):
            if ami.state in ("available", "disabled"):
                current[image_id] = json.dumps(describe(ami), indent=1, sort_keys=True)
        for image_id, text in current.items():
            if self._written.get(image_id) != text:
                path = self.directory / f"{image_id}.json"
                path.with_suffix(".new").write_text(text)
                path.with_suffix(".new").replace(path)
        dropped = set(self._written) - set(current)
        for image_id in dropped:
            (self.directory / f"{image_id}.json").unlink(missing_ok=True)
            self._condemned.add(image_id)
        self._written = current
        return bool(dropped)

    def sweep(self) -> None:
        """Delete the disks of deregistered images that no host stands on any more."""
        with self._sweeping:
            self._delete_disks()

    def _delete_disks(self) -> None:
        for image_id in list(self._condemned):
            if self.podman.remove_image(reference(image_id)):
                self._condemned.discard(image_id)

    def check_name(self, ec2: Any, name: str) -> None:
        """Refuse a second image of the same name, as AWS does."""
        for ami in ec2.amis.values():
            if ami.name == name and ami.owner_id == ec2.account_id and ami.state != "failed":
                raise EC2ClientError(
                    "InvalidAMIName.Duplicate", f"AMI name {name} is already in use by AMI {ami.id}"
                )

    def finish(self, ami: Any, make: Callable[[], None]) -> None:
        """Run `make`, which writes the disk, and show how it went in the image's state."""
        try:
            make()
        except LabError as error:
            ami.state = "failed"
            self.log("image-failed", {"image": ami.id, "error": str(error)})
            return
        ami.state = "available"
        self.log("image", {"image": ami.id, "name": ami.name})
