"""The lab's decisions that need no host: mirrors, addresses, routes, the packet filter."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ports import free_port

from lab import baseimage, console, control, mirror, network, preflight, seed
from lab.addresses import Pool
from lab.errors import LabError, Unmet
from lab.layout import PUBLIC_POOL, Layout
from lab.wsgi import Call

ARCHIVE = "http://mirror.invalid/debian"
SECURITY = "http://mirror.invalid/security"


def test_the_mirror_is_the_one_apt_is_configured_with() -> None:
    lines = [
        "|vendor|https://vendor.invalid/apt",
        f"Debian|Debian-Security|{SECURITY}/",
        f"Debian|Debian|{ARCHIVE}/",
        "Debian|Debian|http://second.invalid/debian/",
    ]
    assert mirror.choose(lines) == mirror.Mirror(ARCHIVE, SECURITY)


@pytest.mark.parametrize(
    "lines", [[], ["Ubuntu|Ubuntu|http://mirror.invalid/ubuntu/"], ["Debian|Debian|cdrom:[x]/"]]
)
def test_without_a_debian_mirror_there_is_none(lines: list[str]) -> None:
    assert mirror.choose(lines) is None


def test_the_proxy_lets_through_every_host_apt_knows() -> None:
    lines = [f"Debian|Debian|{ARCHIVE}/", "|x|https://vendor.invalid/apt", "|y|cdrom:[x]/"]
    assert mirror.hosts(lines) == {"mirror.invalid", "vendor.invalid"}


def recipe(*, archive: str = ARCHIVE, valid: bool = True) -> baseimage.Recipe:
    return baseimage.Recipe(mirror.Mirror(archive, SECURITY), valid)


def test_the_base_image_has_one_name_as_long_as_nothing_changes() -> None:
    assert recipe().image_id() == recipe().image_id()
    others = {recipe(archive="http://other.invalid").image_id(), recipe(valid=False).image_id()}
    assert len(others | {recipe().image_id()}) == 3


def test_guests_reach_the_mirror_only_through_the_proxy() -> None:
    conf = recipe(valid=False).apt_conf()
    for scheme in ("http", "https"):
        assert f'Acquire::{scheme}::Proxy "http://169.254.169.253:3142";' in conf
    assert 'Check-Valid-Until "false"' in conf
    assert "Check-Valid-Until" not in recipe().apt_conf()


def test_guests_have_security_updates_where_the_machine_has_them() -> None:
    assert f"deb {SECURITY} trixie-security main" in recipe().sources()
    assert len(baseimage.Recipe(mirror.Mirror(ARCHIVE, None), True).sources()) == 2


public = st.integers(0, PUBLIC_POOL.num_addresses - 1).map(lambda n: str(PUBLIC_POOL[n]))
private = st.integers(0, 2**16 - 1).map(lambda n: str(IPv4Network("10.77.0.0/16")[n]))


@pytest.mark.skipif(shutil.which("nft") is None, reason="nftables is not installed")
@pytest.mark.parametrize("leads", [{}, {"127.77.0.10": "10.77.1.4", "127.77.0.9": "10.77.1.5"}])
def test_nftables_accepts_the_rules(leads: dict[str, str]) -> None:
    checked = subprocess.run(
        ["unshare", "-rn", "nft", "-c", "-f", "-"],
        input=network.ruleset(leads),
        text=True,
        capture_output=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


@given(st.dictionaries(public, private, max_size=20))
def test_the_rules_do_not_depend_on_the_order_addresses_were_given(leads: dict[str, str]) -> None:
    turned = dict(reversed(leads.items()))
    assert network.ruleset(leads) == network.ruleset(turned)


@given(st.dictionaries(public, private, max_size=20))
def test_every_published_address_leads_to_its_host_and_is_a_known_pair(
    leads: dict[str, str],
) -> None:
    rules = network.ruleset(leads)
    for out, inside in leads.items():
        assert f"{out} : {inside}" in rules
        assert f"{out} . {inside}" in rules


@given(private, private)
def test_a_hardware_address_stands_for_one_private_address(one: str, other: str) -> None:
    assert (network.mac(one) == network.mac(other)) == (one == other)
    first_octet = int(network.mac(one).split(":")[0], 16)
    assert first_octet & 0b11 == 0b10, "locally administered, for one receiver"


def test_a_vpc_may_not_hide_a_route_of_the_machine() -> None:
    routes = [IPv4Network("0.0.0.0/0"), IPv4Network("10.5.0.0/24")]
    assert network.conflict(IPv4Network("10.5.0.0/16"), routes) == IPv4Network("10.5.0.0/24")
    assert network.conflict(IPv4Network("10.6.0.0/16"), routes) is None


def test_name_servers_are_among_what_a_vpc_may_not_hide() -> None:
    text = "# nameserver 10.1.1.1\nsearch x\nnameserver 10.255.255.53\nnameserver fd00::1\n"
    assert network.resolvers(text) == [IPv4Network("10.255.255.53/32")]


@given(st.sets(st.integers(10, 40)))
def test_the_pool_never_gives_out_an_address_in_use(used: set[int]) -> None:
    taken = {str(PUBLIC_POOL[n]) for n in used}
    pool = Pool(PUBLIC_POOL, lambda: taken)
    for _ in range(50):
        address = pool.take()
        assert address not in taken
        assert IPv4Address(address) in PUBLIC_POOL
        taken.add(address)


def test_an_address_given_back_is_not_the_next_one_given_out() -> None:
    pool = Pool(PUBLIC_POOL, set)
    assert pool.take() != pool.take()


def test_an_empty_pool_says_so() -> None:
    small = IPv4Network("127.77.0.0/28")
    pool = Pool(small, lambda: {str(address) for address in small})
    with pytest.raises(RuntimeError, match=r"127\.77\.0\.0/28"):
        pool.take()


def test_the_console_is_what_the_host_printed() -> None:
    logged = ["t stdout P half ", "t stdout F a line\r", "t stderr F another", "not podman's"]
    assert console.plain(logged) == "half a line\nanother\n"


def test_the_key_block_is_only_there_with_keys() -> None:
    assert console.key_block(["", " \n"]) == ""
    block = console.key_block(["ssh-ed25519 AAAA root@host\n"])
    assert block.splitlines() == [
        "-----BEGIN SSH HOST KEY KEYS-----",
        "ssh-ed25519 AAAA root@host",
        "-----END SSH HOST KEY KEYS-----",
    ]


def test_a_seed_carries_no_identity_of_another_host(tmp_path) -> None:
    disk = tmp_path / "disk"
    (disk / "etc").mkdir(parents=True)
    (disk / "etc/machine-id").write_text("0" * 32)
    known = seed.Seed("i-1", "ip-10-0-0-1", ("ssh-ed25519 AAAA",), b"#!/bin/sh\n", "z", "r")
    seed.plant(known, disk)
    assert (disk / "etc/machine-id").read_text() == ""
    nocloud = disk / "var/lib/cloud/seed/nocloud"
    assert (nocloud / "user-data").read_bytes() == b"#!/bin/sh\n"
    meta = json.loads((nocloud / "meta-data").read_text())
    assert (meta["instance-id"], meta["public-keys"]) == ("i-1", ["ssh-ed25519 AAAA"])
    assert (nocloud / "user-data").stat().st_mode & 0o077 == 0, "user data may hold secrets"


SIGNED = "AWS4-HMAC-SHA256 Credential=AKID/20260101/eu-central-1/{}/aws4_request, SignedHeaders=x"


@pytest.mark.parametrize(
    ("headers", "body", "service", "action", "is_read"),
    [
        (
            {"CONTENT_TYPE": "application/x-www-form-urlencoded; charset=utf-8"},
            b"Action=RunInstances&Version=1",
            "ec2",
            "RunInstances",
            False,
        ),
        (
            {"CONTENT_TYPE": "application/x-www-form-urlencoded"},
            b"Action=DescribeInstances",
            "ec2",
            "DescribeInstances",
            True,
        ),
        ({"HTTP_X_AMZ_TARGET": "DynamoDB_2.GetItem"}, b"{}", "dynamodb", "GetItem", True),
        ({"REQUEST_METHOD": "PUT", "PATH_INFO": "/bucket/a"}, b"x", "s3", "PUT /bucket/a", False),
    ],
)
def test_a_call_is_known_by_service_action_and_key(
    headers: dict[str, str], body: bytes, service: str, action: str, is_read: bool
) -> None:
    call = Call({"HTTP_AUTHORIZATION": SIGNED.format(service), **headers}, body)
    assert (call.access_key, call.service) == ("AKID", service)
    assert (call.action, call.is_read) == (action, is_read)


STATUS = {
    "instances": [
        {"id": "i-1", "name": "web-1", "state": "running", "pid": 7},
        {"id": "i-2", "name": "web-1", "state": "terminated", "pid": None},
        {"id": "i-3", "name": "db-1", "state": "stopped", "pid": None},
        {"id": "i-4", "name": None, "state": "running", "pid": 8},
        {"id": "i-5", "name": "twin", "state": "running", "pid": 9},
        {"id": "i-6", "name": "twin", "state": "running", "pid": 10},
    ]
}


@pytest.mark.parametrize(("named", "found"), [("web-1", "i-1"), ("i-4", "i-4"), ("db-1", "i-3")])
def test_a_host_is_found_by_name_or_id_unless_it_is_gone(named: str, found: str) -> None:
    assert control.find_host(STATUS, named)["id"] == found


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(LabError, match="no host is called web-9; there are: db-1, i-4, twin, web"):
        control.find_host(STATUS, "web-9")


def test_a_name_of_two_hosts_lists_their_ids() -> None:
    with pytest.raises(LabError, match="2 hosts are called twin; name one by its id: i-5, i-6"):
        control.find_host(STATUS, "twin")


def test_there_is_no_shell_in_a_stopped_host() -> None:
    with pytest.raises(LabError, match="db-1 is stopped"):
        control.shell_argv(control.find_host(STATUS, "db-1"))


def test_missing_tools_are_named_by_package_with_the_command_that_installs_them() -> None:
    found = [None if tool in {"podman", "nft"} else f"/bin/{tool}" for tool in preflight.TOOLS]
    with pytest.raises(Unmet, match=r"apt-get install .* nftables podman") as refused:
        preflight.tools(found)
    assert refused.value.exit_code == 3


def test_an_error_says_what_why_and_what_to_type() -> None:
    error = LabError("it broke", why="a reason", next_command="fab lab.up")
    assert str(error) == "it broke. a reason. Next: fab lab.up"


def test_too_little_disk_is_refused_with_figures(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(preflight, "DISK_GB", 10**9)
    with pytest.raises(Unmet, match=r"has [0-9.]+ GB free and the lab wants 1000000000 GB"):
        preflight.disk(tmp_path / "not" / "there" / "yet")


def test_without_root_the_way_to_get_it_is_named(monkeypatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(Unmet, match=r"needs root, and this is user id 1000.*sudo"):
        preflight.root()


def test_who_has_the_lab_is_what_the_kernel_says(tmp_path) -> None:
    where = Layout(repo=tmp_path, cache=tmp_path, machine=tmp_path)
    assert preflight.owner(where) is None
    where.lock.touch()
    assert preflight.owner(where) is None
    code = "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX)"
    code += "; print('locked', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(where.lock)],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "locked\n"
        assert preflight.owner(where) == preflight.Owner(other.pid, tmp_path)
        other.communicate()
    assert preflight.owner(where) is None


def test_the_operators_keys_are_put_right_and_only_theirs_to_read(tmp_path) -> None:
    where = Layout(repo=tmp_path, cache=tmp_path)
    where.write_credentials()
    text = where.credentials.read_text()
    assert text.startswith("[lab]\naws_access_key_id = ")
    assert where.credentials.stat().st_mode & 0o777 == 0o600
    before = where.credentials.stat().st_ino
    where.write_credentials()
    assert where.credentials.stat().st_ino == before, "what is right is not written"
    where.credentials.write_text("")
    where.write_credentials()
    assert where.credentials.read_text() == text


def test_a_port_that_somebody_has_on_every_address_is_taken_on_each() -> None:
    with socket.create_server(("0.0.0.0", free_port())) as other:
        port = other.getsockname()[1]
        with pytest.raises(Unmet, match=f"port {port} on 127.0.0.9 is taken") as raised:
            preflight.ports({("127.0.0.9", port): "a service"})
        assert "a service answers there" in str(raised.value)
    preflight.ports({("127.0.0.9", port): "a service", ("169.254.7.7", port): "another"})
