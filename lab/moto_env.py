"""The AWS APIs' engine, moto, set up for the lab. Import this before anything of moto's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lab.layout import ACCOUNT, REGION

SETTINGS: Mapping[str, str] = {
    # The account's images are the lab's own; thousands of invented ones would only hide them.
    "MOTO_EC2_LOAD_DEFAULT_AMIS": "false",
    "MOTO_ENABLE_AMI_VALIDATION": "true",
    "MOTO_ACCOUNT_ID": ACCOUNT,
    # moto talks to itself in places and would want credentials of its own.
    "AWS_ACCESS_KEY_ID": "lab",
    "AWS_SECRET_ACCESS_KEY": "lab",
    "AWS_DEFAULT_REGION": REGION,
}
os.environ.update(SETTINGS)


def backend(service: str) -> Any:
    """moto's backend of a service in the lab's account; of the region, or of the partition for a
    global service.
    """
    from moto.backends import get_backend  # noqa: PLC0415  after the settings above

    of_account = get_backend(service)[ACCOUNT]  # type: ignore[call-overload]
    return of_account["aws"] if "aws" in of_account else of_account[REGION]


def ec2() -> Any:
    """moto's EC2Backend of the lab's account and region."""
    return backend("ec2")
