"""Security groups and network ACLs, as a program on one host sees another host."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest
from guests import ZONES, Conversation, Guest, Place, needs_lab, permission, place, until

pytestmark = needs_lab

PORT = 7000


@dataclass
class Pair:
    """A client and a server in different subnets, each in a group of its own."""

    place: Place
    client: Guest
    server: Guest
    client_group: str
    server_group: str

    @contextmanager
    def opened(self, **peer: str) -> Iterator[None]:
        """The server's port open for this peer."""
        rule = permission("tcp", (PORT, PORT), **peer)
        ec2, group = self.place.ec2, self.server_group
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=rule)
        try:
            yield
        finally:
            ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=rule)

    @contextmanager
    def no_way_out(self) -> Iterator[None]:
        """The client's group without its egress rule."""
        rule = [{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
        ec2, group = self.place.ec2, self.client_group
        ec2.revoke_security_group_egress(GroupId=group, IpPermissions=rule)
        try:
            yield
        finally:
            ec2.authorize_security_group_egress(GroupId=group, IpPermissions=rule)

    @contextmanager
    def talking(self) -> Iterator[Conversation]:
        """An established connection to the server's port."""
        talk = Conversation(self.client, self.server, PORT)
        try:
            assert talk.answers()
            yield talk
        finally:
            talk.close()

    def connects(self, port: int = PORT) -> bool:
        return self.client.reaches(self.server, port)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with place() as where:
        near, far = where.group(), where.group()
        (client,) = where.launch(SecurityGroupIds=[near])
        (server,) = where.launch(SecurityGroupIds=[far], zone=ZONES[1])
        server.listens(PORT)
        yield Pair(where, client, server, near, far)


def test_a_port_is_closed_until_a_rule_opens_it_and_closed_again_with_the_rule(pair: Pair) -> None:
    assert not pair.connects()
    with pair.opened(group=pair.client_group):
        assert pair.connects(), "open as soon as the API has answered"
    assert not pair.connects()


def test_a_rule_for_an_address_range_opens_for_that_range_only(pair: Pair) -> None:
    with pair.opened(cidr="192.0.2.0/24"):
        assert not pair.connects()
    with pair.opened(cidr=f"{pair.client.address}/32"):
        assert pair.connects()


def test_what_may_go_out_is_enforced_on_the_sender(pair: Pair) -> None:
    with pair.opened(cidr="0.0.0.0/0"), pair.no_way_out():
        assert not pair.connects()
        only = permission("tcp", (PORT, PORT), group=pair.server_group)
        ec2, group = pair.place.ec2, pair.client_group
        ec2.authorize_security_group_egress(GroupId=group, IpPermissions=only)
        assert pair.connects()
        ec2.revoke_security_group_egress(GroupId=group, IpPermissions=only)
        assert not pair.connects()


def test_a_host_without_any_way_out_still_reaches_the_lab_services(pair: Pair) -> None:
    dial = "import socket,sys;socket.create_connection((sys.argv[1],int(sys.argv[2])),2)"
    with pair.no_way_out():
        for address, port in (("169.254.169.254", 80), ("169.254.169.250", 4566)):
            pair.client.python(dial, address, str(port))


def test_an_established_connection_outlives_the_rule_and_a_new_one_does_not_start(
    pair: Pair,
) -> None:
    with ExitStack() as rule:
        rule.enter_context(pair.opened(group=pair.client_group))
        with pair.talking() as talk:
            rule.close()
            assert not pair.connects()
            assert talk.answers()


def test_a_network_acl_cuts_an_established_connection(pair: Pair) -> None:
    ec2 = pair.place.ec2
    _, acl = subnet_association(pair.place, pair.place.subnets[ZONES[1]])
    entry = {"NetworkAclId": acl, "RuleNumber": 10, "Egress": False}
    with pair.opened(group=pair.client_group), pair.talking() as talk:
        ec2.create_network_acl_entry(
            **entry, Protocol="-1", RuleAction="deny", CidrBlock=f"{pair.client.address}/32"
        )
        try:
            assert not talk.answers()
            assert not pair.connects()
        finally:
            ec2.delete_network_acl_entry(**entry)
        assert pair.connects()


def test_a_subnet_under_an_empty_network_acl_lets_nothing_in(pair: Pair) -> None:
    ec2 = pair.place.ec2
    closed = ec2.create_network_acl(VpcId=pair.place.vpc)["NetworkAcl"]["NetworkAclId"]
    association, before = subnet_association(pair.place, pair.place.subnets[ZONES[1]])
    with pair.opened(group=pair.client_group):
        assert pair.connects()
        moved = ec2.replace_network_acl_association(AssociationId=association, NetworkAclId=closed)[
            "NewAssociationId"
        ]
        try:
            assert not pair.connects()
        finally:
            ec2.replace_network_acl_association(AssociationId=moved, NetworkAclId=before)
        assert pair.connects()


def test_a_group_lets_in_a_member_launched_after_the_rule(pair: Pair) -> None:
    with pair.opened(group=pair.client_group):
        (late,) = pair.place.launch(SecurityGroupIds=[pair.client_group], zone=ZONES[2])
        until(lambda: late.reaches(pair.server, PORT), 1, "it is let in")
        (stranger,) = pair.place.launch(SecurityGroupIds=[pair.place.group()], zone=ZONES[2])
        assert not stranger.reaches(pair.server, PORT)


def test_members_of_the_default_group_reach_each_other_and_nobody_else(pair: Pair) -> None:
    one, other = pair.place.launch(2, zone=ZONES[2])
    other.listens(PORT)
    assert one.reaches(other, PORT)
    assert not pair.client.reaches(other, PORT)


def test_a_protocol_without_ports_is_let_in_by_its_number(pair: Pair) -> None:
    hear = (
        "import socket,sys\n"
        "s=socket.socket(socket.AF_INET,socket.SOCK_RAW,112);s.settimeout(float(sys.argv[1]))\n"
        "print('ready',flush=True)\n"
        "try: print(s.recvfrom(99)[1][0])\n"
        "except TimeoutError: print('silence')\n"
    )
    send = (
        "import socket,sys,time\n"
        "s=socket.socket(socket.AF_INET,socket.SOCK_RAW,112)\n"
        "for _ in range(10): s.sendto(b'vrrp',(sys.argv[1],0)); time.sleep(.05)\n"
    )

    def heard(seconds: str) -> str:
        listener = subprocess.Popen(
            pair.server.argv("python3", "-c", hear, seconds), stdout=subprocess.PIPE, text=True
        )
        assert listener.stdout.readline() == "ready\n"
        pair.client.python(send, pair.server.address)
        return listener.communicate(timeout=10)[0].strip()

    rule = permission("112", (-1, -1), group=pair.client_group)
    assert heard("1") == "silence"
    pair.place.ec2.authorize_security_group_ingress(GroupId=pair.server_group, IpPermissions=rule)
    assert heard("3") == pair.client.address


def subnet_association(where: Place, subnet: str) -> tuple[str, str]:
    acls = where.ec2.describe_network_acls(
        Filters=[{"Name": "association.subnet-id", "Values": [subnet]}]
    )["NetworkAcls"]
    found = [
        (association["NetworkAclAssociationId"], acl["NetworkAclId"])
        for acl in acls
        for association in acl["Associations"]
        if association["SubnetId"] == subnet
    ]
    return found[0]
