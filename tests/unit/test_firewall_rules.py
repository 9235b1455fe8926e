"""A host's packet filter opens what its security group opens, by the same table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flotilla.provision.world import data
from flotilla.rules.firewall import COMMENT_BYTES, Host, comment, ruleset
from flotilla.rules.reachability import ANYWHERE, Group, groups, rows
from flotilla.settings import ROLES

ROOT = Path(__file__).resolve().parents[2]
VPC = "10.77.0.0/16"
OUTSIDE = {
    "operator": ("198.51.100.0/24", "203.0.113.7/32"),
    "clients": (ANYWHERE,),
    "internet": (ANYWHERE,),
}
ROW = re.compile(
    r"^    (?:meta nfproto (?P<any>ipv4)|ip (?P<side>[sd])addr (?P<network>\S+)) "
    r"(?:(?P<protocol>tcp|udp) dport \{ (?P<ports>[\d, ]+) \}|meta l4proto (?P<number>\d+)) "
    r'accept comment "'
)
Opening = tuple[str, str, int | None]


def opened(text: str, chain: str) -> set[Opening]:
    """Network, protocol and port of every line that a row of the table made."""
    body = text.split(f"chain {chain} {{")[1].split("\n  }", maxsplit=1)[0]
    found: set[Opening] = set()
    for line in body.splitlines():
        if row := ROW.match(line):
            assert row["side"] in (None, {"input": "s", "output": "d"}[chain])
            network = ANYWHERE if row["any"] else row["network"]
            ports = row["ports"].split(", ") if row["ports"] else [None]
            protocol = row["protocol"] or row["number"]
            found |= {(network, protocol, int(port) if port else None) for port in ports}
    return found


def expected(rules) -> set[Opening]:
    return {(VPC if r.peer in ROLES else r.peer, r.protocol, r.port) for r in rules}


def host(group: Group, users=("root",)) -> Host:
    return Host(group, ROLES, VPC, users)


entries = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {
                "from": st.sampled_from([*ROLES, "fleet", "operator", "clients"]),
                "to": st.sampled_from([*ROLES, "fleet", "internet"]),
                "protocol": st.sampled_from(["tcp", "udp"]),
                "ports": st.lists(st.integers(1, 65535), min_size=1, max_size=4),
                "why": st.text(min_size=1, max_size=300),
            }
        ),
        st.fixed_dictionaries(
            {
                "from": st.sampled_from(ROLES),
                "to": st.sampled_from(ROLES),
                "protocol": st.sampled_from(["47", "112"]),
                "why": st.just("a reason"),
            }
        ),
    ),
    max_size=10,
)


@given(entries, st.sampled_from(ROLES))
def test_exactly_what_the_security_group_opens_is_open(table, role):
    group = groups(rows(table), roles=ROLES, outside=OUTSIDE)[role]
    text = ruleset(host(group))
    assert opened(text, "input") == expected(group.ingress)
    assert opened(text, "output") == expected(group.egress)


@given(entries, st.sampled_from(ROLES), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(table, role, chance):
    def text(found):
        return ruleset(host(groups(rows(found), roles=ROLES, outside=OUTSIDE)[role]))

    # Of two rows that open the same, the reason of the first is shown.
    table = [row | {"why": "a reason"} for row in table]
    shuffled = list(table)
    chance.shuffle(shuffled)
    assert text(shuffled) == text(table)


@given(st.text(max_size=400))
def test_no_reason_ends_its_comment_early(why):
    made = comment(why)
    assert not set(made) & {'"', "\\", "\n"}
    assert len(made.encode()) <= COMMENT_BYTES


@pytest.mark.parametrize("role", ROLES)
def test_everything_else_is_closed_and_no_other_table_is_touched(role):
    text = ruleset(host(groups(rows(data("reachability.yml")), roles=ROLES, outside=OUTSIDE)[role]))
    assert text.count("policy drop;") == 2
    assert "flush" not in text
    assert set(re.findall(r"\btable (\w+ \w+)", text)) == {"inet flotilla"}


@pytest.mark.parametrize("role", ROLES)
def test_nobody_but_the_named_accounts_gets_to_the_credentials(role):
    """Refused before the line that lets everybody have the time from the same network."""
    text = ruleset(host(groups([], roles=ROLES, outside=OUTSIDE)[role], users=("mysql", "cwagent")))
    assert "# metadata_users: cwagent mysql root\n" in text
    lines = text.splitlines()
    refused = next(n for n, line in enumerate(lines) if "skuid != @metadata_users" in line)
    allowed = next(n for n, line in enumerate(lines) if "169.254.0.0/16 accept" in line)
    assert refused < allowed


def test_every_role_of_the_table_of_accounts_exists():
    named = data("metadata_users.yml")
    assert set(named) <= {*ROLES, "fleet"}
    assert "app" not in {user for users in named.values() for user in users}


def test_who_of_our_services_acts_with_the_instance_s_rights_may_ask_for_them():
    """A backup that is refused the credentials is missed by nobody until it is needed."""
    named = data("metadata_users.yml")
    tier = {"backup": "mysql", "redis_backup": "redis"}
    accounts = set()
    for role in (ROOT / "roles").iterdir():
        texts = [path.read_text() for path in role.glob("templates/*.j2")]
        if not any("/etc/flotilla/aws.env" in text for text in texts):
            continue
        known = yaml.safe_load((role / "vars/main.yml").read_text() or "{}")
        for user in re.findall(r"^User=(.+)$", "\n".join(texts), re.MULTILINE):
            variable = re.fullmatch(r"\{\{ (\w+) \}\}", user)
            accounts.add((tier.get(role.name, role.name), known[variable[1]] if variable else user))
    assert accounts >= {("mysql", "flotilla-mysql"), ("mysql", "mysql"), ("redis", "redis")}
    assert not {
        (role, user) for role, user in accounts if user not in {*named["fleet"], *named[role]}
    }


def test_a_running_fleet_opens_a_port_before_a_service_moves_to_it():
    plays = yaml.safe_load((ROOT / "playbooks/site.yml").read_text())
    named = [play["name"] for play in plays]
    early = named.index("Firewalls that are in force")
    moving = ("Databases", "Caches", "Clusters", "Application hosts", "Load balancers", "Bastion")
    assert early < min(map(named.index, moving))
    assert named.index("Every host") < early
    assert named[-1] == "Firewalls"
    for play in (plays[early], plays[-1]):
        assert play["any_errors_fatal"], "one host that cannot be reached takes them all back"
        assert set(play["hosts"].split(":")) == set(ROLES)


def test_nothing_in_the_repository_flushes_the_rules_of_others():
    texts = [path for path in (ROOT / "roles").rglob("*") if path.suffix in {".j2", ".py", ".nft"}]
    assert not [
        path
        for path in texts
        if "nft flush" in path.read_text()
        or re.search(r"^\s*flush ruleset", path.read_text(), re.MULTILINE)
    ]
