"""The fleet's secrets as SSM keeps them."""

from __future__ import annotations

from collections.abc import Iterable

from flotilla.aws.session import client, described
from flotilla.errors import Refused
from flotilla.settings import Settings


def of_roles(settings: Settings, roles: Iterable[str]) -> dict[str, str]:
    """Every secret of these roles: "<role>/<name>" to its value.

    Raises Refused naming a role that has none (the fleet is not provisioned), and Unreachable.
    """
    found: dict[str, str] = {}
    for role in sorted(set(roles)):
        above = settings.parameter(role, "")
        with described(settings, f"read the secrets below {above}"):
            pages = client(settings, "ssm").get_paginator("get_parameters_by_path")
            mine = {
                f"{role}/{parameter['Name'].removeprefix(above)}": parameter["Value"]
                for page in pages.paginate(Path=above, Recursive=True, WithDecryption=True)
                for parameter in page["Parameters"]
            }
        if not mine:
            raise Refused(
                f"SSM has no secret below {above}",
                "hosts would be configured with empty passwords",
                "Nothing was changed",
                "fab fleet.provision",
            )
        found |= mine
    return found


def named(settings: Settings, names: Iterable[str]) -> dict[str, str]:
    """Secrets by their full parameter names. Raises Refused naming those that do not exist."""
    wanted = sorted(set(names))
    if not wanted:
        return {}
    with described(settings, f"read {', '.join(wanted)}"):
        answer = client(settings, "ssm").get_parameters(Names=wanted, WithDecryption=True)
    if answer["InvalidParameters"]:
        raise Refused(
            f"SSM has no parameter {', '.join(answer['InvalidParameters'])}",
            f"fleet.yml of environment {settings.env!r} names it",
            "Nothing was changed",
            "aws ssm put-parameter --type SecureString --name NAME --value file://FILE",
        )
    return {parameter["Name"]: parameter["Value"] for parameter in answer["Parameters"]}
