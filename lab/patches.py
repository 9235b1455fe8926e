"""Where moto's EC2 is taught to act: the few methods that real hosts, images and addresses hang on.

Everything else of the AWS APIs is moto's own. `install` must run before the first request.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from moto.core.responses import ActionResult
from moto.core.types import Base64EncodedString
from moto.ec2.models import EC2Backend, elastic_ip_addresses, elastic_network_interfaces
from moto.ec2.models.amis import Ami
from moto.ec2.models.instances import Instance
from moto.ec2.responses import EC2Response
from moto.s3 import models as s3_models
from moto.s3 import responses as s3_responses
from moto.s3.models import FakeMultipart, S3Backend
from moto.s3.responses import S3Response

from lab import addresses, buckets, console, dependencies, images, launching
from lab.images import Parts
from lab.layout import PUBLIC_POOL, REGION


def install(parts: Parts) -> None:
    """Patch moto for good, in this process."""
    pool = addresses.Pool(PUBLIC_POOL, lambda: addresses.in_use(parts.instances.ec2()))
    life = parts.instances
    replaced = (
        (elastic_ip_addresses, "random_ip", pool.take),
        (elastic_network_interfaces, "random_public_ip", pool.take),
        (Ami, "block_device_mappings", property(images.block_device_mappings)),
        (EC2Response, "enable_image_deprecation", images.enable_image_deprecation),
        (EC2Response, "disable_image_deprecation", images.disable_image_deprecation),
        (s3_models, "tempfile", types.SimpleNamespace(SpooledTemporaryFile=buckets.Held)),
    )
    for owner, name, value in replaced:
        setattr(owner, name, value)
    wrapped = (
        (EC2Backend, "run_instances", functools.partial(launching.run_instances, life)),
        (EC2Backend, "create_vpc", functools.partial(_create_vpc, parts)),
        (EC2Backend, "create_image", functools.partial(images.create_image, parts)),
        (EC2Backend, "copy_image", functools.partial(images.copy_image, parts)),
        (EC2Backend, "delete_subnet", dependencies.delete_subnet),
        (EC2Backend, "delete_security_group", dependencies.delete_security_group),
        (EC2Backend, "associate_address", _associate_address),
        (Instance, "setup_defaults", launching.setup_defaults),
        (Instance, "add_block_device", launching.add_block_device),
        (Instance, "start", lambda original, self: life.start(self, original)),
        (Instance, "stop", lambda original, self: _stop(parts, original, self)),
        (Instance, "terminate", lambda original, self: life.terminate(self, original)),
        (Instance, "reboot", lambda _, self: life.reboot(self)),
        (EC2Response, "run_instances", launching.run_instances_response),
        (EC2Response, "stop_instances", _stop_instances),
        (EC2Response, "copy_image", images.copy_image_encrypted),
        (EC2Response, "modify_image_attribute", images.modify_image_attribute),
        (EC2Response, "get_console_output", functools.partial(_get_console_output, parts)),
        (FakeMultipart, "complete", buckets.complete),
        (s3_responses, "compute_checksum", buckets.checksum),
        (S3Backend, "put_object_lock_configuration", buckets.lock),
        (S3Response, "get_object", buckets.answer),
        (S3Response, "_key_response_put", buckets.put),
        (S3Response, "_key_response_post", buckets.replicate),
    )
    for where, method, around in wrapped:
        _wrap(where, method, around)


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(original, self, *args, **kwargs)

    setattr(owner, name, wrapped)


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
    if self.region_name == REGION and not kwargs.get("is_default"):
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
