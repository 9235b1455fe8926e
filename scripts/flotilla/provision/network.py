"""The VPC: a public and a private subnet in every zone, and the ways out of them.

Every zone has a NAT gateway of its own. With one for all, the loss of its zone would cut the
database watchers of the other zones off the EC2 API just when they must fence and promote. S3 and
DynamoDB are reached through gateway endpoints, which cost nothing and belong to no zone.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from ipaddress import IPv4Network
from typing import Any

from flotilla.errors import Refused
from flotilla.provision.change import Change, Stage, Verb
from flotilla.provision.world import World, by_name, letter
from flotilla.rules.fleet import subnet_prefix
from flotilla.rules.reachability import ANYWHERE

NAT_SECONDS = 300  # AWS takes one to three minutes
ENDPOINTS = ("s3", "dynamodb")
ALIVE = ["pending", "available"]


def stages(world: World) -> list[Stage]:
    """What the network lacks, in the order it must be made."""
    return [
        _vpc(world),
        [*_subnets(world), *_gateway(world), *_addresses(world)],
        _nat(world),
        _route_tables(world),
        [*_routes(world), *_endpoints(world)],
    ]


def subnet(world: World, access: str, zone: str) -> str:
    """Name of the ``public`` or ``private`` subnet of a zone."""
    return world.settings.name_of(f"{access}-{letter(zone)}")


def _vpc(world: World) -> list[Change]:
    name, cidr = world.settings.prefix, world.settings.vpc_cidr
    found = by_name(world.ec2.describe_vpcs(Filters=world.mine(name))["Vpcs"]).get(name)
    if found is None:
        return [Change("create", "VPC", name, partial(_make_vpc, world), cidr)]
    world.ids["vpc", name] = found["VpcId"]
    if found["CidrBlock"] != cidr:
        raise Refused(
            f"VPC {name} has {found['CidrBlock']}, fleet.yml says {cidr}",
            why="AWS cannot change the network of a VPC that exists",
            untouched="Nothing was changed",
            next=f"set fleet.vpc_cidr back to {found['CidrBlock']}, or fab fleet.destroy first",
        )
    return []


def _make_vpc(world: World) -> None:
    name = world.settings.prefix
    vpc = world.ec2.create_vpc(
        CidrBlock=world.settings.vpc_cidr, TagSpecifications=world.tagged("vpc", name)
    )["Vpc"]["VpcId"]
    world.ids["vpc", name] = vpc
    world.ec2.get_waiter("vpc_available").wait(VpcIds=[vpc])
    # Hosts resolve the API's names through the VPC's resolver; gateway endpoints need it too.
    world.ec2.modify_vpc_attribute(VpcId=vpc, EnableDnsHostnames={"Value": True})


def _blocks(world: World) -> dict[str, tuple[str, str]]:
    """Subnet name to (zone, CIDR): public ones from the lower half of the VPC, private ones from
    the upper.
    """
    zones = world.settings.zones
    whole = IPv4Network(world.settings.vpc_cidr)
    cut = list(whole.subnets(new_prefix=subnet_prefix(whole, len(zones))))
    half = len(cut) // 2
    return {
        subnet(world, access, zone): (zone, str(cut[first + index]))
        for access, first in (("public", 0), ("private", half))
        for index, zone in enumerate(zones)
    }


def _subnets(world: World) -> list[Change]:
    found = by_name(world.ec2.describe_subnets(Filters=world.mine())["Subnets"])
    changes = []
    for name, (zone, cidr) in _blocks(world).items():
        if name in found:
            world.ids["subnet", name] = found[name]["SubnetId"]
        else:
            make = partial(_make_subnet, world, name, zone, cidr)
            changes.append(Change("create", "subnet", name, make, f"{cidr} in {zone}"))
    return changes


def _make_subnet(world: World, name: str, zone: str, cidr: str) -> None:
    made = world.ec2.create_subnet(
        VpcId=world.id("vpc", world.settings.prefix),
        AvailabilityZone=zone,
        CidrBlock=cidr,
        TagSpecifications=world.tagged("subnet", name),
    )["Subnet"]["SubnetId"]
    world.ids["subnet", name] = made
    if "-public-" in name:
        world.ec2.modify_subnet_attribute(SubnetId=made, MapPublicIpOnLaunch={"Value": True})


def _gateway(world: World) -> list[Change]:
    name = world.settings.prefix
    found = by_name(world.ec2.describe_internet_gateways(Filters=world.mine())["InternetGateways"])
    gateway = found.get(name)
    if gateway:
        world.ids["internet gateway", name] = gateway["InternetGatewayId"]
        if gateway["Attachments"]:
            return []
    verb: Verb = "change" if gateway else "create"
    return [Change(verb, "internet gateway", name, partial(_attach_gateway, world))]


def _attach_gateway(world: World) -> None:
    name = world.settings.prefix
    if ("internet gateway", name) not in world.ids:
        made = world.ec2.create_internet_gateway(
            TagSpecifications=world.tagged("internet-gateway", name)
        )["InternetGateway"]["InternetGatewayId"]
        world.ids["internet gateway", name] = made
    world.ec2.attach_internet_gateway(
        InternetGatewayId=world.id("internet gateway", name),
        VpcId=world.id("vpc", name),
    )


def _addresses(world: World) -> list[Change]:
    """The fleet's own address, which the load balancers hand to each other, and one for each NAT
    gateway.
    """
    found = by_name(world.ec2.describe_addresses(Filters=world.mine())["Addresses"])
    changes = []
    for name in [world.settings.name_of("edge"), *_nat_names(world).values()]:
        if name in found:
            world.ids["address", name] = found[name]["AllocationId"]
        else:
            make = partial(_make_address, world, name)
            changes.append(Change("create", "Elastic IP", name, make))
    return changes


def _make_address(world: World, name: str) -> None:
    world.ids["address", name] = world.ec2.allocate_address(
        Domain="vpc", TagSpecifications=world.tagged("elastic-ip", name)
    )["AllocationId"]


def _nat_names(world: World) -> dict[str, str]:
    return {zone: world.settings.name_of(f"nat-{letter(zone)}") for zone in world.settings.zones}


def _nat(world: World) -> list[Change]:
    live = [*world.mine(), {"Name": "state", "Values": ALIVE}]
    found = by_name(world.ec2.describe_nat_gateways(Filters=live)["NatGateways"])
    changes = []
    for zone, name in _nat_names(world).items():
        if name in found:
            world.ids["NAT gateway", name] = found[name]["NatGatewayId"]
        else:
            make = partial(_make_nat, world, name, zone)
            changes.append(Change("create", "NAT gateway", name, make, f"in {zone}"))
    return changes


def _make_nat(world: World, name: str, zone: str) -> None:
    made = world.ec2.create_nat_gateway(
        SubnetId=world.id("subnet", subnet(world, "public", zone)),
        AllocationId=world.id("address", name),
        TagSpecifications=world.tagged("natgateway", name),
    )["NatGateway"]["NatGatewayId"]
    world.ids["NAT gateway", name] = made
    world.wait(
        f"NAT gateway {name} is available",
        lambda: _nat_state(world, made) == "available",
        seconds=NAT_SECONDS,
    )


def _nat_state(world: World, nat: str) -> str:
    return str(world.ec2.describe_nat_gateways(NatGatewayIds=[nat])["NatGateways"][0]["State"])


def _tables(world: World) -> dict[str, list[str]]:
    """Route table name to the subnets that use it: one for all public subnets, one for each
    private one.
    """
    zones = world.settings.zones
    return {world.settings.name_of("public"): [subnet(world, "public", zone) for zone in zones]} | {
        subnet(world, "private", zone): [subnet(world, "private", zone)] for zone in zones
    }


def _route_tables(world: World) -> list[Change]:
    found = _found_tables(world)
    return [
        Change("create", "route table", name, partial(_make_table, world, name))
        for name in _tables(world)
        if name not in found
    ]


def _found_tables(world: World) -> dict[str, Mapping[str, Any]]:
    found = by_name(world.ec2.describe_route_tables(Filters=world.mine())["RouteTables"])
    for name, table in found.items():
        world.ids["route table", name] = table["RouteTableId"]
    return found


def _make_table(world: World, name: str) -> None:
    world.ids["route table", name] = world.ec2.create_route_table(
        VpcId=world.id("vpc", world.settings.prefix),
        TagSpecifications=world.tagged("route-table", name),
    )["RouteTable"]["RouteTableId"]


def _routes(world: World) -> list[Change]:
    """The default route of every table, and the subnets that use it."""
    found = _found_tables(world)
    changes = []
    for name, subnets in _tables(world).items():
        table = found.get(name, {})
        if not _leads_out(world, name, table):
            act = partial(_lead_out, world, name, _default(table) is not None)
            changes.append(Change("change", "route table", name, act, "default route"))
        used = {entry.get("SubnetId") for entry in table.get("Associations", ())}
        for member in subnets:
            if world.ids.get(("subnet", member), "") not in used:
                act = partial(_associate, world, name, member)
                changes.append(Change("change", "route table", name, act, f"serves {member}"))
    return changes


def _way_out(world: World, table: str) -> tuple[str, str]:
    """(argument of create_route, name in ``world.ids``) for a route table's default route."""
    zone = table.rpartition("-private-")[2]
    if zone == table:
        return "GatewayId", world.ids.get(("internet gateway", world.settings.prefix), "")
    nat = world.settings.name_of(f"nat-{zone}")
    return "NatGatewayId", world.ids.get(("NAT gateway", nat), "")


def _default(table: Mapping[str, Any]) -> Mapping[str, Any] | None:
    routes = table.get("Routes", ())
    return next((r for r in routes if r.get("DestinationCidrBlock") == ANYWHERE), None)


def _leads_out(world: World, name: str, table: Mapping[str, Any]) -> bool:
    key, target = _way_out(world, name)
    route = _default(table)
    return bool(route and target and route.get(key) == target)


def _lead_out(world: World, name: str, exists: bool) -> None:  # noqa: FBT001  bound by partial
    key, target = _way_out(world, name)
    call = world.ec2.replace_route if exists else world.ec2.create_route
    call(
        RouteTableId=world.id("route table", name),
        DestinationCidrBlock=ANYWHERE,
        **{key: target},
    )


def _associate(world: World, name: str, member: str) -> None:
    world.ec2.associate_route_table(
        RouteTableId=world.id("route table", name), SubnetId=world.id("subnet", member)
    )


def _endpoints(world: World) -> list[Change]:
    live = [*world.mine(), {"Name": "vpc-endpoint-state", "Values": ALIVE}]
    found = by_name(world.ec2.describe_vpc_endpoints(Filters=live)["VpcEndpoints"])
    return [
        Change("create", "gateway endpoint", name, partial(_make_endpoint, world, service, name))
        for service in ENDPOINTS
        if (name := world.settings.name_of(service)) not in found
    ]


def _make_endpoint(world: World, service: str, name: str) -> None:
    world.ec2.create_vpc_endpoint(
        VpcId=world.id("vpc", world.settings.prefix),
        VpcEndpointType="Gateway",
        ServiceName=f"com.amazonaws.{world.settings.region}.{service}",
        RouteTableIds=[world.id("route table", table) for table in _tables(world)],
        TagSpecifications=world.tagged("vpc-endpoint", name),
    )
