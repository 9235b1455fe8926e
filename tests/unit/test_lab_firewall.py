"""What security groups and network ACLs allow is what the packet filter lets through."""

from __future__ import annotations

import ipaddress
import itertools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.firewall import SERVICES, ruleset
from lab.ports import AclEntry, Rule, View

NUMBERS = {"icmp": 1, "tcp": 6, "udp": 17}
ADDRESSES = ("10.0.1.4", "10.0.1.9", "10.0.2.7", "10.0.2.8", "198.18.0.1", "192.0.2.200")
CIDRS = ("0.0.0.0/0", "10.0.0.0/16", "10.0.2.0/24", "10.0.2.7/32", "10.0.2.6/31", "198.18.0.0/16")
PORTS = (22, 80, 443, 3306, 65535)


@dataclass(frozen=True)
class Packet:
    peer: str
    protocol: int
    port: int = 0  # destination port; for ICMP the type
    code: int = 0
    incoming: bool = True
    established: bool = False


# --- what EC2's documentation says, in the plainest words ---------------------------------------


def covers(protocol: str, first: int | None, last: int | None, packet: Packet) -> bool:
    if protocol == "-1":
        return True
    number = NUMBERS.get(protocol) or int(protocol)
    if number != packet.protocol:
        return False
    anything = first in (None, -1)
    if number in (6, 17):
        return anything or first <= packet.port <= last
    if number == 1:
        return anything or (first == packet.port and last in (None, -1, packet.code))
    return True


def within(address: str, cidr: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(cidr, strict=False)


def allowed(view: View, packet: Packet) -> bool:
    if packet.peer in SERVICES:
        return True
    entries = view.acl_ingress if packet.incoming else view.acl_egress
    if entries and not within(packet.peer, view.subnet_cidr):
        hits = [
            entry
            for entry in sorted(entries, key=lambda entry: entry.number)
            if within(packet.peer, entry.cidr)
            and covers(entry.protocol, entry.from_port, entry.to_port, packet)
        ]
        if not hits or hits[0].action == "deny":
            return False
    rules = view.ingress if packet.incoming else view.egress
    return packet.established or any(
        covers(rule.protocol, rule.from_port, rule.to_port, packet)
        and any(within(packet.peer, cidr) for cidr in rule.peers)
        for rule in rules
    )


# --- what the text says, read as nftables reads it -----------------------------------------------


def chains(text: str) -> dict[str, list[str]]:
    found = re.findall(r"chain (\w+) \{\n(.*?)\n?  \}", text, re.DOTALL)
    return {name: [line.strip() for line in body.splitlines()] for name, body in found}


def holds(words: list[str], packet: Packet) -> bool:
    """Consume one condition from the front of `words` and tell whether the packet meets it."""
    key = words.pop(0)
    if key in ("iif", "oif"):
        words.pop(0)
        return False
    what = words.pop(0)
    if (key, what) == ("ct", "state"):
        words.pop(0)
        return packet.established
    if (key, what) == ("meta", "nfproto"):
        return words.pop(0) == "ipv4"
    if (key, what) == ("meta", "l4proto"):
        name = words.pop(0)
        return packet.protocol == (NUMBERS.get(name) or int(name))
    if key == "ip":
        assert what == ("saddr" if packet.incoming else "daddr")
        negate = words[0] == "!="
        if negate:
            words.pop(0)
        if words[0] == "{":
            end = words.index("}")
            networks = [word.strip(",") for word in words[1:end]]
            del words[: end + 1]
        else:
            networks = [words.pop(0)]
        return negate ^ any(within(packet.peer, network) for network in networks)
    number = NUMBERS[key]
    low, _, high = words.pop(0).partition("-")
    value = packet.code if what == "code" else packet.port
    return packet.protocol == number and int(low) <= value <= int(high or low)


def verdict(table: dict[str, list[str]], chain: str, packet: Packet) -> str | None:
    for line in table[chain]:
        if line.startswith("type filter"):
            continue
        words = line.split()
        met = True
        while met and words[0] not in ("accept", "drop", "return", "jump"):
            met = holds(words, packet)
        if not met:
            continue
        if words[0] == "return":
            return None
        outcome = verdict(table, words[1], packet) if words[0] == "jump" else words[0]
        if outcome:
            return outcome
    return None


def passes(text: str, packet: Packet) -> bool:
    hook = "input" if packet.incoming else "output"
    return verdict(chains(text), hook, packet) == "accept"  # the policy of both is drop


# --- states ---------------------------------------------------------------------------------------


@st.composite
def ranges(draw: st.DrawFn) -> tuple[str, int | None, int | None]:
    protocol = draw(st.sampled_from(["-1", "tcp", "udp", "icmp", "112", "6"]))
    if protocol == "icmp":
        kind = draw(st.sampled_from([-1, 8, 3]))
        return protocol, kind, draw(st.sampled_from([-1, 0, 4])) if kind != -1 else -1
    if protocol in ("tcp", "udp", "6"):
        low, high = sorted(draw(st.tuples(*[st.sampled_from([0, *PORTS])] * 2)))
        return draw(
            st.sampled_from([(protocol, low, high), (protocol, None, None), (protocol, -1, -1)])
        )
    return protocol, draw(st.sampled_from([None, -1])), None


RULES = st.builds(
    lambda what, peers: Rule(*what, tuple(sorted(peers))),
    ranges(),
    st.sets(st.sampled_from(CIDRS), max_size=3),
)
ENTRIES = st.lists(
    st.builds(
        lambda number, action, what, cidr: AclEntry(number, action, *what, cidr),
        st.integers(1, 32766),
        st.sampled_from(["allow", "deny"]),
        ranges(),
        st.sampled_from(CIDRS),
    ),
    max_size=4,
    unique_by=lambda entry: entry.number,
).map(tuple)
LISTS = st.lists(RULES, max_size=5).map(tuple)
VIEWS = st.builds(
    View,
    instance_id=st.just("i-1"),
    address=st.just("10.0.1.5"),
    subnet_cidr=st.just("10.0.1.0/24"),
    ingress=LISTS,
    egress=LISTS,
    acl_ingress=ENTRIES,
    acl_egress=ENTRIES,
)
PACKETS = st.builds(
    Packet,
    peer=st.sampled_from([*ADDRESSES, *SERVICES]),
    protocol=st.sampled_from([1, 6, 17, 112, 50]),
    port=st.sampled_from([0, 3, 8, *PORTS]),
    code=st.sampled_from([0, 4]),
    incoming=st.booleans(),
    established=st.booleans(),
)
EMPTY = View("i-1", "10.0.1.5", "10.0.1.0/24", (), ())
SSH = Packet("10.0.2.7", 6, 22)


def with_ingress(*rules: Rule) -> View:
    return replace(EMPTY, ingress=rules)


@settings(max_examples=500, deadline=None)
@given(VIEWS, PACKETS)
def test_the_filter_lets_through_exactly_what_the_api_allows(view: View, packet: Packet) -> None:
    assert passes(ruleset(view), packet) is allowed(view, packet)


@given(VIEWS, st.randoms())
def test_the_order_of_rules_does_not_change_the_text(view: View, random) -> None:
    shuffled = random.sample(view.ingress, len(view.ingress))
    assert ruleset(replace(view, ingress=tuple(shuffled))) == ruleset(view)


def test_without_rules_nothing_passes_but_the_lab_services() -> None:
    text = ruleset(EMPTY)
    assert not passes(text, SSH)
    assert not passes(text, replace(SSH, incoming=False))
    assert all(passes(text, Packet(service, 6, 80, incoming=False)) for service in SERVICES)


def test_a_connection_outlives_the_rule_that_allowed_it() -> None:
    assert passes(ruleset(EMPTY), replace(SSH, established=True))


def test_a_network_acl_that_denies_an_address_cuts_its_established_connections() -> None:
    deny = AclEntry(1, "deny", "-1", None, None, "10.0.2.7/32")
    allow = AclEntry(100, "allow", "-1", None, None, "0.0.0.0/0")
    view = replace(with_ingress(Rule("tcp", 22, 22, ("0.0.0.0/0",))), acl_ingress=(allow, deny))
    text = ruleset(view)
    assert not passes(text, replace(SSH, established=True))
    assert passes(text, replace(SSH, peer="10.0.2.8"))


def test_neighbours_in_the_subnet_do_not_meet_the_network_acl() -> None:
    deny = AclEntry(1, "deny", "-1", None, None, "0.0.0.0/0")
    view = replace(with_ingress(Rule("tcp", 22, 22, ("10.0.0.0/16",))), acl_ingress=(deny,))
    assert passes(ruleset(view), replace(SSH, peer="10.0.1.9"))


def test_a_rule_for_a_group_without_members_allows_nobody() -> None:
    text = ruleset(with_ingress(Rule("tcp", 22, 22, ())))
    assert not any(passes(text, replace(SSH, peer=peer)) for peer in ADDRESSES)


def test_vrrp_passes_by_its_protocol_number_and_nothing_else_does() -> None:
    text = ruleset(with_ingress(Rule("112", -1, -1, ("10.0.1.4/32",))))
    assert passes(text, Packet("10.0.1.4", 112))
    assert not passes(text, Packet("10.0.1.9", 112))
    assert not passes(text, Packet("10.0.1.4", 6, 22))


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("nft"), reason="nft checks a ruleset as root only"
)
def test_the_kernel_accepts_every_form_of_rule() -> None:
    forms = [("-1", None, None), ("tcp", 22, 22), ("tcp", 1, 9), ("udp", None, None)]
    forms += [("icmp", -1, -1), ("icmp", 8, -1), ("icmp", 3, 4), ("112", -1, -1), ("6", 0, 65535)]
    rules = tuple(
        Rule(*form, peers)
        for form, peers in itertools.product(forms, [("0.0.0.0/0",), ("10.0.0.0/8", "10.1.2.3/32")])
    )
    acl = tuple(
        AclEntry(number, action, *form, cidr)
        for number, (form, action, cidr) in enumerate(
            itertools.product(forms, ["allow", "deny"], ["0.0.0.0/0", "10.0.2.7/32"]), start=1
        )
    )
    view = replace(EMPTY, ingress=rules, egress=rules, acl_ingress=acl, acl_egress=acl)
    checked = subprocess.run(
        ["nft", "--check", "-f", "-"],
        input=ruleset(view),
        text=True,
        capture_output=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
