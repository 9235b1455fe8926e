"""Terms a fleet sets for its deploys, and what an operator's own commands and receivers hear.

Each refusal names who or what and the next command, and no host has left rotation.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from guests import needs_lab, until
from rolling import Rolling
from typed import fab, typed

from flotilla import deploy
from flotilla.aws.session import client
from flotilla.deploy import Words
from flotilla.deploy.artifact import find
from flotilla.errors import Refused
from flotilla.rules.capacity import Load
from flotilla.settings import Settings
from flotilla.settings_deploy import Freeze, Windows

pytestmark = [needs_lab, pytest.mark.drill]

# The deadlines of the sockets, and what a command needs besides.
TOLD_SECONDS = 20


def changed(settings: Settings, **sections: Any) -> Settings:
    """The lab's fleet with another deploy section."""
    section = settings.deploy.model_copy(update=sections)
    made = settings.model_copy(update={"deploy": section})
    return made.placed(settings.root, settings.digest)


def run(settings: Settings, version: str, **words: Any) -> Any:
    asked = deploy.request(settings, Words(version, **words))
    return deploy.deploy(
        settings,
        asked.version,
        asked.options,
        confirmed=lambda _: None,
        said=lambda _: None,
        terms=asked.terms,
    )


@contextmanager
def refused(fleet: Rolling, *parts: str) -> Iterator[None]:
    """The block raises Refused with all of ``parts``, and no host was touched."""
    with pytest.raises(Refused) as caught:
        yield
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.next
    fleet.is_whole(fleet.version)


def test_a_freeze_window_is_kept_and_its_override_is_recorded(fleet: Rolling) -> None:
    year = datetime.now(UTC).year
    window = {"from": f"{year}-01-01 00:00", "to": f"{year + 1}-01-01 00:00", "reason": "the audit"}
    freeze = Windows(timezone="UTC", freeze=(Freeze.model_validate(window),))
    frozen = changed(fleet.settings, windows=freeze)
    with refused(fleet, "the audit, until", f"{year + 1}-01-01 00:00 UTC", "--override-freeze"):
        run(frozen, fleet.other)
    wanted = fleet.other
    outcome = run(frozen, wanted, override_freeze="the shop is down", batches="1,100%", floor="30")
    assert (outcome.result, outcome.failed) == ("done", 0)
    line = fab("audit.list", "--last", "1")[0]
    assert line["freeze"] == {"window": "the audit", "overridden_because": "the shop is down"}
    fleet.is_whole(wanted)


def test_a_load_that_one_host_less_could_not_take_is_refused_with_figures(fleet: Rolling) -> None:
    def busiest() -> Load:
        with fleet.world() as world:
            return max(world.balancers.loads().values(), key=lambda load: load.most_sessions)

    with fleet.clients() as clients:
        until(lambda: busiest().rate >= 20, 30, "clients are served")
        until(lambda: busiest().most_sessions >= 4, 30, "some were in flight at once")
        clients.saw_nothing()
    most = busiest().most_sessions
    # Two of three hosts take a request less than 130% of the peak.
    with limited(fleet, most * 65 // 100), pytest.raises(Refused) as caught:
        run(fleet.settings, fleet.other)
    assert "requests at once; with one out, " in caught.value.what
    assert f"130% of {most}, the most in flight" in caught.value.what
    assert "--headroom" in caught.value.next
    fleet.is_whole(fleet.version)


@contextmanager
def limited(fleet: Rolling, sessions: int) -> Iterator[None]:
    """Every host takes so few requests at once, on every load balancer."""
    names = [host.name for host in fleet.hosts("app")]

    def limit(number: int) -> None:
        orders = "; ".join(f"set maxconn server app/{name} {number}" for name in names)
        typed(
            "fleet.run", "--on", "lb", "--sudo",
            f"echo '{orders}' | socat - /run/haproxy/admin.sock",
        )  # fmt: skip

    limit(sessions)
    try:
        yield
    finally:
        limit(200)


def test_a_plan_that_was_kept_is_refused_by_the_name_of_the_host_that_changed(
    fleet: Rolling, tmp_path: Path
) -> None:
    path = str(tmp_path / "plan.json")
    fab("deploy.plan", "--version", fleet.other, f"--save={path}")
    other, wanted = fleet.canary().name, fleet.other
    with fleet.world() as world:
        world.releases.call(other, "stage", wanted, "--sha256", sha256(fleet, wanted), seconds=60)
        deploy.Roll(world, deploy.limits(fleet.settings), said=lambda _: None).host(other, wanted)
    told = fab("deploy.run", "--plan", path, "--yes", code=3)
    assert f"{other} ran {fleet.version}, now {wanted}" in told["error"]["what"]
    assert "--save" in told["error"]["next"]
    fab("deploy.plan", "--version", wanted, f"--save={path}")
    outcome = fab("deploy.run", "--plan", path, "--reason", "the rest of it", "--yes")
    assert other in outcome["skipped"]
    assert outcome["failed"] == 0
    fleet.is_whole(wanted)


def sha256(fleet: Rolling, version: str) -> str:
    return find(fleet.settings, version).sha256


class Receiver(BaseHTTPRequestHandler):
    """Keeps what it is sent; answers late when its server says so."""

    def do_POST(self) -> None:
        server: Any = self.server
        server.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        time.sleep(server.wait_seconds)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def webhook(settings: Settings, wait_seconds: float = 0) -> Iterator[tuple[Settings, list[Any]]]:
    """A receiver on this machine, its address in SSM as a secret is."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.got, server.wait_seconds, server.daemon_threads = [], wait_seconds, True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    name = settings.parameter("deploy", "webhook_url")
    ssm = client(settings, "ssm")
    url = f"http://127.0.0.1:{server.server_port}/secret"
    ssm.put_parameter(Name=name, Value=url, Type="SecureString", Overwrite=True)
    notify = settings.deploy.notify.model_copy(update={"webhook_url_parameter": name})
    try:
        yield changed(settings, notify=notify), server.got
    finally:
        ssm.delete_parameter(Name=name)
        server.shutdown()


def test_hooks_and_receivers_hear_of_a_deploy_and_of_each_host(
    fleet: Rolling, tmp_path: Path
) -> None:
    heard = tmp_path / "heard"
    line = "os.environ['FLOTILLA_PHASE'] + ' ' + os.environ['FLOTILLA_HOST']"
    tell = [sys.executable, "-c", f"import os; open({str(heard)!r}, 'a').write({line} + '\\n')"]
    hooks = fleet.settings.deploy.hooks.model_copy(
        update={phase: [tell] for phase in ("before", "after", "before_host", "after_host")}
    )
    wanted = fleet.other
    with webhook(changed(fleet.settings, hooks=hooks)) as (settings, got), fleet.clients() as seen:
        outcome = run(settings, wanted, reason="ticket 5")
        seen.saw_nothing()
    assert outcome.result == "done"
    assert not [note for note in outcome.notes if "hook" in note or "told" in note]
    told = heard.read_text().splitlines()
    assert (told[0], told[-1]) == ("before ", "after ")
    assert sorted(told[1:-1]) == sorted(
        f"{phase} {host}" for host in outcome.done for phase in ("before_host", "after_host")
    )
    assert [(one["event"], one["version"], one["why"]) for one in got] == [
        ("began", wanted, "ticket 5"),
        ("ended", wanted, "ticket 5"),
    ]
    assert got[1]["result"] == "done"
    fleet.is_whole(wanted)


def test_a_hook_that_forbids_the_second_host_takes_the_deploy_back(fleet: Rolling) -> None:
    second = fab("deploy.plan", "--version", fleet.other)["batches"][1][0]
    code = f"import os; raise SystemExit(os.environ['FLOTILLA_HOST'] == {second!r})"
    hooks = fleet.settings.deploy.hooks.model_copy(
        update={"before_host": [[sys.executable, "-c", code]]}
    )
    with fleet.clients() as clients:
        outcome = run(changed(fleet.settings, hooks=hooks), fleet.other)
        clients.saw_nothing()
    assert outcome.result == "rolled back"
    assert f"{second}: the before_host hook" in outcome.reason
    fleet.is_whole(fleet.version)


def test_a_hook_before_the_deploy_refuses_it(fleet: Rolling) -> None:
    hooks = fleet.settings.deploy.hooks.model_copy(
        update={"before": [[sys.executable, "-c", "raise SystemExit('not approved')"]]}
    )
    with refused(fleet, "the before hook", "not approved"):
        run(changed(fleet.settings, hooks=hooks), fleet.other)


def test_a_receiver_that_hangs_is_a_note_and_holds_nobody_up(fleet: Rolling) -> None:
    wanted = fleet.other
    with webhook(fleet.settings, wait_seconds=60) as (settings, _):
        outcome = run(settings, wanted, batches="1,100%", floor="30")
    assert (outcome.result, outcome.failed) == ("done", 0)
    assert {
        "the webhook was not told that the deploy began",
        "the webhook was not told that the deploy ended",
    } <= {note.partition(":")[0] for note in outcome.notes}
    fleet.is_whole(wanted)


def test_the_script_says_what_fab_says(fleet: Rolling) -> None:
    script = fleet.settings.root / "scripts" / "rolling_deploy.py"
    done = subprocess.run(
        [sys.executable, script, fleet.other, "--env", "lab", "--reason", "no answer given"],
        capture_output=True,
        text=True,
        timeout=TOLD_SECONDS * 3,
        check=False,
    )
    assert done.returncode == 3
    assert f"Deploy {fleet.other}:" in done.stderr
    assert "add --yes" in done.stderr
    fleet.is_whole(fleet.version)
