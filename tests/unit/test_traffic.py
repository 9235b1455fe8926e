"""The load generator against a real HTTP server that misbehaves on request."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.errors import BadOption, FlotillaError
from flotilla.rules.tally import Tally, percentile, schedule
from flotilla.traffic import KINDS, Background, Load, Options
from flotilla.wait import until

COMMAND = [sys.executable, "-m", "flotilla.traffic"]


class App(BaseHTTPRequestHandler):
    """A small application with faults: a class variable each."""

    protocol_version = "HTTP/1.1"
    status = 200
    delay = 0.0
    refuse_posts_until = 0.0
    cut_every = 0
    asked = 0
    longest = 0
    cookies: set[str]
    connections: set[tuple[str, int]]
    rows: dict[str, str]

    def do_GET(self) -> None:
        App.asked += 1
        App.longest = max(App.longest, len(self.requestline))
        App.connections.add(self.client_address)
        App.cookies.add(self.headers.get("Cookie", ""))
        if self.path.startswith("/api/entries?ids="):
            ids = self.path.partition("=")[2].split(",")
            self.answer(200, json.dumps({"missing": [i for i in ids if i not in App.rows]}))
            return
        if App.cut_every and App.asked % App.cut_every == 0:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        time.sleep(App.delay)
        self.answer(App.status, "page")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if time.monotonic() < App.refuse_posts_until:
            self.answer(503, "no primary")
            return
        App.rows[body["id"]] = body["text"]
        self.answer(200, "{}")

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Set-Cookie", "who=me")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    App.status, App.delay, App.refuse_posts_until, App.cut_every, App.asked = 200, 0.0, 0.0, 0, 0
    App.cookies, App.connections, App.rows = set(), set(), {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), App)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run(url: str, **options: object) -> tuple[dict[str, object], Load]:
    async def go() -> Load:
        load = Load(Options(url=url, **{"rate": 50, "duration": 0.6, **options}))  # type: ignore[arg-type]
        await load.run()
        return load

    load = asyncio.run(go())
    return load.report(), load


def test_every_request_is_counted_once(url: str) -> None:
    report, _ = run(url, rate=100, duration=1.0)
    assert report["served"] == 100
    assert report["failed"] == 0
    assert sum(kind["served"] for kind in report["kinds"].values()) == 100
    assert set(report["kinds"]) == set(KINDS)


def test_an_error_answer_is_a_failed_request_with_its_reason(url: str) -> None:
    App.status = 503
    report, _ = run(url, mix={"keep-alive": 1})
    assert report["served"] == 0
    assert report["failures"] == {"keep-alive: status 503": report["failed"]}


def test_nobody_listening_is_counted_and_not_raised() -> None:
    report, _ = run("http://127.0.0.1:9", mix={"close": 1})
    assert report["failed"] == 30
    assert report["served"] == 0


def test_a_slow_server_does_not_slow_the_clients_down(url: str) -> None:
    App.delay = 0.5
    report, _ = run(url, rate=60, duration=1.0, mix={"close": 1})
    assert report["served"] == 60
    # One after the other they would take 30.
    assert report["seconds"] < 10
    assert report["p50_ms"] >= 500


def test_a_post_is_sent_again_until_it_is_acknowledged_and_stored_once(url: str) -> None:
    App.refuse_posts_until = time.monotonic() + 0.4
    report, load = run(url, rate=20, duration=0.6, mix={"post": 1})
    assert report["failed"] == 0
    assert report["retried"] > 0
    assert sorted(load.acked) == sorted(App.rows)
    assert len(load.acked) == report["served"] == report["acked"]


def test_an_acknowledged_row_that_is_gone_is_found(url: str) -> None:
    _, load = run(url, mix={"post": 1})
    gone = load.acked[3]
    del App.rows[gone]
    assert asyncio.run(load.lost()) == [gone]


def test_reading_back_never_asks_with_a_line_too_long_for_a_server(url: str) -> None:
    _, load = run(url, rate=400, duration=0.6, mix={"post": 1})
    assert len(load.acked) == 240
    assert asyncio.run(load.lost()) == []
    assert App.longest < 4094


def test_a_kept_connection_that_is_cut_is_never_hidden(url: str) -> None:
    App.cut_every = 10
    report, _ = run(url, rate=100, duration=1.0, mix={"keep-alive": 1})
    assert report["retried"] + report["failed"] >= 9


def test_close_clients_open_a_connection_each_and_keep_alive_clients_share(url: str) -> None:
    run(url, rate=50, duration=0.6, mix={"close": 1})
    assert len(App.connections) == 30
    App.connections.clear()
    run(url, rate=50, duration=0.6, mix={"keep-alive": 1})
    assert len(App.connections) < 15


def test_sticky_clients_bring_their_cookie_back_and_others_do_not(url: str) -> None:
    run(url, mix={"keep-alive": 1})
    assert App.cookies == {""}
    report, _ = run(url, mix={"sticky": 1})
    assert "who=me" in App.cookies
    assert report["cookies"] == {"who": 24}, "24 clients, and one may not keep another's cookie"


def test_a_slow_request_is_late_only_by_what_it_did_not_ask_for(url: str) -> None:
    App.delay = 0.3
    report, _ = run(url, rate=20, mix={"slow": 1, "close": 1})
    asked_for = Options(url=url).slow_seconds
    assert report["kinds"]["close"]["p50_ms"] >= 300
    assert report["kinds"]["slow"]["p50_ms"] < 300
    assert report["kinds"]["slow"]["p50_ms"] >= 300 - asked_for * 1000


def test_phases_and_the_report_come_from_a_process_of_its_own(url: str) -> None:
    with Background("--url", url, "--rate", "50", "--mix", "post", "--verify") as traffic:
        until(lambda: len(App.rows) > 5, seconds=30)
        traffic.mark("deploy")
        before = len(App.rows)
        until(lambda: len(App.rows) > before + 20, seconds=30)
        report = traffic.stop()
    assert report["failed"] == 0
    assert report["lost"] == 0
    phases = report["phases"]
    assert phases["start"]["served"] > 0
    assert phases["deploy"]["served"] > 10
    assert phases["start"]["served"] + phases["deploy"]["served"] == len(App.rows)
    assert 0 < phases["deploy"]["seconds"] < report["seconds"]


def test_a_generator_that_cannot_start_says_why() -> None:
    with (
        Background("--url", "http://x", "--rate", "nonsense") as traffic,
        pytest.raises(FlotillaError, match="invalid float"),
    ):
        traffic.stop()


def test_the_command_line_prints_one_object_and_exits_1_when_a_request_failed(url: str) -> None:
    App.status = 500
    done = subprocess.run(
        [*COMMAND, "--url", url, "--rate", "20", "--duration", "0.5", "--mix", "close"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["failures"] == {"close: status 500": 10}


@pytest.mark.parametrize(
    "arguments", [["--rate", "0"], ["--duration", "-1"], ["--mix", "fast"], ["--mix", "post=0"]]
)
def test_a_bad_option_is_exit_5(arguments: list[str]) -> None:
    done = subprocess.run(
        [*COMMAND, "--url", "http://127.0.0.1:9", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5, done.stderr
    assert done.stdout == ""


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(BadOption, match="fast"):
        Options(url="http://x", mix={"fast": 1})


@given(st.lists(st.floats(0, 100), min_size=1), st.integers(1, 100))
def test_a_percentile_has_its_share_of_values_at_or_below_it(
    values: list[float], percent: int
) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= len(values) * percent / 100
    assert sum(value < found for value in values) < len(values) * percent / 100


@given(st.dictionaries(st.sampled_from(KINDS), st.integers(1, 50), min_size=1))
def test_a_schedule_has_the_proportions_of_its_mix(mix: dict[str, int]) -> None:
    order = schedule(mix, sum(mix.values()))
    assert {kind: order.count(kind) for kind in mix} == mix


def test_the_gap_is_the_longest_time_without_an_answer() -> None:
    tally = Tally(["post"], 0.0)
    for at in (1.0, 1.5, 4.0, 4.2):
        tally.served("post", "start", at, 0.1)
    assert tally.report(5.0)["kinds"]["post"]["gap_seconds"] == 2.5


def test_lateness_of_the_sender_is_told_apart_from_what_servers_took() -> None:
    tally = Tally(["close"], 0.0)
    for late in (0.001, 0.002, 0.150):
        tally.sent("close", "start", late)
        tally.served("close", "start", 1.0, late + 0.01)
    report = tally.report(5.0)
    assert (report["late_ms"], report["p99_ms"]) == (150.0, 160.0)
    assert report["phases"]["start"]["late_ms"] == 150.0


def test_every_phase_has_its_own_percentiles_kinds_and_reasons() -> None:
    tally = Tally(["close", "post"], 0.0)
    tally.served("close", "start", 1.0, 0.1)
    tally.mark("during", 2.0)
    tally.served("close", "during", 3.0, 0.4)
    tally.failed("post", "during", "post: status 502")
    # Sent before the deploy and answered during it: it belongs to where it was sent.
    tally.served("post", "start", 3.5, 0.2, retries=1)
    phases = tally.report(5.0)["phases"]
    assert (phases["start"]["served"], phases["start"]["p99_ms"]) == (2, 200.0)
    assert phases["start"]["kinds"]["post"]["retried"] == 1
    assert phases["during"]["kinds"]["close"]["p50_ms"] == 400.0
    assert phases["during"]["failures"] == {"post: status 502": 1}


def test_an_outage_at_either_end_of_a_run_is_one():
    """Counted between answers only, a fleet that never serves again would look well."""
    tally = Tally(["close"], 100.0)
    assert tally.report(107.0)["gap_seconds"] == 7.0
    for at in (102.0, 102.5, 103.0):
        tally.served("close", "start", at, 0.01)
    assert tally.report(103.1)["gap_seconds"] == 2.0
    assert tally.report(120.0)["gap_seconds"] == 17.0
