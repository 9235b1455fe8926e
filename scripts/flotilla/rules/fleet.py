"""What must hold between the keys of fleet.yml, beyond what each key may hold by itself.

``settings`` is anything with the attributes of ``flotilla.settings.Settings``; a fault is the path
of the key to change and a sentence that follows the key's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Network
from itertools import chain
from string import ascii_lowercase
from typing import Any

Fault = tuple[tuple[str, ...], str]

PRIVATE = tuple(IPv4Network(n) for n in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))

# AWS keeps the first four addresses and the last one of every subnet.
RESERVED_ADDRESSES = 5

TAKEN_DATABASES = frozenset({"mysql", "sys", "information_schema", "performance_schema", "ops"})
TAKEN_ACCOUNTS = frozenset({"root", "flotilla_agent", "replication", "monitor"})
TAKEN_VARIABLES = frozenset({"PORT", "DATABASE_PASSWORD", "CACHE_PASSWORD", "SECRET_KEY"})


def faults(settings: Any, *, env: str) -> Iterator[Fault]:
    """Every contradiction in ``settings`` of the folder ``inventory/<env>``."""
    return chain(
        _names(settings, env),
        _zones(settings),
        _counts(settings),
        _network(settings),
        _ages(settings),
        _regions(settings),
        _database(settings),
        _application(settings),
        _certificate(settings),
    )


def subnet_prefix(network: IPv4Network, zones: int) -> int:
    """Prefix length of each subnet: a public and a private one a zone, all of one size.

    Three zones need six subnets, so the network is cut in eight and two stay free.
    """
    return network.prefixlen + max(2 * zones - 1, 1).bit_length()


def _names(settings: Any, env: str) -> Iterator[Fault]:
    if settings.env != env:
        yield (
            ("env",),
            f"is {settings.env!r} but the file is in inventory/{env}/: they must be equal",
        )


def _zones(settings: Any) -> Iterator[Fault]:
    for zone, times in Counter(settings.zones).items():
        if times > 1:
            yield ("zones",), f"names {zone} {times} times"
        letter = zone.removeprefix(settings.region)
        if not (letter != zone and len(letter) == 1 and letter in ascii_lowercase):
            yield (
                ("zones",),
                (
                    f"has {zone!r}, which is not a zone of fleet.region "
                    f"{settings.region}: a zone is the region and one letter"
                ),
            )
    if len(set(settings.zones)) < 3:
        yield (
            ("zones",),
            (
                f"has {len(set(settings.zones))}: name at least 3, or the loss of one "
                "zone can take the majority of mysql and redis hosts with it"
            ),
        )


def _counts(settings: Any) -> Iterator[Fault]:
    tiers = settings.tiers
    if tiers.lb.count != 2:
        yield (
            ("tiers", "lb", "count"),
            (
                f"is {tiers.lb.count}: it must be 2, the pair that hands "
                "the Elastic IP to each other"
            ),
        )
    for role in ("mysql", "redis"):
        count = getattr(tiers, role).count
        if count < 3:
            yield (
                ("tiers", role, "count"),
                (f"is {count}: it must be 3 or more, or no majority is left when one host dies"),
            )
    if tiers.redis.count >= 3 and tiers.redis.count % 2 == 0:
        yield (
            ("tiers", "redis", "count"),
            (
                f"is {tiers.redis.count}: it must be odd; each host "
                "runs a Sentinel, and an even number gains no failure"
            ),
        )
    if tiers.bastion.count > len(settings.zones):
        yield (
            ("tiers", "bastion", "count"),
            (f"is {tiers.bastion.count}: one a zone is the most ({len(settings.zones)})"),
        )


def _network(settings: Any) -> Iterator[Fault]:
    network = IPv4Network(settings.vpc_cidr)
    if not any(network.subnet_of(private) for private in PRIVATE):
        yield (
            ("vpc_cidr",),
            (f"is {network}: it must lie in {', '.join(str(private) for private in PRIVATE)}"),
        )
    if not 16 <= network.prefixlen <= 24:
        yield ("vpc_cidr",), f"is {network}: it must be between /16 and /24"
        return
    zones = len(set(settings.zones))
    prefix = subnet_prefix(network, zones)
    room = 2 ** (32 - prefix) - RESERVED_ADDRESSES
    private = sum(getattr(settings.tiers, role).count for role in ("app", "mysql", "redis"))
    # Twice the application hosts: a roll-out by replacement runs old and new side by side.
    needed = -(-(private + settings.tiers.app.count) // zones) + 2
    if needed > room:
        yield (
            ("vpc_cidr",),
            (
                f"is {network}: a private subnet (/{prefix}) has {room} addresses "
                f"and the tiers need {needed} in each of {zones} zones"
            ),
        )


def _ages(settings: Any) -> Iterator[Fault]:
    ages = settings.inventory
    if ages.fresh_seconds > ages.max_age_seconds:
        yield (
            ("inventory", "fresh_seconds"),
            (
                f"is {ages.fresh_seconds}: it must not exceed "
                f"fleet.inventory.max_age_seconds ({ages.max_age_seconds})"
            ),
        )


def _regions(settings: Any) -> Iterator[Fault]:
    for region, times in Counter((settings.region, *settings.inventory.other_regions)).items():
        if times > 1:
            yield (
                ("inventory", "other_regions"),
                f"names {region} again: its hosts would be listed twice under one name",
            )


def _database(settings: Any) -> Iterator[Fault]:
    for key, taken in (("database", TAKEN_DATABASES), ("user", TAKEN_ACCOUNTS)):
        value = getattr(settings.mysql, key)
        if value in taken:
            yield ("mysql", key), f"is {value!r}, which MySQL or Flotilla itself uses"


def _application(settings: Any) -> Iterator[Fault]:
    paths = settings.application
    if (paths.build is None) == (paths.artifact is None):
        yield (
            ("application", "artifact"),
            (
                f"is {paths.artifact!r} and build is {paths.build!r}: "
                "set exactly one of them; the other one is null"
            ),
        )
    for name in sorted(TAKEN_VARIABLES & set(paths.environment)):
        yield (
            ("application", "environment", name),
            "is set by Flotilla; a value given here would be lost",
        )
    if paths.version_path in {paths.health_path, paths.ready_path}:
        yield (
            ("application", "version_path"),
            (
                f"is {paths.version_path!r}, the same as health_path or ready_path: "
                "its answer is the release that runs and nothing else"
            ),
        )
    if paths.health_path == paths.ready_path:
        yield (
            ("application", "ready_path"),
            (
                f"is {paths.ready_path!r}, the same as health_path: alive and able to serve are "
                "two questions, or a database outage would restart every application"
            ),
        )


def _certificate(settings: Any) -> Iterator[Fault]:
    """The load balancers' rights end with one parameter."""
    wanted = f"/{settings.name}/{settings.env}/lb/certificate"
    if settings.lb.acme and settings.lb.certificate_parameter != wanted:
        yield (
            ("lb", "certificate_parameter"),
            (
                f"is {settings.lb.certificate_parameter!r}: with fleet.lb.acme it must be {wanted},"
                " the one that the load balancers may write"
            ),
        )
