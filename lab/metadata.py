"""The instance metadata service: IMDSv2 at 169.254.169.254, answering by source address.

A request's source address is the only thing that says which instance asks, as on EC2. What is
answered is read from the API's own state at the time of the request, so an Elastic IP or a tag that
moved is seen at once.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from werkzeug import Request, Response
from werkzeug.serving import WSGIRequestHandler, make_server

from lab.identity import Identity, role_of
from lab.ports import Context, Service

__all__ = ["ADDRESS", "role_of", "serve"]

ADDRESS = ("169.254.169.254", 80)

TOKEN_PATH = "/latest/api/token"  # noqa: S105  a path, not a secret
TOKEN_HEADER = "X-aws-ec2-metadata-token"  # noqa: S105
TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
MAX_TTL_SECONDS = 21600

_VERSION = re.compile(r"latest|1\.0|\d{4}-\d{2}-\d{2}")
_TIME = "%Y-%m-%dT%H:%M:%SZ"

# A directory is a mapping, a file is text, bytes or a function that makes it. None is not there.
_Node = Mapping[str, Any] | str | bytes | Callable[[], str] | None


class Tokens:
    """Session tokens: each is good for the instance it was given to, until its time is over."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._held: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def issue(self, instance_id: str, ttl_seconds: int) -> str:
        """A new token for one instance."""
        token = secrets.token_urlsafe(42)
        with self._lock:
            now = self._now()
            self._held = {key: held for key, held in self._held.items() if held[1] > now}
            self._held[token] = (instance_id, now + ttl_seconds)
        return token

    def is_good(self, token: str, instance_id: str) -> bool:
        """Whether this instance may still use this token."""
        holder, expires = self._held.get(token, ("", 0.0))
        return holder == instance_id and expires > self._now()


class Metadata:
    """The service as a WSGI application."""

    def __init__(self, context: Context, identity: Identity, tokens: Tokens) -> None:
        self._context, self._identity, self._tokens = context, identity, tokens

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        """Answer one request (WSGI)."""
        with self._context.lock:
            response = self._answer(Request(environ))
        response.headers["Server"] = "EC2ws"
        return response(environ, start_response)

    def _answer(self, request: Request) -> Response:
        instance = self._asker(request.remote_addr or "")
        if instance is None:
            return _text("No instance has this address.", 404)
        if instance.metadata_options.http_endpoint == "disabled":
            return _text("The metadata endpoint of this instance is disabled.", 403)
        if request.path == TOKEN_PATH:
            return self._token(request, instance.id)
        return self._refusal(request, instance) or self._file(request.path, instance)

    def _refusal(self, request: Request, instance: Any) -> Response | None:
        if request.method not in ("GET", "HEAD"):
            return _text("Only GET is answered here.", 405)
        token = request.headers.get(TOKEN_HEADER)
        if token is None and instance.metadata_options.http_tokens == "required":
            self._count(instance.id)
            return _text("A session token is required (IMDSv2).", 401)
        if token is not None and not self._tokens.is_good(token, instance.id):
            return _text("The session token is not valid.", 401)
        return None

    def _count(self, instance_id: str) -> None:
        """What EC2 leaves of a request without a token, and nothing else does: a metric."""
        rejected = {
            "MetricName": "MetadataNoTokenRejected",
            "Dimensions": [{"Name": "InstanceId", "Value": instance_id}],
            "Value": 1,
            "Unit": "Count",
        }
        self._context.backend("cloudwatch").put_metric_data("AWS/EC2", [rejected])

    def _asker(self, address: str) -> Any | None:
        instance_id = self._context.hosts.by_source_address(address)
        return self._context.ec2().get_instance_by_id(instance_id) if instance_id else None

    def _token(self, request: Request, instance_id: str) -> Response:
        if request.method != "PUT":
            return _text("A token is asked for with PUT.", 405)
        # A request that went through a proxy is refused: an open proxy on the host must not be
        # a way to the keys of its role.
        if "X-Forwarded-For" in request.headers:
            return _text("Requests with X-Forwarded-For get no token.", 403)
        ttl = request.headers.get(TTL_HEADER, "")
        if not ttl.isdecimal() or not 1 <= int(ttl) <= MAX_TTL_SECONDS:
            return _text(f"{TTL_HEADER} must be 1 to {MAX_TTL_SECONDS}.", 400)
        response = _text(self._tokens.issue(instance_id, int(ttl)))
        response.headers[TTL_HEADER] = ttl
        return response

    def _file(self, path: str, instance: Any) -> Response:
        version, _, rest = path.lstrip("/").partition("/")
        if not version:
            return _text("latest")
        node = self._tree(instance) if _VERSION.fullmatch(version) else None
        for step in filter(None, rest.split("/")):
            node = node.get(step) if isinstance(node, Mapping) else None
        if node is None:
            return _text("Not Found", 404)
        if isinstance(node, Mapping):
            return _text("\n".join(_listing(node)))
        return _text(node() if callable(node) else node)

    def _tree(self, instance: Any) -> dict[str, Any]:
        identity = self._identity
        role = identity.role((instance.iam_instance_profile or {}).get("Arn"))
        meta = _meta_data(instance, self._context)
        if role is not None:
            meta["iam"] = {
                "info": lambda: _profile(role.profile_arn, role.profile_id),
                "security-credentials": {
                    role.name: lambda: _credentials(identity.keys(instance.id, role))
                },
            }
        user_data = instance.user_data
        return {
            "dynamic": {"instance-identity": {"document": lambda: _document(instance)}},
            "meta-data": meta,
            "user-data": base64.b64decode(user_data.as_bytes()) if user_data else None,
        }


def serve(context: Context, address: tuple[str, int] = ADDRESS) -> Service:
    """Answer in threads of this process until closed.

    `address` must already be on an interface. Raises OSError when it is not, or is taken.
    """
    _require_tokens_by_default()
    identity = Identity(context.backend, context.region)
    return WsgiService(Metadata(context, identity, Tokens()), address, name="metadata")


class WsgiService:
    """A WSGI application in threads, a connection each."""

    def __init__(self, application: Any, address: tuple[str, int], name: str) -> None:
        host, port = address
        self._server = make_server(
            host, port, application, threaded=True, request_handler=_QuietHandler
        )
        self.address: tuple[str, int] = (host, self._server.port)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name=f"lab-{name}", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop answering and release the port. Idempotent."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(5)
        self._server.server_close()


class _QuietHandler(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002
        """Say nothing: hosts ask many times a minute."""


def _require_tokens_by_default() -> None:
    """Launch with IMDSv2 only unless the launch says otherwise, as accounts and images of today do.

    moto's own default is `optional`, EC2's default of 2019.
    """
    from moto.ec2.models import instances  # noqa: PLC0415  moto takes a second to import

    given: type[Any] = instances.MetadataOptions
    if given.__name__ == "TokensFirst":
        return

    class TokensFirst(given):  # type: ignore[misc]
        def __init__(self, options: dict[str, Any] | None = None) -> None:
            super().__init__({"HttpTokens": "required"} | (options or {}))

    setattr(instances, "MetadataOptions", TokensFirst)  # noqa: B010  mypy refuses to assign a type


def _meta_data(instance: Any, context: Context) -> dict[str, Any]:
    ec2 = context.ec2()
    zone = instance.placement.zone
    key = ec2.key_pairs.get(instance.key_name) if instance.key_name else None
    # The listing of public-keys names "0=NAME", the path is public-keys/0/openssh-key.
    keys = {"0": {"openssh-key": key.public_key}, f"0={key.key_name}": ""} if key else None
    nic, public = instance.nics[0], _public(instance, ec2)
    return {
        "ami-id": instance.image_id,
        "ami-launch-index": str(instance.ami_launch_index),
        "autoscaling": _autoscaling(instance, context),
        "block-device-mapping": {"ami": "xvda", "root": instance.root_device_name},
        "hostname": instance.private_dns_name,
        "instance-action": "none",
        "instance-id": instance.id,
        "instance-life-cycle": instance.lifecycle or "on-demand",
        "instance-type": instance.instance_type,
        "local-hostname": instance.private_dns_name,
        "local-ipv4": instance.private_ip,
        "mac": nic.mac_address,
        "network": {"interfaces": {"macs": {nic.mac_address: _interface(instance, ec2)}}},
        "placement": {
            "availability-zone": zone,
            "availability-zone-id": _zone_id(ec2, zone),
            "region": context.region,
        },
        "public-hostname": instance.public_dns_name if public else None,
        "public-ipv4": public,
        "public-keys": keys,
        "reservation-id": _reservation(ec2, instance.id),
        "security-groups": "\n".join(sorted(group.name for group in nic.group_set)),
        "services": {"domain": "amazonaws.com", "partition": "aws"},
        "tags": _tags(instance),
    }


def _interface(instance: Any, ec2: Any) -> dict[str, Any]:
    nic = instance.nics[0]
    vpc = ec2.get_vpc(nic.subnet.vpc_id)
    public = _public(instance, ec2)
    return {
        "device-number": "0",
        "interface-id": nic.id,
        "ipv4-associations": {public: nic.private_ip_address} if public else None,
        "local-hostname": instance.private_dns_name,
        "local-ipv4s": nic.private_ip_address,
        "mac": nic.mac_address,
        "owner-id": instance.owner_id,
        "public-hostname": instance.public_dns_name if public else None,
        "public-ipv4s": public,
        "security-group-ids": "\n".join(sorted(group.id for group in nic.group_set)),
        "security-groups": "\n".join(sorted(group.name for group in nic.group_set)),
        "subnet-id": nic.subnet.id,
        "subnet-ipv4-cidr-block": nic.subnet.cidr_block,
        "vpc-id": vpc.id,
        "vpc-ipv4-cidr-block": vpc.cidr_block,
        "vpc-ipv4-cidr-blocks": vpc.cidr_block,
    }


def _public(instance: Any, ec2: Any) -> str | None:
    """The instance's public address, if it still is its own.

    moto leaves an Elastic IP on the interface it moved away from; the address itself knows better.
    """
    address: str | None = instance.public_ip
    held_elsewhere = any(
        elastic.public_ip == address and elastic.eni is not instance.nics[0]
        for elastic in list(ec2.addresses)
    )
    return None if held_elsewhere else address


def _tags(instance: Any) -> dict[str, Any] | None:
    if instance.metadata_options.instance_metadata_tags != "enabled":
        return None
    return {"instance": {tag["key"]: tag["value"] for tag in instance.get_tags()}}


def _autoscaling(instance: Any, context: Context) -> dict[str, str] | None:
    for group in list(context.backend("autoscaling").autoscaling_groups.values()):
        for state in list(group.instance_states):
            if state.instance.id == instance.id:
                ending = state.lifecycle_state.startswith("Terminat")
                return {"target-lifecycle-state": "Terminated" if ending else "InService"}
    return None


def _zone_id(ec2: Any, zone: str) -> str | None:
    found = [item.zone_id for item in ec2.describe_availability_zones() if item.name == zone]
    return found[0] if found else None


def _reservation(ec2: Any, instance_id: str) -> str | None:
    for reservation in list(ec2.reservations.values()):
        if any(instance.id == instance_id for instance in reservation.instances):
            return str(reservation.id)
    return None


def _profile(arn: str, profile_id: str) -> str:
    return _json(
        {
            "Code": "Success",
            "LastUpdated": datetime.now(UTC).strftime(_TIME),
            "InstanceProfileArn": arn,
            "InstanceProfileId": profile_id,
        }
    )


def _credentials(keys: Any) -> str:
    return _json(
        {
            "Code": "Success",
            "LastUpdated": keys.issued.strftime(_TIME),
            "Type": "AWS-HMAC",
            "AccessKeyId": keys.access_key,
            "SecretAccessKey": keys.secret_key,
            "Token": keys.token,
            "Expiration": keys.expires.strftime(_TIME),
        }
    )


def _document(instance: Any) -> str:
    return _json(
        {
            "accountId": instance.owner_id,
            "architecture": instance.architecture,
            "availabilityZone": instance.placement.zone,
            "billingProducts": None,
            "devpayProductCodes": None,
            "imageId": instance.image_id,
            "instanceId": instance.id,
            "instanceType": instance.instance_type,
            "kernelId": None,
            "marketplaceProductCodes": None,
            "pendingTime": instance.launch_time.strftime(_TIME),
            "privateIp": instance.private_ip,
            "ramdiskId": None,
            "region": instance.region_name,
            "version": "2017-09-30",
        }
    )


def _listing(node: Mapping[str, _Node]) -> list[str]:
    present = sorted(name for name, child in node.items() if child is not None)
    aliased = {name.partition("=")[0] for name in present if "=" in name}
    return [
        name + "/" if isinstance(node[name], Mapping) else name
        for name in present
        if name not in aliased
    ]


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2)


def _text(body: str | bytes, status: int = 200) -> Response:
    return Response(body, status=status, content_type="text/plain; charset=utf-8")
