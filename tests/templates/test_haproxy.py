"""What the load balancer and the app hosts' local HAProxy are told."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from flotilla.rules import acme, authority, haproxy_file
from flotilla.rules.lb_maintenance import MAP

Render = Callable[..., str]


def section(text: str, heading: str) -> list[str]:
    """The lines under ``heading``, without comments."""
    body = re.search(rf"^{heading}\n((?: .*\n|\n)*)", text, re.MULTILINE)
    assert body, f"no section {heading!r}"
    lines = (line.strip() for line in body[1].splitlines())
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture
def edge(render: Render) -> str:
    return render("haproxy", "haproxy.cfg.j2", host="lb-1")


@pytest.fixture
def local(render: Render) -> str:
    return render("haproxy", "haproxy.cfg.j2", host="app-2")


def test_every_app_host_is_a_server_by_name_and_private_address(edge: str) -> None:
    servers = [line for line in section(edge, "backend app") if line.startswith("server ")]
    assert servers == [f"server app-{n} 10.77.3.{n}:443" for n in (1, 2, 3)]


def test_servers_have_to_prove_the_applications_name_to_requests_and_checks(edge: str) -> None:
    (line,) = [one for one in section(edge, "backend app") if one.startswith("default-server ")]
    wanted = (
        " ssl check-ssl verify required ca-file /etc/haproxy/authority.pem"
        " verifyhost app.flotilla.lab.internal ssl-min-ver TLSv1.3"
    )
    assert line.endswith(wanted), "one that is added by command inherits check-ssl from nobody"


def test_a_request_that_changes_something_is_never_replayed(edge: str) -> None:
    app = section(edge, "backend app")
    assert "retry-on conn-failure empty-response 502" in app
    assert "http-request disable-l7-retry unless { method GET HEAD OPTIONS }" in app


def test_a_client_is_told_later_and_not_broken(edge: str) -> None:
    said = 'http-response set-status 503 reason "Service Unavailable" if { status 502 }'
    assert said in section(edge, "backend app")


def test_marking_an_app_server_down_cuts_no_request_in_flight(edge: str) -> None:
    assert not [line for line in section(edge, "backend app") if "on-marked-down" in line]


def test_a_reload_keeps_drained_servers_and_idle_clients(edge: str) -> None:
    assert "load-server-state-from-file global" in section(edge, "defaults")
    assert "option idle-close-on-response" in section(edge, "frontend edge")
    assert not re.search(r"^\s*close-spread-time", edge, re.MULTILINE)


def test_forwarded_headers_are_dropped_before_ours_are_added(edge: str) -> None:
    lines = section(edge, "frontend edge")
    for header in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "X-Forwarded-Host"):
        assert f"http-request del-header {header}" in lines
    assert "option forwardfor" in lines


def test_the_alive_answer_is_for_this_host_only(edge: str) -> None:
    answers = [
        line for line in section(edge, "frontend edge") if line.startswith("http-request return")
    ]
    ours = [line for line in answers if MAP not in line]
    assert len(ours) == 2
    assert all("local_alive_question from_this_host" in line for line in ours)


def test_a_load_balancer_asks_the_others_and_not_itself(edge: str) -> None:
    servers = [line for line in section(edge, "backend lb_peers") if line.startswith("server ")]
    assert servers == ["server lb-2 10.77.2.2:8404"]


def test_load_balancers_share_what_they_know_of_clients_at_private_addresses(edge: str) -> None:
    assert "localpeer lb-1" in section(edge, "global")
    assert section(edge, "peers edges") == [
        "peer lb-1 10.77.2.1:8405",
        "peer lb-2 10.77.2.2:8405",
    ]
    assert section(edge, "backend clients")[0].endswith(" peers edges")


def test_where_nothing_is_limited_nothing_is_shared(render: Render, local: str) -> None:
    none = {"haproxy_edge_client_connections": 0, "haproxy_edge_client_requests_per_second": 0}
    for text in (render("haproxy", "haproxy.cfg.j2", host="lb-1", **none), local):
        assert "\npeers " not in text
        assert "stick-table" not in text


def test_statistics_listen_on_the_private_address_only(edge: str, local: str) -> None:
    assert "bind 10.77.2.1:8404" in section(edge, "frontend stats")
    assert "bind 10.77.3.2:8404" in section(local, "frontend stats")


def test_stickiness_names_the_server_in_the_cookie(render: Render) -> None:
    text = render("haproxy", "haproxy.cfg.j2", host="lb-1", haproxy_edge_sticky_enabled=True)
    app = section(text, "backend app")
    assert "cookie FLOTILLA insert indirect nocache httponly" in app
    assert "server app-3 10.77.3.3:443 cookie app-3" in app


def test_a_certificate_opens_443_and_redirects_80(render: Render) -> None:
    text = render(
        "haproxy",
        "haproxy.cfg.j2",
        host="lb-1",
        haproxy_edge_certificate_path="/etc/haproxy/edge.pem",
    )
    lines = section(text, "frontend edge")
    assert "bind :443 ssl crt /etc/haproxy/edge.pem alpn h2,http/1.1" in lines
    assert "http-request redirect scheme https code 308 unless { ssl_fc }" in lines
    # `http-response` would leave out what HAProxy answers by itself.
    hsts = [line for line in lines if "Strict-Transport-Security" in line]
    assert [line.split()[0] for line in hsts] == ["http-after-response"]
    assert hsts[0].endswith("if { ssl_fc }"), "in plain text anybody could say it"


def test_a_certificate_given_as_text_has_a_place(render: Render) -> None:
    pem = "-----BEGIN CERTIFICATE-----"
    text = render("haproxy", "haproxy.cfg.j2", host="lb-1", haproxy_edge_certificate_pem=pem)
    assert "bind :443 ssl crt /etc/haproxy/edge.pem alpn h2,http/1.1" in text
    assert pem not in text


def test_by_acme_443_is_open_and_80_redirects_by_the_map(render: Render) -> None:
    text = render("haproxy", "haproxy.cfg.j2", host="lb-1", haproxy_acme_enabled=True)
    lines = section(text, "frontend edge")
    assert "bind :443 ssl crt /etc/haproxy/edge.pem alpn h2,http/1.1" in lines
    redirect = next(line for line in lines if "redirect scheme https" in line)
    assert redirect.endswith(
        f"if !{{ ssl_fc }} {{ str({acme.CERTIFIED}),map({acme.MAP}) -m found }}"
    )
    answer = next(line for line in lines if acme.CHALLENGES in line)
    # In maintenance, too: a certificate does not wait for the end of it.
    page = next(line for line in lines if MAP in line)
    assert lines.index(answer) < lines.index(page) < lines.index(redirect)


def test_without_acme_there_is_no_map(edge: str) -> None:
    assert acme.MAP not in edge


@pytest.mark.parametrize("ca_pem", [None, "-----BEGIN CERTIFICATE-----"])
def test_the_unit_orders_for_this_fleet_of_this_authority(render: Render, ca_pem: str) -> None:
    known = {"directory": "https://ca.example/dir", "email": "ops@shop.example", "ca_pem": ca_pem}
    fleet = {"name": "shop", "env": "blue", "domain": "shop.example", "lb": {"acme": known}}
    unit = render(
        "haproxy",
        "flotilla-certificate.service.j2",
        host="lb-1",
        fleet=fleet,
        haproxy_acme_enabled=True,
        haproxy_edge_proxy_protocol=True,
    )
    assert "--fleet shop --env blue" in unit
    assert "--domain shop.example --directory https://ca.example/dir --email ops@shop" in unit
    assert "--certificate /etc/haproxy/edge.pem --proxied" in unit
    assert ("REQUESTS_CA_BUNDLE" in unit) is (ca_pem is not None)


def test_without_a_certificate_nothing_listens_on_443(edge: str) -> None:
    assert "bind :443" not in edge


def test_an_app_host_serves_no_clients_and_a_load_balancer_no_databases(
    edge: str, local: str
) -> None:
    assert "frontend edge" not in local
    assert "listen mysql_writer" not in edge
    assert "listen redis_primary" not in edge


@pytest.mark.parametrize(
    ("listen", "port"), [("mysql_writer", 3306), ("mysql_readers", 3307), ("redis_primary", 6379)]
)
def test_the_primaries_are_reached_through_the_loopback_only(
    local: str, listen: str, port: int
) -> None:
    binds = [line for line in section(local, f"listen {listen}") if line.startswith("bind ")]
    assert binds == [f"bind 127.0.0.1:{port}"]


@pytest.mark.parametrize("listen", ["mysql_writer", "redis_primary"])
def test_nobody_writes_while_two_hosts_say_primary(local: str, listen: str) -> None:
    assert "tcp-request connection reject if { nbsrv gt 1 }" in section(local, f"listen {listen}")


def test_connections_to_a_host_that_lost_its_role_are_cut(local: str) -> None:
    checks = [li for li in section(local, "defaults primaries") if li.startswith("default-server")]
    assert len(checks) == 1
    assert checks[0].endswith("on-marked-down shutdown-sessions")


def test_readers_fall_back_to_the_host_the_writer_uses(local: str) -> None:
    servers = [
        line for line in section(local, "listen mysql_readers") if line.startswith("server ")
    ]
    assert "server mysql-2 10.77.4.2:3306 port 3380" in servers
    assert (
        "server mysql-2-primary 10.77.4.2:3306 no-check track mysql_writer/mysql-2 backup"
        in servers
    )


@pytest.mark.parametrize("host", ["lb-1", "app-1"])
def test_haproxy_accepts_the_configuration(
    render: Render,
    checked_by: Callable[..., CompletedProcess[str]],
    host: str,
    tmp_path: Path,
) -> None:
    for code in (502, 503, 504):
        page = render("haproxy", "error.http.j2", host=host, __haproxy_file={"code": code})
        (tmp_path / f"flotilla-{code}.http").write_text(page)
    page = render("haproxy", "maintenance.html.j2", host=host)
    (tmp_path / "flotilla-maintenance.html").write_text(page)
    (tmp_path / "maintenance.map").touch()
    root = authority.root("flotilla", "lab", authority.new_key(), datetime.now(UTC))
    (tmp_path / "authority.pem").write_text(root.public())
    text = render("haproxy", "haproxy.cfg.j2", host=host)
    text = text.replace("/etc/haproxy/authority.pem", str(tmp_path / "authority.pem"))
    text = text.replace("/etc/haproxy/errors/", f"{tmp_path}/")
    text = text.replace(MAP, str(tmp_path / "maintenance.map"))
    # The check looks the accounts up; the package makes them, a workstation may lack them.
    accounts = re.compile(r" user haproxy group haproxy|^    (user|group) haproxy\n", re.MULTILINE)
    text = accounts.sub("", text)
    result = checked_by(text, "haproxy", "-c", "-f", "%s")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("code", "processed"), [(502, "may"), (503, "Nothing"), (504, "may")])
def test_an_error_page_is_a_whole_http_answer_and_says_what_became_of_the_request(
    render: Render, code: int, processed: str
) -> None:
    page = render("haproxy", "error.http.j2", host="lb-1", __haproxy_file={"code": code})
    head, _, body = page.partition("\n\n")
    assert head.startswith(f"HTTP/1.0 {code} ")
    assert "Cache-Control: no-cache" in head
    # Asking again soon is safe only where nothing was done.
    assert ("Retry-After: 5" in head) is (code == 503)
    assert body.startswith("<!doctype html>")
    assert processed in body


def test_pages_of_ones_own_take_the_place_of_ours(render: Render) -> None:
    own = {"haproxy_edge_error_html": "<p>ours", "haproxy_edge_maintenance_html": "<p>later"}
    page = render("haproxy", "error.http.j2", host="lb-1", __haproxy_file={"code": 503}, **own)
    assert page.startswith("HTTP/1.0 503 ")
    assert page.endswith("\n\n<p>ours\n")
    assert render("haproxy", "maintenance.html.j2", host="lb-1", **own) == "<p>later\n"


def test_the_maintenance_page_comes_before_the_application_and_after_keepalived(edge: str) -> None:
    lines = section(edge, "frontend edge")
    said = next(n for n, line in enumerate(lines) if MAP in line)
    assert max(n for n, line in enumerate(lines) if "local_alive_question" in line) < said
    assert "hdr Retry-After 300" in lines[said]
    assert lines[said].endswith("!{ path /healthz }")


def test_the_role_and_the_discovery_write_the_same_lines(render: Render) -> None:
    servers = {f"app-{n}": f"10.77.3.{n}" for n in (1, 2, 10, 3)}
    for sticky in (False, True):
        text = render(
            "haproxy",
            "haproxy.cfg.j2",
            host="lb-1",
            __haproxy_servers=servers,
            haproxy_edge_sticky_enabled=sticky,
        )
        assert haproxy_file.servers(text) == servers
        assert haproxy_file.with_servers(text, servers, port=443) == text
        options = haproxy_file.options(text, "app-10")
        assert options.startswith("check inter ")
        assert options.endswith(" cookie app-10") is sticky


def test_servers_that_the_host_follows_win_over_those_of_the_inventory(render: Render) -> None:
    text = render("haproxy", "haproxy.cfg.j2", host="lb-1", __haproxy_servers={"app-9": "10.0.0.9"})
    assert haproxy_file.servers(text) == {"app-9": "10.0.0.9"}


def test_discovery_looks_at_this_fleet_only(render: Render) -> None:
    unit = render("haproxy", "flotilla-discovery.service.j2", host="lb-1")
    assert "--fleet flotilla --env lab" in unit
    assert "--group flotilla-lab-app" in unit
