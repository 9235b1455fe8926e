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


def url(settings: Settings) -> str:
    """The address to open, without a path: https and the domain where a certificate is set."""
    if settings.lb.certificate_parameter:
        return f"https://{settings.domain}"
    return f"http://{address(settings)}"
