"""RunInstances as the lab does it: what moto leaves unchecked or untaken, then a real host."""

from __future__ import annotations

from typing import Any

from moto.ec2.exceptions import EC2ClientError

from lab.instances import Instances
from lab.layout import REGION

# What moto passes on for a request without a client token.
_NO_TOKEN = "ABCDE"  # noqa: S105  not a secret


def run_instances(  # noqa: PLR0917  moto calls it like this
    instances: Instances,
    original: Any,
    self: Any,
    image_id: str,
    count: int,
    user_data: Any,
    security_group_names: Any,
    **kwargs: Any,
) -> Any:
    """RunInstances on moto's EC2Backend `self`; returns its reservation, with hosts on the way."""
    token = kwargs.get("client_token")
    if token in instances.launches:
        return instances.launches[token]
    template = _from_template(self, kwargs)
    wanted = image_id or template.get("ImageId")
    if self.region_name != REGION:
        raise EC2ClientError(
            "InvalidParameterValue",
            f"The lab's hosts are in {REGION}; {self.region_name} has none. Nothing was launched.",
        )
    check_image(self, wanted)
    key = kwargs.get("key_name") or template.get("KeyName")
    if key and key not in self.key_pairs:
        raise EC2ClientError("InvalidKeyPair.NotFound", f"The key pair '{key}' does not exist")
    instances.check_launch(_subnet(self, kwargs))
    reservation = original(self, image_id, count, user_data, security_group_names, **kwargs)
    _associate_profiles(self, reservation, kwargs, template)
    for instance in reservation.instances:
        instances.launch(instance)
    if token not in {None, _NO_TOKEN}:
        instances.launches[token] = reservation
    return reservation


def _subnet(ec2: Any, kwargs: dict[str, Any]) -> str:
    """The subnet of a launch; the default one where none is named (moto would invent an address in
    no network).
    """
    named = kwargs.get("subnet_id") or next(
        (n["SubnetId"] for n in kwargs.get("nics") or [] if "SubnetId" in n), None
    )
    if named:
        return str(named)
    zone = kwargs.get("placement") or f"{REGION}a"
    default = ec2.get_default_subnets().get(zone)
    if default is None:
        raise EC2ClientError(
            "MissingInput", f"No default subnet in {zone}. Please specify a subnet."
        )
    if kwargs.get("nics"):
        kwargs["nics"][0]["SubnetId"] = default.id
    else:
        kwargs["subnet_id"] = default.id
        kwargs.setdefault("associate_public_ip", None)  # then the subnet decides
    return str(default.id)


def _from_template(ec2: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The launch template's data, and what moto does not take from it put into `kwargs`."""
    if not kwargs.get("launch_template"):
        return {}
    data = dict(
        ec2._get_template_from_args(  # noqa: SLF001  moto's own use of it is across classes too
            kwargs["launch_template"]
        ).data
    )
    if data.get("MetadataOptions") and not kwargs.get("metadata_options"):
        kwargs["metadata_options"] = data["MetadataOptions"]
    if data.get("NetworkInterfaces") and not kwargs.get("nics"):
        kwargs["nics"] = _interfaces(data["NetworkInterfaces"], kwargs)
    zone = (data.get("Placement") or {}).get("AvailabilityZone")
    if zone and not kwargs.get("placement"):
        kwargs["placement"] = zone
    return data


def _interfaces(interfaces: list[dict[str, Any]], kwargs: dict[str, Any]) -> list[dict[str, Any]]:
    """A template's interfaces, in the subnet that the launch itself names, if it names one."""
    subnet = kwargs.get("subnet_id")
    found = []
    for index, interface in enumerate(interfaces):
        nic = {"DeviceIndex": index, **interface}
        if subnet and int(nic["DeviceIndex"]) == 0:
            nic["SubnetId"] = subnet
        found.append(nic)
    return found


def check_image(ec2: Any, image_id: str | None) -> None:
    """Refuse an image that is not there or not available."""
    ami = ec2.amis.get(image_id)
    if ami is None:
        raise EC2ClientError("InvalidAMIID.NotFound", f"The image id '[{image_id}]' does not exist")
    if ami.state != "available":
        raise EC2ClientError(
            "InvalidAMIID.Unavailable", f"The image id '[{image_id}]' is {ami.state}, not available"
        )


def _associate_profiles(
    ec2: Any, reservation: Any, kwargs: dict[str, Any], template: dict[str, Any]
) -> None:
    """Give every instance its instance profile: moto's RunInstances does so for the first only,
    templates for none.
    """
    name, arn = kwargs.get("iam_instance_profile_name"), kwargs.get("iam_instance_profile_arn")
    left_out = reservation.instances[1:]
    if not name and not arn:
        profile = template.get("IamInstanceProfile") or {}
        name, arn = profile.get("Name"), profile.get("Arn")
        left_out = reservation.instances
    if name or arn:
        for instance in left_out:
            ec2.associate_iam_instance_profile(
                instance.id,
                iam_instance_profile_name=name,
                iam_instance_profile_arn=None if name else arn,
            )


def run_instances_response(original: Any, self: Any) -> Any:
    """RunInstances launches as many as MaxCount says; moto looks at MinCount only."""
    most = self._get_param("MaxCount")
    if most is not None:
        self.params["MinCount"] = most
    return original(self)


def setup_defaults(_: Any, self: Any) -> None:
    """The root volume of an instance: under its image's device name, of its size, as encrypted."""
    ami = self.ec2_backend.amis[self.image_id]
    disk = ami.block_device_mappings[0]
    self.add_block_device(
        size=disk["Ebs"]["VolumeSize"],
        device_path=disk["DeviceName"],
        snapshot_id=disk["Ebs"]["SnapshotId"],
        encrypted=disk["Ebs"]["Encrypted"],
        delete_on_termination=True,
        kms_key_id=None,
        volume_type=disk["Ebs"]["VolumeType"],
    )


_BLOCK_DEVICE = (
    "size",
    "device_path",
    "snapshot_id",
    "encrypted",
    "delete_on_termination",
    "kms_key_id",
)


def add_block_device(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """A volume from an encrypted image is encrypted, whatever the launch says."""
    given = {**dict(zip(_BLOCK_DEVICE, args, strict=False)), **kwargs}
    ami = self.ec2_backend.amis.get(self.image_id)
    if ami is not None and given["device_path"] == ami.root_device_name:
        given["encrypted"] = given["encrypted"] or bool(getattr(ami, "encrypted", False))
        given["size"] = given["size"] or ami.block_device_mappings[0]["Ebs"]["VolumeSize"]
    return original(self, **given)
