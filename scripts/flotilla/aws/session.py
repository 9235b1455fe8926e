"""AWS clients and AWS_* variables for the account that fleet.yml names.

A fleet with ``endpoint_url`` differs from one without in nothing but that value.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

import boto3
import botocore.session
from botocore.config import Config

from flotilla.aws.errors import described
from flotilla.settings import Settings

__all__ = ["client", "described", "environment", "session", "subprocess_environment"]

# With nothing listening, 3 attempts fail after 1.5 s on average; throttling gets the same three.
ATTEMPTS = 3
CONNECT_SECONDS = 5
READ_SECONDS = 60

# What the caller's shell may hold for another account: AWS_PROFILE does not win over keys.
_FOREIGN = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
)

_clients: dict[tuple[object, ...], Any] = {}
_lock = threading.Lock()


def session(settings: Settings) -> boto3.Session:
    """A new session for the fleet's profile, credentials file and region.

    Sessions are not to be shared between threads; clients are. An unknown profile is Refused.
    """
    with described(settings, "read the AWS credentials"):
        core = botocore.session.Session(profile=settings.aws.profile)
        if settings.aws.credentials_file:
            path = settings.path(settings.aws.credentials_file)
            core.set_config_variable("credentials_file", str(path))
        core.set_config_variable("region", settings.region)
        return boto3.Session(botocore_session=core)


def client(settings: Settings, service: str, *, attempts: int = ATTEMPTS) -> Any:
    """A client for ``service`` ("ec2", "s3"), made once and shared; safe to use from threads."""
    aws = settings.aws
    key = (service, settings.region, *aws.model_dump().values(), settings.root, attempts)
    with _lock:
        if key not in _clients:
            _clients[key] = session(settings).client(
                service,  # type: ignore[call-overload]  # the name comes at run time
                endpoint_url=aws.endpoint_url,
                config=Config(
                    retries={"mode": "standard", "total_max_attempts": attempts},
                    connect_timeout=CONNECT_SECONDS,
                    read_timeout=READ_SECONDS,
                    max_pool_connections=32,
                    user_agent_extra=f"flotilla/{settings.prefix}",
                ),
            )
        return _clients[key]


def environment(settings: Settings) -> dict[str, str]:
    """The AWS_* variables that make Ansible, Packer or the AWS CLI act on this fleet's account."""
    aws = settings.aws
    variables = {"AWS_REGION": settings.region, "AWS_DEFAULT_REGION": settings.region}
    if aws.profile:
        variables["AWS_PROFILE"] = aws.profile
    if aws.credentials_file:
        path = settings.path(aws.credentials_file)
        variables["AWS_SHARED_CREDENTIALS_FILE"] = str(path)
    if aws.endpoint_url:
        variables["AWS_ENDPOINT_URL"] = aws.endpoint_url
    return variables


def subprocess_environment(
    settings: Settings, base: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """``base`` for a subprocess, acting on this fleet's account and on no other.

    With a profile in fleet.yml, keys and endpoints that the shell holds are left out; without one,
    the shell's own credentials are what the operator wants.
    """
    dropped = set(_FOREIGN) if settings.aws.profile else set()
    kept = {
        name: value
        for name, value in base.items()
        if name not in dropped and not name.startswith("AWS_ENDPOINT_URL")
    }
    return kept | environment(settings)
