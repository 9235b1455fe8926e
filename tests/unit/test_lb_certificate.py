"""When a certificate runs out: what HAProxy says of it, what the board and CloudWatch are told."""

from __future__ import annotations

import threading
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import world

from flotilla import config
from flotilla.discovery.certificates import METRIC, Certificates
from flotilla.errors import Unreachable
from flotilla.rules import lb_certificate as rules
from flotilla.rules.lb_certificate import DAY, Certificate
from flotilla.rules.status import findings
from flotilla.rules.status_finding import Severity
from flotilla.settings import Acme
from flotilla.status import asking

SAID = """\
Filename: /etc/haproxy/edge.pem
Status: Used
Serial: 4D
notBefore: Nov 22 08:15:24 2025 GMT
notAfter: Dec  2 08:15:24 2026 GMT
Subject Alternative Name: DNS:shop.example
Issuer: /CN=an authority
Subject: /CN=shop.example

"""
ENDS = 1796199324.0  # 2 December 2026, 08:15:24 UTC
ONE = Certificate("/etc/haproxy/edge.pem", "4D", ENDS, "/CN=an authority", "DNS:shop.example")


def test_what_haproxy_says_is_read() -> None:
    assert rules.files("# filename\n/etc/haproxy/edge.pem\n\n") == ["/etc/haproxy/edge.pem"]
    found = rules.certificate(SAID)
    assert found
    assert asdict(found) == asdict(ONE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Can't display the certificate: Not found or the certificate is a bundle!\n",
        SAID.replace("Used", "Unused"),
        SAID.replace("Status: Used", "Status: Empty").replace("notAfter", "not"),
        SAID.replace("2026 GMT", "soon"),
    ],
)
def test_what_is_no_certificate_in_use_is_none(text: str) -> None:
    assert rules.certificate(text) is None


def test_one_that_is_being_changed_is_one_file() -> None:
    text = "# transaction\n*/etc/haproxy/edge.pem\n# filename\n/etc/haproxy/edge.pem\n"
    assert rules.files(text) == ["/etc/haproxy/edge.pem"]


@pytest.mark.parametrize(
    ("days", "severity", "says"),
    [
        (21.1, None, ""),
        (20.9, Severity.RISK, "ends in 21 days"),
        (7.1, Severity.RISK, "ends in 7 days"),
        (6.9, Severity.DOWN, "ends in 7 days"),
        (0.2, Severity.DOWN, "ends in 0 days"),
        (-2.0, Severity.DOWN, "ended 2 days ago: clients refuse to connect"),
    ],
)
def test_the_later_the_worse(days: float, severity: Severity | None, says: str) -> None:
    found = rules.findings({"lb-1": [ONE], "lb-2": [ONE]}, ENDS - days * DAY)
    assert [one.severity for one in found] == ([severity] if severity else [])
    for one in found:
        assert says in one.what
        assert "lb-1 and lb-2" in one.what


CERTIFICATES = st.lists(
    st.builds(
        Certificate,
        file=st.sampled_from(["a.pem", "b.pem"]),
        serial=st.sampled_from(["1", "2"]),
        ends_at=st.floats(0, 100 * DAY),
    ),
    max_size=3,
)


@given(served=st.dictionaries(st.sampled_from(["lb-1", "lb-2"]), CERTIFICATES))
def test_whatever_ends_within_three_weeks_is_told_and_nothing_is_told_twice(
    served: dict[str, list[Certificate]],
) -> None:
    found = rules.findings(served, 0.0)
    due = {one for many in served.values() for one in many if one.ends_at <= rules.WARN_DAYS * DAY}
    assert sum("different" not in one.what for one in found) == len(due)
    everyone = [one for many in served.values() for one in many]
    left = rules.days_left(everyone, 0.0)
    assert left == (min(one.ends_at for one in everyone) / DAY if everyone else None)


def test_a_renewal_that_reached_one_load_balancer_only_is_told() -> None:
    renewed = replace(ONE, serial="4E", ends_at=ENDS + 90 * DAY)
    (found,) = rules.findings({"lb-1": [ONE], "lb-2": [renewed]}, ENDS - 30 * DAY)
    assert "different certificates" in found.what


class Haproxy:
    """A runtime that has one certificate, or does not answer."""

    def __init__(self) -> None:
        self.asked, self.silent = 0, False
        self.found: tuple[Certificate, ...] = (ONE,)

    def certificates(self) -> tuple[Certificate, ...]:
        self.asked += 1
        if self.silent:
            raise Unreachable("no answer")
        return self.found


def looking(put: Any) -> tuple[Certificates, Haproxy, SimpleNamespace]:
    """A look every 300 s at a clock that the test sets; ten days are left."""
    at, haproxy = SimpleNamespace(now=0.0), Haproxy()
    made = Certificates(
        haproxy,  # type: ignore[arg-type]
        put,
        every=300.0,
        clock=lambda: at.now,
        now=lambda: ENDS - 10 * DAY,
    )
    return made, haproxy, at


def test_days_left_are_a_metric_every_few_minutes() -> None:
    told: list[tuple[str, float]] = []
    came = threading.Semaphore(0)

    def put(name: str, value: float) -> None:
        told.append((name, value))
        came.release()

    made, haproxy, at = looking(put)
    for now in (0.0, 1.0, 299.0, 300.0, 301.0):
        at.now = now
        assert made.look() == (ONE,)
        if now in {0.0, 300.0}:
            assert came.acquire(timeout=20)
            made._sent.result(20)  # type: ignore[union-attr]
    assert told == [(METRIC, 10.0)] * 2
    assert haproxy.asked == 2


def test_a_cloudwatch_that_does_not_answer_holds_nothing_up() -> None:
    hang = threading.Event()
    made, haproxy, at = looking(lambda *_: hang.wait(20))
    for at.now in (0.0, 300.0, 600.0):
        assert made.look() == (ONE,)
    hang.set()
    assert haproxy.asked == 3


def test_what_was_seen_last_stays_while_haproxy_does_not_answer() -> None:
    made, haproxy, at = looking(lambda *_: None)
    assert made.look() == (ONE,)
    at.now, haproxy.silent = 300.0, True
    assert made.look() == (ONE,)


def test_without_a_certificate_no_metric_is_put() -> None:
    told: list[Any] = []
    made, haproxy, _ = looking(lambda *given: told.append(given))
    haproxy.found = ()
    assert made.look() == ()
    assert told == []


def test_the_board_has_it_from_the_load_balancers_own_report() -> None:
    report = {"at": 1.0, "hosts": 1, "trouble": "", "notes": [], "certificates": [asdict(ONE)]}
    assert asking._certificates(report) == (ONE,)
    assert asking._certificates(None) == asking._certificates({"error": "x"}) == ()
    fleet = world(at=ENDS - 5 * DAY)
    served = tuple(replace(one, certificates=(ONE,)) for one in fleet.balancers)
    (found,) = findings(replace(fleet, balancers=served))
    assert (found.severity, found.page) == (Severity.DOWN, "certificate-runs-out")


def renewing(**said: str) -> dict[str, Any]:
    return {"at": 100.0, "serial": "4D", "trouble": "", "failed": ""} | said


@pytest.mark.parametrize(
    ("said", "age", "sentence"),
    [
        (None, 0, None),
        ({}, 0, None),
        (renewing(), 5, None),
        (renewing(trouble="ssm does not answer"), 5, "lb-1 does not follow the stored certifi"),
        (renewing(), 90, "lb-1 does not follow the stored certificate: it looked for the last"),
        (renewing(failed="dns: no such name"), 5, "no new certificate: dns: no such name"),
    ],
)
def test_the_board_tells_of_an_order_that_failed(said: Any, age: float, sentence: str) -> None:
    known = asking._renewal(said, 100.0 + age)
    one = replace(world().balancers[0], name="lb-1", renewal=known)
    two = replace(one, name="lb-2")
    found = [f for f in findings(world(balancers=(one, two))) if "certificate" in f.what]
    if sentence is None:
        assert found == []
        return
    assert sentence in found[0].what
    assert found[0].severity is Severity.RISK
    assert found[0].page == "certificate-runs-out"
    # What the authority said is told once, what is wrong with a host of each.
    assert len(found) == (1 if "no new" in sentence else 2)


def test_a_host_is_asked_for_it_only_where_certificates_are_ordered() -> None:
    settings = config.load("lab")
    acme = Acme(directory="https://ca.example/dir", email="ops@shop.example", ca_pem=None)
    ordered = settings.model_copy(update={"lb": settings.lb.model_copy(update={"acme": acme})})
    assert asking.RENEWAL_UNIT not in asking.command(settings, "lb")
    assert asking.RENEWAL_UNIT in asking.command(ordered, "lb")
    assert asking.RENEWAL_UNIT not in asking.command(ordered, "app")
