"""From what hosts answer to what an operator reads."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from worlds import app, silenced, with_host, world

from flotilla import config
from flotilla.errors import BadOption, FlotillaError, HostFailed, Unreachable
from flotilla.inventory import store
from flotilla.rules.redis import Member
from flotilla.rules.status import findings
from flotilla.rules.status_world import Tls, World
from flotilla.settings import Settings
from flotilla.snapshot import Host, Snapshot
from flotilla.status import asking, board, gather, page
from flotilla.status.gather import at_once
from flotilla.status.operate import watch

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOST = Host(
    "lb-1", "i-1", "lb", 1, "eu-central-1a", "running", "10.0.0.4", None, "ami-1", "t3.small",
    NOW, {}, None,
)  # fmt: skip
COLUMNS = (
    "pxname,svname,qcur,scur,status,weight,bck,check_status,last_chk,req_rate,hrsp_5xx,ttime,iid"
)


def stat(*rows: str) -> str:
    return "# " + "\n".join([COLUMNS, *rows]) + "\n"


def answer(**changes: Any) -> dict[str, Any]:
    """What the probe says on a healthy host."""
    disk = {"path": "/", "used_percent": 30.0, "inodes_percent": 1.0, "free_bytes": 10}
    said = {"at": 1000.0, "units": {"ssh": "active"}, "failed_units": [], "disks": [disk]}
    return said | {"agent": {"installed": True}} | changes


# --- one host ------------------------------------------------------------------------------------


def test_the_same_disk_under_two_paths_is_told_once():
    disk = answer()["disks"][0]
    found = asking.report(answer(disks=[disk, {**disk, "path": "/var/lib/mysql"}]), now=1000.0)
    assert [one.path for one in found.disks] == ["/"]


def test_parts_that_could_not_be_had_leave_the_others():
    found = asking.report(
        answer(units={"error": "no bus"}, disks=[{"error": "gone"}], failed_units={"error": "x"}),
        now=998.0,
    )
    assert found.units == {"systemd": "no bus"}
    assert found.disks == ()
    assert found.clock_offset_seconds == 2.0


@pytest.mark.parametrize(
    ("agent", "missing"),
    [
        ({"installed": True}, None),
        ({"installed": False, "reason": "no route"}, "no route"),
        (None, None),
    ],
)
def test_an_agent_that_was_left_out_says_why(agent, missing):
    assert asking.report(answer(agent=agent), now=1000.0).agent_missing == missing


def test_a_balancer_is_read_from_its_socket_and_its_own_state():
    text = stat("edge,FRONTEND,,3,OPEN,,,,,7,,,2", "app,app-1,0,2,UP,1,0,L7OK,,,,,3")
    edge = {"vrrp": "MASTER", "note": "master, and the address is here"}
    found = asking.balancer(HOST, answer(haproxy={"stat": text}, edge=edge), None)
    assert found.vrrp == "MASTER"
    assert {name: one.status for name, one in (found.servers or {}).items()} == {"app-1": "UP"}


def test_a_balancer_tells_how_it_follows_the_hosts_and_what_it_did_last():
    changes = [{"kind": "add", "name": "app-4", "at": 900.0}, {"kind": "drain", "name": "app-1"}]
    report = {"at": 995.0, "hosts": 4, "trouble": "", "notes": [], "changes": changes}
    said = answer(haproxy={"stat": stat()}, edge=None, discovery=report)
    follows = asking.balancer(HOST, said, None).follows
    assert follows
    assert (follows.age_seconds, follows.last) == (5.0, "add app-4")
    assert follows.last_age_seconds == 100.0
    silent = answer(haproxy={"stat": stat()}, edge=None, discovery={"error": "PermissionError"})
    assert asking.balancer(HOST, silent, None).follows is None


def test_a_balancer_whose_socket_is_gone_says_so_and_keeps_its_vrrp_state():
    said = answer(haproxy={"error": "FileNotFoundError: no socket"}, edge={"vrrp": "FAULT"})
    found = asking.balancer(HOST, said, None)
    assert (found.servers, found.vrrp) == (None, "FAULT")
    assert "no socket" in found.error


@pytest.mark.parametrize(
    ("rows", "readers"),
    [
        (["mysql-2,0,0,UP,1,0", "mysql-1-primary,0,0,UP,1,1"], ("mysql-2",)),
        (["mysql-2,0,0,DOWN,1,0", "mysql-1-primary,0,0,UP,1,1"], ("mysql-1-primary",)),
        (["mysql-2,0,0,DOWN,1,0", "mysql-1-primary,0,0,DOWN,1,1"], ()),
    ],
)
def test_a_spare_server_counts_only_when_no_other_is_left(rows, readers):
    text = stat(*(f"mysql_readers,{row},,,,,,3" for row in rows))
    said = answer(haproxy={"stat": text}, app={"current": "v1", "active": True, "ready": 200})
    assert asking.application(HOST, said).proxies == {"mysql_readers": readers}


def test_an_application_host_without_its_tool_says_so():
    said = answer(haproxy={"stat": stat()}, app={"error": "no tool"})
    assert asking.application(HOST, said).error == "no tool"


def test_a_redis_report_of_no_use_is_a_reason_and_no_member():
    assert asking.cache(HOST, answer(redis={"error": "timed out"})) == "timed out"
    assert "has no" in str(asking.cache(HOST, answer(redis={})))
    assert not isinstance(asking.cache(HOST, answer(redis={})), Member)


def test_an_answer_that_is_no_json_is_the_hosts_failure():
    with pytest.raises(HostFailed, match="lb-1"):
        asking.parsed(HOST, "Segmentation fault")


@pytest.mark.parametrize("role", asking.UNITS)
def test_the_probe_runs_where_nothing_of_ours_is_and_says_what_it_could_not_have(role):
    """On this machine, as on a host that was never configured."""
    settings = config.load("lab")
    _, _, _, wanted = asking.command(settings, role).split(" ", 3)
    done = subprocess.run(
        [sys.executable, "-I", "-", wanted.strip("'")],
        input=asking.SOURCE.read_text(),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    said = asking.parsed(HOST, done.stdout)
    assert asking.report(said, now=time.time()).disks
    if role == "app":
        assert asking.application(HOST, said).error
    if role == "lb":
        assert asking.balancer(HOST, said, None).servers is None


def test_the_probe_asks_haproxys_socket_and_an_application(tmp_path: Path):
    text = stat("app,app-1,0,2,UP,1,0,L7OK,,,,,3")
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as client:
                client.recv(100)
                client.sendall(text.encode())

        threading.Thread(target=serve, daemon=True).start()
        wanted = json.dumps({"units": [], "disks": [], "haproxy": str(path)})
        done = subprocess.run(
            [sys.executable, str(asking.SOURCE), wanted],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    assert json.loads(done.stdout)["haproxy"] == {"stat": text}


@pytest.mark.parametrize(
    ("settings", "files", "said"),
    [
        ('{"hours": 168}', {"leaf": 5, "issuer": 9}, (5, 9, 168)),
        # A host that was configured before there were hours.
        ("{}", {"leaf": None, "issuer": 9}, (None, 9, None)),
        ('{"hours": 168}', {"leaf": 0, "issuer": 9}, "ValueError"),
        ("[]", {"leaf": 5, "issuer": 9}, "AttributeError"),
        ("{", {}, "JSONDecodeError"),
    ],
)
def test_the_probe_asks_a_host_for_its_own_certificate(
    tmp_path: Path, settings: str, files: Mapping[str, int | None], said: Any
) -> None:
    """``files`` end in so many days; 0 is one that is damaged, None one that is not there."""
    wanted = {"units": [], "disks": [], "tls": str(tmp_path)}

    def asked() -> Tls | None:
        argv = [sys.executable, str(asking.SOURCE), json.dumps(wanted)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
        return asking.report(asking.parsed(HOST, done.stdout), now=0.0).tls

    assert asked() is None, "it makes none"
    for name, days in files.items():
        if days is not None:
            (tmp_path / f"{name}.pem").write_text(ending_in(days) if days else "damaged")
    (tmp_path / "tls.json").write_text(settings)
    found = asked()
    assert found is not None
    if isinstance(said, str):
        assert said in found.error
        return
    ends = (found.ends_at, found.issuer_ends_at)
    days = [None if one is None else round((one - time.time()) / 86400, 2) for one in ends]
    assert (*days, found.hours) == said


def ending_in(days: int) -> str:
    """A key and its certificate, in that order, as an issuer's file has them."""
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    argv += ["-nodes", "-subj", "/CN=one", "-days", str(days), "-keyout", "-", "-out", "-"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


# --- the statistics page -------------------------------------------------------------------------


def test_rates_are_read_from_the_page():
    text = stat("edge,FRONTEND,,3,OPEN,,,,,7,,,2", "app,BACKEND,0,3,UP,1,,,,,5,42,3")
    found = page.traffic("lb-1", text)
    assert found is not None
    assert (found.requests_per_second, found.sessions, found.errors) == (7, 3, 5)


@pytest.mark.parametrize("text", ["", "<html>", stat(), "# pxname\nedge\n"])
def test_a_page_without_figures_gives_none(text):
    assert page.traffic("lb-1", text) is None


# --- all at once ---------------------------------------------------------------------------------


def test_one_that_hangs_costs_no_more_than_the_deadline_and_the_others_answer():
    hang = threading.Event()
    begun = time.monotonic()
    found = at_once({"slow": hang.wait, "quick": lambda: 1, "bad": _fail}, seconds=0.3)
    assert time.monotonic() - begun < 20
    hang.set()
    assert found["quick"] == 1
    assert isinstance(found["bad"], Unreachable)
    assert isinstance(found["slow"], FlotillaError)
    assert "no answer within 0.3 s" in str(found["slow"])


def test_where_nobody_has_answered_the_one_that_asks_may_be_slow_and_waits_some_more():
    work = {"host a": lambda: time.sleep(0.4) or 1, "api": lambda: 2}
    waits = {"seconds": 0.1, "one_of": ("host a",)}
    assert at_once(work, patience=5, **waits) == {"host a": 1, "api": 2}
    assert "no answer within 0.2 s" in str(at_once(work, patience=0.1, **waits)["host a"])


def test_one_answer_is_enough_to_leave_the_slow_ones_behind():
    hang = threading.Event()
    begun = time.monotonic()
    found = at_once(
        {"host a": hang.wait, "host b": _fail},
        seconds=0.1, one_of=("host a", "host b"), patience=60,
    )  # fmt: skip
    assert time.monotonic() - begun < 20
    hang.set()
    assert "no answer within 0.1 s" in str(found["host a"])


def _fail() -> None:
    raise Unreachable("it is away")


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """A fleet whose AWS API takes calls and never answers."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setattr(gather, "LIST_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        base = config.load("lab")
        where = {"profile": None, "credentials_file": None, "endpoint_url": url}
        aws = base.aws.model_copy(update=where)
        yield base.model_copy(update={"aws": aws}).placed(tmp_path, "digest")


def test_an_api_that_never_answers_costs_seconds_and_the_last_list_is_shown(hanging):
    hanging.scratch.mkdir(parents=True)
    store.save(hanging, Snapshot(time.time() - 90, (HOST,)))
    begun = time.monotonic()
    snapshot = gather._listed(hanging)
    taken = time.monotonic() - begun
    assert taken < 20, "boto3 alone would wait for 60 s, five times"
    assert snapshot.hosts == (HOST,)
    age = re.search(r"is (\d+) s old", str(snapshot.warning))
    assert age
    assert 90 <= int(age[1]) <= 91 + (time.monotonic() - begun), "counted when it is said"


def test_without_a_list_an_api_that_never_answers_is_an_error(hanging):
    with pytest.raises(Unreachable, match="no answer within"):
        gather._listed(hanging)


# --- the board -----------------------------------------------------------------------------------


def seen(fleet: World) -> dict[str, Any]:
    return board.document(fleet, findings(fleet), at=NOW, seconds=1.234)


def test_the_object_is_json_and_says_whether_somebody_has_to_act():
    well = json.loads(json.dumps(seen(world())))
    assert (well["ok"], well["findings"]) == (True, [])
    assert well["edge"] == {
        "address": "203.0.113.1",
        "owner": "lb-1",
        "vrrp": {"lb-1": "MASTER", "lb-2": "BACKUP"},
    }
    assert seen(silenced("app-1"))["ok"] is False


def test_the_board_shows_every_host_and_every_finding_with_its_command():
    fleet = silenced("app-1", "mysql-3")
    text = board.text(seen(fleet))
    for name in (host.name for host in fleet.hosts):
        assert name in text
    for finding in findings(fleet):
        assert finding.what in text
        assert finding.next in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= board.PIPE_COLUMNS


@pytest.mark.parametrize(
    "fleet",
    [
        World("empty", {"app": 3}),
        world(mysql=None, mysql_error="the record is gone"),
        world(edge_owner=None, edge_address=None),
        world(redis=()),
        with_host("app-1", image=None),
        replace(world(), apps=(app("app-1", proxies=None, ready=None, release=None),)),
        silenced(*(host.name for host in world().hosts)),
    ],
)
def test_the_board_can_show_any_fleet(fleet):
    text = board.text(seen(fleet))
    assert fleet.fleet in text


def test_watching_needs_a_terminal():
    with pytest.raises(BadOption, match="--watch"):
        watch(config.load("lab"))
