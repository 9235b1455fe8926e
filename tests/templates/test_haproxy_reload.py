"""The reload's reading of what HAProxy says, on answers taken from HAProxy 3.0."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "roles/haproxy/files/haproxy_reload.py"

DUMP = """1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port
4 app 1 app-1 10.77.3.1 0 {one} 1 1 5 6 0 0 14 0 0 0 - 80 - 0 0 - - 0
4 app 2 app-2 10.77.3.2 2 {two} 1 1 5 6 3 4 6 0 0 0 - 80 - 0 0 - - 0

"""  # noqa: E501  HAProxy's own line

PROCESSES = """#<PID>          <type>          <reloads>       <uptime>        <version>
1194            master          2 [failed: 0]   0d00h00m10s     3.0.11-1+deb13u5
# workers
1240            worker          0               0d00h00m01s     3.0.11-1+deb13u5
# old workers
1212            worker          1               0d00h00m06s     3.0.11-1+deb13u5
1196            worker          2               0d00h00m10s     3.0.11-1+deb13u5
# programs

"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("haproxy_reload", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_only_what_an_operator_forced_counts(script: ModuleType) -> None:
    # 0x20 is maintenance for want of a DNS answer, 0x04 comes from the configuration: not ours.
    states = script.forced_states(DUMP.format(one=1, two=8 | 4 | 32))
    assert states == {"app/app-1": 1, "app/app-2": 8}


def test_a_server_that_came_back_up_is_named(script: ModuleType) -> None:
    before = script.forced_states(DUMP.format(one=1, two=0))
    after = script.forced_states(DUMP.format(one=0, two=0))
    assert script.forgotten(before, after) == ["app/app-1"]


def test_a_server_removed_from_the_configuration_is_not_missed(script: ModuleType) -> None:
    assert script.forgotten({"app/app-9": 1}, {"app/app-1": 0}) == []


def test_an_error_message_is_not_taken_for_a_fleet_without_servers(script: ModuleType) -> None:
    with pytest.raises(ValueError, match="Permission denied"):
        script.forced_states("Permission denied\n")


def test_old_processes_are_counted_and_the_current_one_is_not(script: ModuleType) -> None:
    assert script.old_workers(PROCESSES) == 2
    assert script.old_workers(PROCESSES.replace("# old workers\n1212", "1212")) == 0


def test_the_state_file_is_replaced_whole(script: ModuleType, tmp_path: Path) -> None:
    target = tmp_path / "state"
    target.write_text("old")
    script.save("new dump\n", target)
    assert target.read_text() == "new dump\n"
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


CONFIGURED = """frontend edge
    default_backend app

backend app
    balance random(2)
    # Servers: written by flotilla-discovery
    server app-1 10.77.3.1:80
    server app-2 10.77.3.22:80
    # End of the servers

backend lb_peers
    server lb-2 10.77.2.2:8404
"""


def rows(script: ModuleType, dump: str) -> dict[str, list[str]]:
    """By server, its address, operational and administrative state."""
    found = script.starting(dump, script.configured(CONFIGURED)).splitlines()
    return {row.split()[3]: row.split()[4:7] for row in found if row[0].isdigit() and " " in row}


def test_only_servers_of_the_application_are_started_from_states(script: ModuleType) -> None:
    assert list(script.configured(CONFIGURED)) == ["app-1", "app-2"]
    assert script.configured("backend other\n    server x 10.0.0.1:80\n") == {}


def test_a_server_that_is_new_or_another_host_now_starts_down(script: ModuleType) -> None:
    assert rows(script, DUMP.format(one=1, two=1)) == {
        "app-1": ["10.77.3.1", "0", "1"],  # known: in maintenance, as before
        "app-2": ["10.77.3.22", "0", "0"],  # its name, another address
    }
    assert rows(script, "") == {
        "app-1": ["10.77.3.1", "0", "0"],
        "app-2": ["10.77.3.22", "0", "0"],
    }


def test_who_was_primary_is_not_remembered_over_a_stop(script: ModuleType) -> None:
    other = DUMP.format(one=0, two=0).replace(" app ", " mysql_writer ")
    assert "mysql_writer" not in script.only_backend(other)
    assert script.forced_states(script.only_backend(other)) == {}


def test_the_followed_servers_are_told_only_where_they_are_followed(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "haproxy.cfg"
    monkeypatch.setattr(script, "CONFIGURATION", file)
    file.write_text(CONFIGURED)
    assert script.followed() == 0
    assert capsys.readouterr().out == '{"app-1": "10.77.3.1", "app-2": "10.77.3.22"}\n'
    file.write_text(CONFIGURED.replace("# Servers:", "#"))
    assert script.followed() == 0
    assert capsys.readouterr().out == ""


def test_a_state_file_says_of_port_and_tls_what_is_configured(script: ModuleType) -> None:
    """HAProxy believes it before its configuration: one of before would send requests in plain."""
    by_tls = CONFIGURED.replace(":80\n", ":443\n").replace(
        "    # Servers", "    default-server check ssl check-ssl verify required\n    # Servers"
    )
    assert script.encrypted(by_tls)
    assert not script.encrypted(CONFIGURED)
    dump = DUMP.format(one=0, two=0)
    assert script.plain(dump) == ["10.77.3.1 down", "10.77.3.2 up"]
    for before in (dump, ""):
        found = script.starting(before, script.configured(by_tls), tls=True)
        assert script.plain(found) == []
        ports = [row.split()[18] for row in found.splitlines() if " app-" in row]
        assert ports == ["443", "443"]


@pytest.mark.parametrize("words", range(2, 25))
def test_saved_states_that_are_cut_off_keep_no_haproxy_down(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: int
) -> None:
    """Nor the states of servers whose line is whole."""
    saved, target, file = (tmp_path / name for name in ("saved", "state", "haproxy.cfg"))
    for name, path in (("SAVED", saved), ("STATE_FILE", target), ("CONFIGURATION", file)):
        monkeypatch.setattr(script, name, path)
    file.write_text(CONFIGURED)
    lines = DUMP.format(one=1, two=1).replace("10.77.3.2 ", "10.77.3.22 ").splitlines()
    saved.write_text("\n".join([*lines[:3], " ".join(lines[3].split()[:words])]))
    assert script.prepare(3600) == 0
    found = {row.split()[3]: row.split()[4:7] for row in target.read_text().splitlines()[2:]}
    assert found == {"app-1": ["10.77.3.1", "0", "1"], "app-2": ["10.77.3.22", "0", "0"]}
