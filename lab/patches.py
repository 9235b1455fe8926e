"""Where moto's EC2 is taught to act: the few methods that real hosts, images and addresses hang on.

Everything else of the AWS APIs is moto's own. `install` must run before the first request.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moto.core.responses import ActionResult
from moto.core.types import Base64EncodedString
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import EC2Backend, elastic_ip_addresses, elastic_network_interfaces
from moto.ec2.models.amis import Ami
from moto.ec2.models.instances import Instance
from moto.ec2.responses import EC2Response

from lab import addresses, amis, console
from lab.amis import AmiStore
from lab.instances import Instances
from lab.layout import PUBLIC_POOL, REGION


@dataclass(frozen=True, slots=True)
class Parts:
    """What the patched API acts on."""

    instances: Instances
    store: AmiStore

    def mine(self, backend: Any) -> bool:
        """Whether this is the region that has hosts; the others stay what moto makes of them."""
        return bool(backend.region_name == REGION)


def install(parts: Parts) -> None:
    """Patch moto for good, in this process."""
    pool = addresses.Pool(PUBLIC_POOL, lambda: addresses.in_use(parts.instances.ec2()))
    life = parts.instances
    replaced = (
        (elastic_ip_addresses, "random_ip", pool.take),
        (elastic_network_interfaces, "random_public_ip", pool.take),
        (Ami, "block_device_mappings", property(_block_device_mappings)),
        (EC2Response, "enable_image_deprecation", _enable_image_deprecation),
        (EC2Response, "disable_image_deprecation", _disable_image_deprecation),
    )
    for owner, name, value in replaced:
        setattr(owner, name, value)
    wrapped = (
        (EC2Backend, "run_instances", functools.partial(_run_instances, parts)),
        (EC2Backend, "create_vpc", functools.partial(_create_vpc, parts)),
        (EC2Backend, "create_image", functools.partial(_create_image, parts)),
        (EC2Backend, "copy_image", functools.partial(_copy_image, parts)),
        (EC2Backend, "associate_address", _associate_address),
        (Instance, "start", lambda original, self: life.start(self, original)),
        (Instance, "stop", lambda original, self: _stop(parts, original, self)),
        (Instance, "terminate", lambda original, self: life.terminate(self, original)),
        (Instance, "reboot", lambda _, self: life.reboot(self)),
        (EC2Response, "stop_instances", _stop_instances),
        (EC2Response, "copy_image", _copy_image_encrypted),
        (EC2Response, "modify_image_attribute", _modify_image_attribute),
        (EC2Response, "get_console_output", functools.partial(_get_console_output, parts)),
    )
    for owner, name, around in wrapped:
        _wrap(owner, name, around)


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(original, self, *args, **kwargs)

    setattr(owner, name, wrapped)


# Instances


def _run_instances(
    parts: Parts,
    original: Any,
    self: Any,
    image_id: str,
    count: int,
    user_data: Any,
    groups: Any,
    **kwargs: Any,
) -> Any:
    template = _from_template(self, kwargs)
    wanted = image_id or template.get("ImageId")
    if not parts.mine(self):
        raise EC2ClientError(
            "InvalidParameterValue",
            f"The lab's hosts are in {REGION}; {self.region_name} has none. Nothing was launched.",
        )
    _check_image(self, wanted)
    key = kwargs.get("key_name") or template.get("KeyName")
    if key and key not in self.key_pairs:
        raise EC2ClientError("InvalidKeyPair.NotFound", f"The key pair '{key}' does not exist")
    parts.instances.check_launch(_subnet(self, kwargs))
    reservation = original(self, image_id, count, user_data, groups, **kwargs)
    _associate_profiles(self, reservation, kwargs, template)
    for instance in reservation.instances:
        parts.instances.launch(instance)
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
        kwargs["associate_public_ip"] = kwargs.get("associate_public_ip")
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


def _check_image(ec2: Any, image_id: str | None) -> None:
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


def _stop_instances(original: Any, self: Any) -> Any:
    force = str(self._get_param("Force", "false")).lower() == "true"
    for instance_id in self._get_param("InstanceIds", []):
        instance = self.ec2_backend.get_instance_by_id(instance_id)
        if instance is not None:
            instance.force_stop = force
    return original(self)


def _stop(parts: Parts, original: Any, instance: Any) -> Any:
    force = bool(getattr(instance, "force_stop", False))
    instance.force_stop = False
    return parts.instances.stop(instance, original, force=force)


def _create_vpc(
    parts: Parts, original: Any, self: Any, cidr_block: str, *args: Any, **kwargs: Any
) -> Any:
    # Every account has the default VPC; whether this machine can give it is asked when something is
    # launched in it.
    if parts.mine(self) and not kwargs.get("is_default"):
        parts.instances.check_vpc(cidr_block)
    vpc = original(self, cidr_block, *args, **kwargs)
    # On AWS the members of a VPC's default group reach each other; moto leaves the rule out.
    group = self.get_default_security_group(vpc.id)
    itself = [{"GroupId": group.id}]
    self.authorize_security_group_ingress(group.id, "-1", None, None, [], None, itself)
    return vpc


def _associate_address(original: Any, self: Any, **kwargs: Any) -> Any:
    return addresses.associate(self, original, **kwargs)


def _get_console_output(parts: Parts, _: Any, self: Any) -> Any:
    instance = self.ec2_backend.get_instance(self._get_param("InstanceId"))
    text, taken_at = console.output(parts.instances.hosts, instance.id)
    result = {
        "InstanceId": instance.id,
        "Timestamp": taken_at,
        "Output": Base64EncodedString.from_raw_string(text),
    }
    return ActionResult(result)


# Images


def _create_image(
    parts: Parts, original: Any, self: Any, instance_id: str, name: str, *args: Any, **kwargs: Any
) -> Any:
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
    # moto notes on the volume, and not on the device, whether it is encrypted.
    ami.encrypted = any(
        self.volumes[device.volume_id].encrypted for _, device in instance.get_block_device_mapping
    )
    ami.ebs_snapshot.encrypted = ami.encrypted
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


def _copy_image(
    parts: Parts, original: Any, self: Any, source_image_id: str, *args: Any, **kwargs: Any
) -> Any:
    _check_image(self, source_image_id)
    ami = original(self, source_image_id, *args, **kwargs)
    amis.as_virtual_machine(ami)
    ami.state, ami.source_image_id = "pending", source_image_id
    source, target = amis.reference(source_image_id), amis.reference(ami.id)
    _finish(parts, self, ami, lambda: parts.store.podman.tag(source, target))
    return ami


def _copy_image_encrypted(original: Any, self: Any) -> Any:
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


def _block_device_mappings(self: Any) -> list[dict[str, Any]]:
    disk = {
        "SnapshotId": self.ebs_snapshot.id,
        "VolumeSize": int(getattr(self, "volume_size", None) or 8),
        "DeleteOnTermination": True,
        "VolumeType": "gp3",
        "Encrypted": bool(getattr(self, "encrypted", False)),
    }
    return [{"DeviceName": self.root_device_name, "Ebs": disk}]


def _modify_image_attribute(original: Any, self: Any) -> Any:
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


def _enable_image_deprecation(self: Any) -> ActionResult:
    ami = self.ec2_backend.describe_images(ami_ids=[self._get_param("ImageId")])[0]
    at = self._get_param("DeprecateAt")
    ami.deprecation_time = at if isinstance(at, str) else at.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return ActionResult({"Return": True})


def _disable_image_deprecation(self: Any) -> ActionResult:
    ami = self.ec2_backend.describe_images(ami_ids=[self._get_param("ImageId")])[0]
    ami.deprecation_time = None
    return ActionResult({"Return": True})
