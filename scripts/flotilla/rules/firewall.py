"""Turn the reachability table into the packet filter of one host: the text of an nftables table.

Nothing here loads anything. Invariants:
- a port is open in this text exactly if the security group made of the same rows opens it to
  somebody, so the two can never contradict each other;
- the text replaces the table ``inet flotilla`` and touches no other, in one transaction. Whoever
  else has a table in the kernel keeps it.

Between roles the source is the VPC's network and not the hosts' addresses: those are the security
groups' part, which Auto Scaling keeps right (docs/decisions/021-the-host-firewall.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network

from flotilla.rules.reachability import ANYWHERE, Group, Rule

TABLE = "flotilla"
METADATA = "169.254.169.254"
# EC2's own services: DNS, time, metadata. No security group filters them, and no packet to them
# reaches another host.
LINK_LOCAL = "169.254.0.0/16"
# nft refuses a longer comment.
COMMENT_BYTES = 127

_ICMP = "destination-unreachable, time-exceeded, parameter-problem"
_ICMP6 = f"{_ICMP}, packet-too-big"
# Without these there is no IPv6 on the link at all; a router never forwards them (hop limit 255).
_NEIGHBOURS = "nd-neighbor-solicit, nd-neighbor-advert"


@dataclass(frozen=True, slots=True)
class Host:
    """What of a host its filter depends on."""

    group: Group  # the security group of its role
    roles: Sequence[str]  # all roles of the fleet: peers that are hosts of the VPC
    vpc_cidr: str
    metadata_users: Sequence[str]  # accounts that may ask the instance metadata


def ruleset(host: Host) -> str:
    """The text for ``nft -f``. One host has one text, in whatever order its rows stand.

    ``metadata_users`` are named in a comment and root alone is in the set: account numbers differ
    from host to host, and only the host can look them up.
    """
    vpc = IPv4Network(host.vpc_cidr)
    return "\n".join(
        [
            # Adding first makes the deletion valid when there is no table yet.
            f"add table inet {TABLE}",
            f"delete table inet {TABLE}",
            f"table inet {TABLE} {{",
            f"  # metadata_users: {' '.join(sorted(set(host.metadata_users) | {'root'}))}",
            "  set metadata_users {",
            # Not `type uid`: nft 1.0.6, in Debian 12, ends with SIGSEGV where a newer one made such
            # a set, and then nobody can load anything else in that network.
            "    typeof meta skuid",
            "    elements = { 0 }",
            "  }",
            *_input(host, str(vpc)),
            *_output(host, str(vpc), str(vpc[2])),
            "}",
            "",
        ]
    )


def _input(host: Host, vpc: str) -> list[str]:
    return [
        "  chain input {",
        "    type filter hook input priority filter + 10; policy drop;",
        "    ct state established,related accept",
        '    iif "lo" accept',
        f"    icmp type {{ {_ICMP} }} accept",
        f"    icmpv6 type {{ {_ICMP6} }} accept",
        f"    icmpv6 type {{ {_NEIGHBOURS}, nd-router-advert }} ip6 hoplimit 255 accept",
        '    udp sport 67 udp dport 68 accept comment "DHCP"',
        *_openings(host.group.ingress, host.roles, vpc, "saddr"),
        '    counter drop comment "what no row opens"',
        "  }",
    ]


def _output(host: Host, vpc: str, resolver: str) -> list[str]:
    # Refused and not dropped: a program on this host is told at once, and so is who debugs it. As
    # ICMP, which ends no connection that exists; a reset would.
    refused = "counter reject with icmpx admin-prohibited"
    credentials = 'comment "credentials of the instance"'
    return [
        "  chain output {",
        "    type filter hook output priority filter + 10; policy drop;",
        "    ct state established,related accept",
        '    oif "lo" accept',
        f"    icmp type {{ {_ICMP} }} accept",
        f"    icmpv6 type {{ {_ICMP6} }} accept",
        f"    icmpv6 type {{ {_NEIGHBOURS}, nd-router-solicit, mld2-listener-report }} accept",
        '    udp sport 68 udp dport 67 accept comment "DHCP"',
        f"    ip daddr {METADATA} meta skuid != @metadata_users {refused} {credentials}",
        f'    ip daddr {LINK_LOCAL} accept comment "time, DNS and metadata of EC2"',
        f'    ip daddr {resolver} meta l4proto {{ tcp, udp }} th dport 53 accept comment "DNS"',
        *_openings(host.group.egress, host.roles, vpc, "daddr"),
        f'    {refused} comment "what no row opens"',
        "  }",
    ]


def _openings(rules: Iterable[Rule], roles: Sequence[str], vpc: str, address: str) -> Iterable[str]:
    """One line for what is open to the same network for the same reason."""
    ports: dict[tuple[str, str, str], set[int]] = {}
    for rule in rules:
        network = vpc if rule.peer in roles else str(IPv4Network(rule.peer))
        found = ports.setdefault((network, rule.protocol, rule.why), set())
        if rule.port is not None:
            found.add(rule.port)
    for (network, protocol, why), found in sorted(ports.items()):
        peer = "meta nfproto ipv4" if network == ANYWHERE else f"ip {address} {network}"
        listed = ", ".join(map(str, sorted(found)))
        what = f"{protocol} dport {{ {listed} }}" if found else f"meta l4proto {protocol}"
        yield f'    {peer} {what} accept comment "{comment(why)}"'


def comment(why: str) -> str:
    """A row's reason as nft takes it: on one line, without quotes, as long as may be."""
    words = " ".join(why.replace('"', "'").replace("\\", "/").split())
    printable = "".join(letter for letter in words if letter.isprintable())
    return printable.encode()[:COMMENT_BYTES].decode(errors="ignore")
