"""nginx on an application host, as nginx itself reads it."""

from __future__ import annotations

import re

CONF = "nginx.conf.j2"


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
