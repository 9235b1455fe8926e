"""Turn security groups and network ACLs into the packet filter of one instance.

`ruleset` is pure: it takes what the API says and returns the text of one nftables table, which
lives in the instance's own network namespace. `apply` swaps that table in as one transaction, so
no packet ever sees half of it.

Two rules of EC2 shape the table:
- Security groups are stateful. A flow that was once allowed outlives the rule that allowed it, so
  the answer to "established?" comes before the group's rules, and replacing the table leaves
  connection tracking alone.
- Network ACLs are stateless and stand at the border of the subnet. They are asked first, for every
  packet, replies included: denying an address cuts its connections at once. Neighbours in the same
  subnet never cross them.
"""

from __future__ import annotations

import ipaddress
import subprocess
from collections import defaultdict
from collections.abc import Iterable
from ipaddress import IPv4Network
from pathlib import Path

from lab.errors import LabError
from lab.layout import SERVICE_ADDRESSES
from lab.ports import AclEntry, Rule, View

TABLE = "lab_sg"

# No security group filters the link-local services of EC2 either.
SERVICES = SERVICE_ADDRESSES

_EVERYWHERE = ["0.0.0.0/0"]
_WITH_PORTS = {"6": "tcp", "17": "udp", "tcp": "tcp", "udp": "udp"}
_ICMP = {"1", "icmp"}
_ALL = {"-1", "all"}

_What = tuple[str, int | None, int | None]


def ruleset(view: View) -> str:
    """Return the nftables text that replaces the instance's table in one transaction.

    Invariant: equal views give equal text whatever the order of their rules, so a caller may skip
    loading what it loaded before.
    """
    lines = [
        # Adding first makes the deletion valid when there is no table yet.
        f"add table inet {TABLE}",
        f"delete table inet {TABLE}",
        f"table inet {TABLE} {{",
        *_chain("acl_in", _acl(view.acl_ingress, "saddr")),
        *_chain("acl_out", _acl(view.acl_egress, "daddr")),
        *_chain("group_in", _permissions(view.ingress, "saddr")),
        *_chain("group_out", _permissions(view.egress, "daddr")),
        *_hook("input", "iif", "saddr", "in", view.subnet_cidr),
        *_hook("output", "oif", "daddr", "out", view.subnet_cidr),
        # An interface with its source/destination check on forwards for nobody.
        *_chain("forward", ["type filter hook forward priority filter; policy drop;"]),
        "}",
    ]
    return "\n".join(lines) + "\n"


def apply(instance_id: str, netns: str, rules: str, *, timeout_seconds: float = 10.0) -> None:
    """Load the text of `ruleset` in the network namespace `netns`, as one transaction.

    A namespace that is gone is no error. Raises LabError with the kernel's words; the table from
    before is then still in force.
    """
    done = subprocess.run(
        ["nsenter", f"--net=/run/netns/{netns}", "nft", "-f", "-"],
        input=rules,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
    # An instance may be terminated between the look and the act: what is gone needs no filter.
    if done.returncode and Path("/run/netns", netns).exists():
        raise LabError(
            f"{instance_id}: nft refused its security groups: {done.stderr.strip()}",
            why=f"the rules that were in force in namespace {netns} stay in force",
        )


def _hook(name: str, interface: str, address: str, side: str, subnet: str) -> list[str]:
    # EC2's groups are outside of the host: what leaves meets a filter of the host's own before.
    priority = "filter + 20" if name == "output" else "filter"
    return _chain(
        name,
        [
            f"type filter hook {name} priority {priority}; policy drop;",
            f'{interface} "lo" accept',
            f"ip {address} {{ {', '.join(SERVICES)} }} accept",
            f"ip {address} != {_network(subnet)} jump acl_{side}",
            "ct state established,related accept",
            f"jump group_{side}",
        ],
    )


def _chain(name: str, rules: Iterable[str]) -> list[str]:
    return [f"  chain {name} {{", *(f"    {rule}" for rule in rules), "  }"]


def _permissions(rules: Iterable[Rule], address: str) -> list[str]:
    """One nftables rule for each distinct protocol and range, with the merged set of peers."""
    peers: dict[_What, set[IPv4Network]] = defaultdict(set)
    for rule in rules:
        peers[_what(rule.protocol, rule.from_port, rule.to_port)].update(map(_network, rule.peers))
    # A group with no running member allows nobody; EC2 keeps such a rule all the same.
    found = [(what, peers[what]) for what in sorted(peers, key=str) if peers[what]]
    return [_line(networks, address, what, "accept") for what, networks in found]


def _acl(entries: Iterable[AclEntry], address: str) -> list[str]:
    lines = [
        _line(
            {_network(entry.cidr)},
            address,
            _what(entry.protocol, entry.from_port, entry.to_port),
            "return" if entry.action == "allow" else "drop",
        )
        for entry in sorted(entries, key=lambda entry: entry.number)
    ]
    return [*lines, "drop"] if lines else []


def _line(peers: Iterable[IPv4Network], address: str, what: _What, verdict: str) -> str:
    merged = [str(network) for network in ipaddress.collapse_addresses(peers)]
    source = (
        "meta nfproto ipv4" if merged == _EVERYWHERE else f"ip {address} {{ {', '.join(merged)} }}"
    )
    return " ".join(filter(None, [source, _match(*what), verdict]))


def _what(protocol: str, first: int | None, last: int | None) -> _What:
    """Normalise to a protocol name or number and a range whose None means any.

    EC2 writes "any" as -1, as no value and, for ports, as 0-65535. Protocols without ports ignore
    the range.
    """
    name = protocol.lower()
    low, high = (None if value in (None, -1) else value for value in (first, last))
    if name in _WITH_PORTS:
        if low is None or (low == 0 and high == 65535):
            return _WITH_PORTS[name], None, None
        return _WITH_PORTS[name], low, low if high is None else high
    if name in _ICMP:  # the range is type and code
        return "icmp", low, high if low is not None else None
    return ("-1" if name in _ALL else name), None, None


def _match(protocol: str, first: int | None, last: int | None) -> str:
    if protocol == "-1":
        return ""
    if first is None:
        return f"meta l4proto {protocol}"
    if protocol == "icmp":
        return f"icmp type {first}" + ("" if last is None else f" icmp code {last}")
    return f"{protocol} dport {first}" + ("" if last == first else f"-{last}")


def _network(cidr: str) -> IPv4Network:
    return IPv4Network(cidr, strict=False)
