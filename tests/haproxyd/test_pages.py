"""What clients get when there is nobody to serve them, and when nobody is to be served."""

from __future__ import annotations

import http.client
from email.message import Message

from haproxyd.edge import Edge

from flotilla.rules import lb_maintenance as rules
from flotilla.rules.lb_maintenance import MAP, Notice
from flotilla.wait import until

NOTICE = Notice("ann@desk", 1800000000.0, 'new "disks"; \\ all\nday')


def get(
    edge: Edge, path: str = "/", method: str = "GET", source: str = "127.0.71.9"
) -> tuple[int, Message, str]:
    connection = http.client.HTTPConnection(
        edge.host, edge.port, timeout=10, source_address=(source, 0)
    )
    connection.request(method, path, headers={"Host": "shop"})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, answer.headers, body


def tell(edge: Edge, wanted: Notice | None) -> None:
    """As ``fab lb.maintenance`` does: the file, then the process."""
    edge.map.write_text(rules.line(wanted))
    edge.runtime().command(*rules.commands(running(edge), wanted))
    assert running(edge) == wanted


def running(edge: Edge) -> Notice | None:
    return rules.running(edge.runtime()._send(f"show map {MAP}"))


def test_maintenance_is_told_to_all_but_those_who_ask_about_health(edge: Edge) -> None:
    assert get(edge)[0] == 200
    tell(edge, NOTICE)
    for path, method in (("/", "GET"), ("/cart", "POST"), ("/healthz/x", "GET")):
        status, headers, body = get(edge, path, method)
        assert status == 503
        assert headers["Retry-After"] == "300"
        assert headers["Cache-Control"] == "no-store"
        assert "Down for maintenance" in body
        assert "disks" not in body, "the reason is for operators"
    assert get(edge, "/healthz")[0] == 200
    assert get(edge, "/.flotilla/alive", source="127.0.0.1")[0] == 200, "the address would move"
    tell(edge, None)
    assert get(edge)[0] == 200


def test_maintenance_outlives_a_reload_and_so_does_its_end(edge: Edge) -> None:
    tell(edge, NOTICE)
    edge.reload()
    assert running(edge) == NOTICE
    assert get(edge)[0] == 503
    tell(edge, None)
    edge.reload()
    assert get(edge)[0] == 200


def test_a_reason_can_be_changed_while_the_page_is_up(edge: Edge) -> None:
    tell(edge, NOTICE)
    tell(edge, Notice("bob", 1.0, "still"))
    assert get(edge)[0] == 503


def test_a_page_of_haproxys_own_is_served_while_every_server_is_down(edge: Edge) -> None:
    for server in edge.servers:
        server.kill()
    until(lambda: get(edge)[0] == 503, seconds=15, every=0.2)
    until(lambda: edge.runtime().stat("app")[-1]["status"] == "DOWN", seconds=15, every=0.2)
    status, headers, body = get(edge)
    assert status == 503
    assert headers["Retry-After"] == "5"
    assert "Back in a moment" in body
    assert "Nothing you sent was processed" in body
    assert get(edge, "/.flotilla/alive", source="127.0.0.1")[0] == 200, "both would step down"
