"""Where clients reach the fleet: the Elastic IP that the load balancers pass to each other."""

from __future__ import annotations

from flotilla.aws.session import client, described
from flotilla.errors import FlotillaError
from flotilla.settings import Settings


def address(settings: Settings) -> str:
    """The public address named ``<fleet>-<env>-edge``. Raises FlotillaError when there is none."""
    name = settings.name_of("edge")
    with described(settings, "look up the edge address"):
        found = client(settings, "ec2").describe_addresses(
            Filters=[{"Name": "tag:Name", "Values": [name]}]
        )["Addresses"]
    if not found:
        raise FlotillaError(f"there is no Elastic IP named {name}", next="fab fleet.provision")
    return str(found[0]["PublicIp"])


def owners(settings: Settings) -> list[str]:
    """The instances that EC2 says the edge address is with: one, or none while it is moved."""
    with described(settings, "see who has the edge address"):
        found = client(settings, "ec2").describe_addresses(
            Filters=[{"Name": "tag:Name", "Values": [settings.name_of("edge")]}]
        )["Addresses"]
    return [str(one["InstanceId"]) for one in found if one.get("InstanceId")]


def url(settings: Settings) -> str:
    """The address to open, without a path: https and the domain where a certificate is set."""
    if settings.lb.certificate_parameter:
        return f"https://{settings.domain}"
    return f"http://{address(settings)}"
