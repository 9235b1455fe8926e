"""nginx on an application host, as nginx itself reads it."""

from __future__ import annotations

import re
import subprocess

import yaml
from conftest import REPOSITORY

CONF = "nginx.conf.j2"
TASKS = yaml.safe_load((REPOSITORY / "roles/nginx/tasks/configure.yml").read_text())


def test_nginx_accepts_what_every_application_host_gets(render, checked_by):
    for host in ("app-1", "app-3"):
        # The user and the paths of a Debian host may be missing here; the grammar is not.
        text = render("nginx", CONF, host=host)
        text = re.sub(r"^(user|pid|error_log) .*;$", "", text, flags=re.MULTILINE)
        text = re.sub(r"access_log \S+", "access_log /dev/null", text)
        done = checked_by("pid /tmp/nginx-test.pid;\n" + text, "nginx", "-t", "-c", "%s")
        assert "syntax is ok" in done.stderr, done.stderr


def test_only_the_load_balancers_may_say_who_the_client_is(render):
    text = render("nginx", CONF, host="app-1")
    assert re.findall(r"set_real_ip_from (\S+);", text) == ["10.77.2.1", "10.77.2.2"]
    assert re.findall(r"proxy_set_header X-Forwarded-For (\S+);", text) == ["$remote_addr"]


def test_an_application_that_does_not_answer_is_502_and_never_retried_here(render):
    """The load balancer tries elsewhere what may be tried again; a slow answer (504) may not."""
    text = render("nginx", CONF, host="app-2")
    assert "error_page 502 @unavailable;" in text
    assert "error_page 504 =503 @unavailable;" in text
    assert "proxy_next_upstream off;" in text
    assert "app-2 does not answer yet" in text


def keepalives(text: str) -> list[int]:
    found = re.findall(r"^\s*keepalive_timeout (\d+)s;", text, re.MULTILINE)
    return [int(seconds) for seconds in found]


def test_the_side_in_front_closes_an_idle_connection_first(render):
    text = render("nginx", CONF, host="app-1")
    assert keepalives(text)[0] > 15, "HAProxy keeps one for some 15 s"
    kept = render("nginx", CONF, host="app-1", nginx_application_keepalive_connections=8)
    assert keepalives(kept)[1] < 75, "gunicorn keeps one for 75 s"
    assert 'proxy_set_header Connection "";' in kept


def test_no_connection_to_the_application_is_kept_unless_asked(render):
    text = render("nginx", CONF, host="app-1")
    assert len(keepalives(text)) == 1
    assert 'proxy_set_header Connection "close";' in text


def test_static_files_come_from_the_current_release_or_not_at_all(render):
    assert "alias /srv/app/current/static/;" in render("nginx", CONF, host="app-1")
    assert "alias" not in render("nginx", CONF, host="app-1", nginx_static_dir="")


def listens(text: str) -> list[str]:
    return re.findall(r"^\s*listen (\d+(?: ssl)?) ", text, re.MULTILINE)


def test_nginx_speaks_tls_only_and_during_the_move_both(render):
    text = render("nginx", CONF, host="app-1")
    assert listens(text) == ["443 ssl"]
    assert re.findall(r"ssl_protocols (.*);", text) == ["TLSv1.3"]
    assert listens(render("nginx", CONF, host="app-1", __nginx_plain=True)) == ["443 ssl", "80"]


def test_what_looks_for_the_plain_port_finds_it_exactly_while_it_is_open(render, tmp_path):
    (task,) = [one for one in TASKS if one.get("register") == "__nginx_served_plain"]
    *command, _ = task["ansible.builtin.command"]["argv"]
    for is_plain in (True, False):
        file = tmp_path / "nginx.conf"
        file.write_text(render("nginx", CONF, host="app-1", __nginx_plain=is_plain))
        assert (subprocess.run([*command, file], check=False).returncode == 0) is is_plain
    before = "http {\n    server {\n        listen 80 default_server backlog=4096;\n"
    file.write_text(before)
    assert subprocess.run([*command, file], check=False).returncode == 0


def test_a_new_certificate_needs_no_reload(render):
    """With a variable nginx reads the file at each handshake."""
    text = render("nginx", CONF, host="app-1")
    assert re.findall(r"ssl_certificate(?:_key)? (\S+);", text) == ["$leaf", "$leaf"]
    assert "default /etc/flotilla/tls/leaf.pem;" in text
