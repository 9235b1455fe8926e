"""A certificate by ACME on both load balancers: real HAProxy, a real authority, real clients."""

from __future__ import annotations

import errno
import http.client
import multiprocessing
import os
import signal
import time
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from haproxyd.certificates import NAME, certificate
from haproxyd.clients import clients
from haproxyd.edge import Edge
from haproxyd.ordering import STEPS
from haproxyd.pair import FIRST, Pair, services

from flotilla.certificate import order as ordering
from flotilla.certificate import pem
from flotilla.certificate.follow import Follower
from flotilla.errors import FlotillaError, HostFailed, Refused, Unreachable
from flotilla.hosts.haproxy import Runtime, local
from flotilla.rules.acme import CHALLENGES, FIRST_PAUSE_SECONDS, Request, Tokens
from flotilla.wait import until

SECONDS = 180.0
CLIENTS = 10


def test_orders_under_clients_fail_no_request_and_close_no_connection(pair: Pair) -> None:
    edge = pair.edges["lb-1"]
    with services(pair), clients(edge, keep_alive=CLIENTS) as seen:
        serials = [_next_served(pair, "")]
        for number in range(2):
            time.sleep(2)  # of traffic with this one
            pair.store.put("acme/request", Request(f"r{number}", "ann", time.time()))
            serials.append(_next_served(pair, serials[-1]))
        time.sleep(2)
        # The address may move: what the other load balancer has is the same.
        assert set(pair.served().values()) == {serials[-1]}
        edge.reload()
        assert set(pair.served().values()) == {serials[-1]}, "a reload must not bring the old back"
    for kind, found in seen.items():
        assert found.failed == 0, f"{kind}: {found}"
        assert found.served > 200, f"{kind}: {found}"
    # All but the reload left every connection open: those of before, and those it replaced.
    assert sum(seen["h1"].certificates.values()) <= 2 * CLIENTS, str(seen["h1"])
    assert len(set(serials)) == 3
    assert pair.store.read().attempts.failures == 0


def test_whichever_load_balancer_has_the_address_the_authority_is_answered(pair: Pair) -> None:
    pair.authority.looks_at(pair.edges["lb-2"].host)
    with services(pair):
        assert _next_served(pair, "")


def test_port_80_redirects_only_once_there_is_a_certificate_to_trust(pair: Pair) -> None:
    edge = pair.edges["lb-1"]
    assert _got(edge, "/")[0] == http.HTTPStatus.OK
    with services(pair):
        _next_served(pair, "")
        until(lambda: _got(edge, "/")[0] == http.HTTPStatus.PERMANENT_REDIRECT, seconds=SECONDS)
    edge.reload()
    assert _got(edge, "/")[0] == http.HTTPStatus.PERMANENT_REDIRECT


def test_a_token_is_served_while_it_holds_and_by_both(pair: Pair) -> None:
    path = f"{CHALLENGES}abc-DEF_123"
    with services(pair, orders=False):
        pair.store.put("acme/tokens", Tokens({path: "abc.def"}, time.time() + 600))
        for edge in pair.edges.values():
            until(lambda edge=edge: _got(edge, path) == (200, "abc.def"), seconds=SECONDS)
            assert _got(edge, f"{CHALLENGES}other")[1] != "abc.def"
            edge.reload()
            assert _got(edge, path) == (200, "abc.def"), "the next process has to know it too"
        # Whoever stored it was killed: it ends by itself.
        pair.ahead = 601.0
        for edge in pair.edges.values():
            until(lambda edge=edge: _got(edge, path)[1] != "abc.def", seconds=SECONDS)
            assert "abc.def" not in edge.acme_map.read_text()


def test_after_an_order_no_token_is_served(pair: Pair) -> None:
    with services(pair):
        _next_served(pair, "")
        for edge in pair.edges.values():
            until(lambda edge=edge: CHALLENGES not in edge.acme_map.read_text(), seconds=SECONDS)
    assert pair.store.read().tokens.answers == {}
    assert pair.store.secret("acme/pending") == ""


@pytest.mark.parametrize("die_at", STEPS)
def test_killed_before_any_step_the_next_order_ends_well(pair: Pair, die_at: str) -> None:
    with services(pair, orders=False):
        killed = pair.order_elsewhere(die_at)
        assert killed.returncode == 9, killed.stderr
        before = pair.store.read().certificate
        assert bool(before) == (die_at == "forget")
        signed = _signed(pair)
        done = pair.order_elsewhere("")
        assert done.returncode == 0, done.stderr
        assert pem.read(pair.store.read().certificate).serial == done.stdout.strip()
        # One that the authority had signed is fetched, and not signed again.
        is_signed = STEPS.index(die_at) >= STEPS.index("fetch")
        assert _signed(pair) - signed == (0 if is_signed else 1)
        assert _next_served(pair, "") == done.stdout.strip()


def test_a_load_balancer_that_does_not_know_the_token_stops_the_order(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ordering, "SERVED_SECONDS", 3.0)
    pair.stopped.add("lb-2")
    with (
        services(pair, orders=False),
        pytest.raises(HostFailed, match=r"the authority was not asked to look.* lb-2: GET /"),
    ):
        pair.orderer().run()
    assert pair.store.read().tokens.answers == {}
    assert _signed(pair) == 0


def test_a_load_balancer_that_is_away_does_not_stop_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ordering, "SERVED_SECONDS", 3.0)
    process = pair.edges["lb-2"].process
    assert process
    process.terminate()
    process.wait()
    with services(pair, orders=False):
        assert pair.orderer().run().names == (NAME,)


def test_an_authority_that_sees_another_answer_refuses_and_is_not_asked_again(pair: Pair) -> None:
    # As when the name still leads to where the site was before.
    pair.authority.looks_at("127.0.70.12")
    with services(pair):
        until(lambda: pair.store.read().attempts.why.startswith("https://"), seconds=SECONDS)
        first = pair.store.read().attempts
        assert "connection: " in first.why
        time.sleep(2)  # many turns
        assert pair.store.read().attempts == first
        assert pair.report("lb-1")["failed"] == first.why
        assert set(pair.served().values()) == {f"{FIRST:X}"}
        # An hour later it is tried once more, and the pause grows.
        pair.ahead = FIRST_PAUSE_SECONDS + 1
        until(lambda: pair.store.read().attempts.failures == 2, seconds=SECONDS)
        pair.authority.looks_at(pair.edges["lb-1"].host)
        pair.store.put("acme/request", Request("r1", "ann", time.time() + pair.ahead))
        _next_served(pair, "")


def test_an_authority_that_is_down_leaves_all_as_it_is(pair: Pair) -> None:
    pair.authority.process.kill()
    with services(pair):
        until(lambda: "Connection" in pair.store.read().attempts.why, seconds=SECONDS)
        assert pair.store.read().attempts.failures == 1
        assert set(pair.served().values()) == {f"{FIRST:X}"}
        assert _got(pair.edges["lb-1"], "/")[0] == http.HTTPStatus.OK


@pytest.mark.parametrize(
    ("name", "days", "why"),
    [("other.example", 90.0, "for other.example and not for"), (NAME, -1.0, "is over")],
)
def test_a_stored_certificate_that_is_none_of_ours_is_not_served(
    pair: Pair, name: str, days: float, why: str
) -> None:
    with services(pair):
        good = _next_served(pair, "")
        kept = pair.store.read().attempts
        pair.store.put("acme/attempts", replace(kept, at=time.time(), failures=1, why="a pause"))
        pair.store.put("certificate", certificate(4711, days=days, name=name))
        for one in pair.edges:
            until(lambda one=one: why in str(pair.report(one)["trouble"]), seconds=SECONDS)
        assert set(pair.served().values()) == {good}
        assert _got(pair.edges["lb-1"], "/")[0] == http.HTTPStatus.PERMANENT_REDIRECT


def test_a_certificate_for_other_names_is_refused(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ordering.crypto_util.make_csr
    monkeypatch.setattr(
        ordering.crypto_util, "make_csr", lambda key, _: asked(key, ["other.example"])
    )
    with (
        services(pair, orders=False),
        pytest.raises(Refused, match=r"for other.example and not for shop.example"),
    ):
        pair.orderer().run()
    assert pair.store.read().certificate == ""


def test_what_haproxy_does_not_take_does_not_stay_where_its_next_start_reads_it(
    pair: Pair,
) -> None:
    """The process that runs goes on; a reload or a reboot later nobody would be served."""
    edge = pair.edges["lb-1"]
    follower = Follower(edge.runtime(), NAME, certificate=edge.pem, map_file=edge.acme_map)
    shared = pair.store.read()
    follower.follow(replace(shared, certificate=certificate(7)), time.time())
    before = edge.pem.read_text()
    weak = certificate(8, key=rsa.generate_private_key(65537, 1024))
    with pytest.raises(HostFailed, match="did not take"):
        follower.follow(replace(shared, certificate=weak), time.time())
    assert edge.pem.read_text() == before


@pytest.mark.parametrize("step", ["load_certificate", "_answer"])
def test_killed_in_a_turn_it_leaves_nothing_that_haproxy_does_not_start_with(
    pair: Pair, step: str
) -> None:
    edge = pair.edges["lb-1"]
    follower = Follower(edge.runtime(), NAME, certificate=edge.pem, map_file=edge.acme_map)
    shared = pair.store.read()
    follower.follow(replace(shared, certificate=certificate(7)), time.time())
    before = edge.pem.read_text()
    weak = certificate(8, key=rsa.generate_private_key(65537, 1024))

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        setattr(Runtime if step == "load_certificate" else Follower, step, die)
        follower.follow(replace(shared, certificate=weak), time.time())

    killed = multiprocessing.get_context("fork").Process(target=run)
    killed.start()
    killed.join(30)
    assert killed.exitcode == -signal.SIGKILL
    with pytest.raises(HostFailed, match="did not take"):
        follower.follow(replace(shared, certificate=weak), time.time())
    assert edge.pem.read_text() == before
    edge.reload()
    assert pair.served()["lb-1"] == "7"
    # Killed with a good one it is done again.
    shared = replace(shared, certificate=certificate(9))
    assert follower.follow(shared, time.time()) == "9"
    assert edge.pem.read_text() == shared.certificate


def test_a_full_disk_keeps_the_old_file_whole_and_the_new_certificate_is_served(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = pair.edges["lb-1"]
    follower = Follower(edge.runtime(), NAME, certificate=edge.pem, map_file=edge.acme_map)
    shared = replace(pair.store.read(), certificate=certificate(7))
    before = edge.pem.read_text()
    loaded: list[str] = []
    load = Runtime.load_certificate

    def counted(runtime: Runtime, file: str, text: str) -> None:
        loaded.append(text)
        load(runtime, file, text)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Runtime, "load_certificate", counted)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        for _ in range(3):
            with pytest.raises(FlotillaError, match="No space left"):
                follower.follow(shared, time.time())
    assert edge.pem.read_text() == before
    assert pair.served()["lb-1"] == "7"
    assert follower.follow(shared, time.time()) == "7"
    assert edge.pem.read_text() == shared.certificate
    assert len(loaded) == 1, "sessions are resumed by what was loaded before"


@pytest.mark.parametrize(("there", "is_written"), [("", True), ("junk", True), ("good", False)])
def test_where_haproxy_does_not_run_only_what_it_cannot_start_with_is_replaced(
    pair: Pair, there: str, is_written: bool
) -> None:
    edge = pair.edges["lb-1"]
    before = certificate(7) if there == "good" else there
    edge.pem.unlink()
    if before:
        edge.pem.write_text(before)
    gone = Runtime("lb-1", local(edge.folder / "no-such-socket"))
    follower = Follower(gone, NAME, certificate=edge.pem, map_file=edge.acme_map)
    shared = replace(pair.store.read(), certificate=certificate(8))
    with pytest.raises(Unreachable):
        follower.follow(shared, time.time())
    assert edge.pem.read_text() == (shared.certificate if is_written else before)


def test_a_key_of_another_certificate_is_no_certificate() -> None:
    mark = "-----BEGIN PRIVATE KEY"
    good, other = certificate(1), certificate(2)
    for text in (good.partition(mark)[0] + mark + other.partition(mark)[2], "", good[:300]):
        with pytest.raises(FlotillaError):
            pem.read(text)
    assert pem.read(good).serial == "1"


def _next_served(pair: Pair, before: str) -> str:
    """The serial number that both serve, as soon as it is not the one of ``before``."""

    def found() -> str:
        text = pair.store.read().certificate
        serial = pem.read(text).serial if text else ""
        return serial if serial != before and set(pair.served().values()) == {serial} else ""

    return until(found, seconds=SECONDS)


def _signed(pair: Pair) -> int:
    """How many certificates the authority has signed."""
    return (pair.folder / "authority/pebble.log").read_text().count("Issued certificate serial")


def _got(edge: Edge, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(edge.host, edge.port, timeout=10)
    try:
        connection.request("GET", path, headers={"Host": NAME})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()
