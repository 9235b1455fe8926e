"""What a MySQL server is told by Ansible."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from conftest import REPOSITORY

from flotilla.agent.sessions import ADMIN_PORT
from flotilla.agent.watch import PROBE_SECONDS
from flotilla.rules.mysql_settings import LONGEST_SECONDS, REQUIRED, faults
from flotilla.rules.mysql_verdict import LIMITS

sys.path[:0] = [str(REPOSITORY / "roles" / role / "files") for role in ("mysql", "tls")]

import mysql_tls  # noqa: E402  the role's own file

Render = Callable[..., str]
HOSTS = ["mysql-1", "mysql-2", "mysql-3"]
INSTANCES = {"mysql-1": "i-0a0000000000000a1", "mysql-2": "i-0a0000000000000a2"}


@pytest.fixture
def rendered(render: Render) -> Callable[..., str]:
    def on_host(template: str, *, host: str = "mysql-2", **overrides: object) -> str:
        known = {"ec2_instance_id": INSTANCES.get(host, "i-0a0000000000000a9")}
        return render("mysql", template, host=host, **(known | overrides))

    return on_host


def settings(text: str) -> dict[str, str]:
    """As the server would report them: no ``loose_``, switches as ON and OFF."""
    lines = [line for line in text.splitlines() if " = " in line and not line.startswith("#")]
    pairs = (line.split(" = ", 1) for line in lines)
    return {name.removeprefix("loose_"): value for name, value in pairs}


def test_the_rendered_settings_pass_our_own_gate(rendered: Callable[..., str]) -> None:
    found = settings(rendered("mysqld.cnf.j2"))
    # The server answers ON and OFF for some values that a file holds as a number or a name.
    said = found | {"log_bin": "ON", "binlog_format": "ROW", "relay_log_recovery": "OFF"}
    assert found["relay_log_recovery"] == "0"
    assert list(faults(said, {})) == []
    assert not {*REQUIRED, *LONGEST_SECONDS} - said.keys()


@pytest.mark.parametrize("host", HOSTS)
def test_every_member_boots_read_only_with_both_semi_sync_sides_off(
    rendered: Callable[..., str], host: str
) -> None:
    found = settings(rendered("mysqld.cnf.j2", host=host))
    for name in ("read_only", "super_read_only", "skip_replica_start"):
        assert found[name] == "ON"
    for name in ("rpl_semi_sync_source_enabled", "rpl_semi_sync_replica_enabled"):
        assert found[name] == "OFF"


def test_members_differ_in_identity_and_in_nothing_else(rendered: Callable[..., str]) -> None:
    one, two = (settings(rendered("mysqld.cnf.j2", host=host)) for host in HOSTS[:2])
    apart = {name for name in one if one[name] != two[name]}
    assert apart == {"server_id", "report_host", "admin_address"}


def test_a_rebuilt_host_gets_a_server_id_its_name_never_had(rendered: Callable[..., str]) -> None:
    ids = {
        settings(rendered("mysqld.cnf.j2", ec2_instance_id=f"i-0b000000000000{n:03x}"))["server_id"]
        for n in range(20)
    }
    assert len(ids) == 20
    assert all(0 < int(one) < 2**32 for one in ids)


def test_watchers_of_other_hosts_reach_a_port_of_their_own(rendered: Callable[..., str]) -> None:
    found = settings(rendered("mysqld.cnf.j2"))
    assert found["admin_address"] == found["report_host"]
    assert int(found["admin_port"]) == ADMIN_PORT
    assert found["create_admin_listener_thread"] == "ON"


def test_a_stream_outlasts_the_time_in_which_a_silent_primary_is_found_dead(
    rendered: Callable[..., str],
) -> None:
    found = settings(rendered("mysqld.cnf.j2"))
    # Heartbeats come every second, so silence may have begun a second before.
    assert int(found["replica_net_timeout"]) > LIMITS.silent + PROBE_SECONDS + 1


def test_the_watcher_is_told_whose_record_and_hosts_are_its_own(
    rendered: Callable[..., str],
) -> None:
    unit = rendered("flotilla-mysql-agent.service.j2")
    command = unit.partition("ExecStart=")[2].replace("\\\n", " ").splitlines()[0].split()
    words = command[command.index("flotilla.agent.mysql") + 1 :]
    assert words[: words.index("--port")] == ["--fleet", "flotilla", "--env", "lab"]
    assert "StateDirectory=flotilla-mysql" in unit


def test_every_port_speaks_tls_1_3_with_a_file_that_the_host_renews(
    rendered: Callable[..., str],
) -> None:
    """One file, so that nobody reads parts of two; no other for the admin port, which takes it."""
    text = rendered("mysqld.cnf.j2")
    found = settings(text)
    assert {found[name] for name in ("ssl_ca", "ssl_cert", "ssl_key")} == {str(mysql_tls.SERVED)}
    assert mysql_tls.wanted(mysql_tls.SERVED).items() <= found.items()
    assert "admin_ssl" not in text
    assert "admin_tls" not in text
    assert "CCM" not in found["tls_ciphersuites"]
    # Whoever is connected without it decides when: mysql_tls.py writes that file.
    assert "require_secure_transport" not in text
    assert mysql_tls.REQUIRED.name > "zz-flotilla.cnf".removesuffix(".cnf")
    unit = rendered("flotilla-mysql-agent.service.j2")
    assert "--authority /etc/flotilla/tls/authority.pem" in unit
    assert "\nExecStartPre=\nExecStartPre=-+" in plain(rendered("mysql.service.conf.j2"))


def plain(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def test_own_settings_come_last_and_so_win(rendered: Callable[..., str]) -> None:
    text = rendered("mysqld.cnf.j2", mysql_settings={"max_connections": 7})
    assert settings(text)["max_connections"] == "7"


def test_without_an_address_the_package_source_is_the_hosts_own_mirror(
    rendered: Callable[..., str],
) -> None:
    mirror = {"stdout_lines": ["http://mirror.example/debian/", "http://other.example/"]}
    text = rendered("apt.sources.j2", __mysql_mirror=mirror)
    assert "URIs: http://mirror.example/debian/\n" in text
    assert "Suites: sid\n" in text
    assert "Check-Valid-Until: no\n" in text
    assert "Pin-Priority: 100\n" in rendered("apt.preferences.j2")


def test_with_an_address_and_a_key_that_source_is_used(rendered: Callable[..., str]) -> None:
    text = rendered(
        "apt.sources.j2",
        mysql_apt_uri="https://repo.example/apt/debian",
        mysql_apt_suite="trixie",
        mysql_apt_signing_key="keys/mysql.asc",
        mysql_apt_check_valid_until=True,
    )
    assert "URIs: https://repo.example/apt/debian\n" in text
    assert "Signed-By: /etc/apt/keyrings/mysql.asc\n" in text
    assert "Check-Valid-Until: yes\n" in text


def test_the_endpoint_has_no_privileges_to_lose(rendered: Callable[..., str]) -> None:
    unit = rendered("flotilla-mysql-agent.service.j2")
    assert "\nCapabilityBoundingSet=\n" in unit
    assert "NoNewPrivileges=yes" in unit
    assert "ProtectSystem=strict" in unit
    # The one that StateDirectory then belongs to: without it no failover can begin its journal.
    assert "\nUser=flotilla-mysql\n" in unit
