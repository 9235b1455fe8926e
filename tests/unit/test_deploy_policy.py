"""A deploy as an operator starts it: refused before any host is touched, or recorded as it ended.

The hosts and load balancers are those of ``deploy_fleet``; AWS is moto in this process. Only SSH
and the Elastic IP are not there, so the world is handed over and no probe runs.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from deploy_fleet import CONFIG, Fleet, fleet, sticky, until  # noqa: F401  fixtures
from fleets import maker
from moto import mock_aws

import rolling_deploy
from fabfile import namespace
from flotilla import audit, deploy, lock
from flotilla.aws import dynamo, lease
from flotilla.aws.artifacts import Artifacts
from flotilla.aws.session import client
from flotilla.deploy import Balancers, Outcome, Proposal, World, operate, plans, survey
from flotilla.deploy_words import HELP
from flotilla.errors import BadOption, HostFailed, Refused
from flotilla.hosts.haproxy import Runtime, local
from flotilla.rules.release import key
from flotilla.settings import Settings
from flotilla.settings_deploy import Freeze, Windows

FAIL = [sys.executable, "-c", "raise SystemExit('no')"]


@dataclass
class Site:
    """A fleet in moto's account with the real load balancers and hosts behind it."""

    settings: Settings
    fleet: Fleet

    def change(self, **sections: Any) -> None:
        section = self.settings.deploy.model_copy(update=sections)
        made = self.settings.model_copy(update={"deploy": section})
        self.settings = made.placed(self.settings.root, self.settings.digest)

    def freeze(self) -> None:
        now = datetime.now(UTC)
        window = Freeze.model_validate(
            {"from": f"{now:%Y}-01-01 00:00", "to": "2999-01-01 00:00", "reason": "the year's end"}
        )
        self.change(windows=Windows(timezone="UTC", freeze=(window,)))

    def hook(self, **commands: list[list[str]]) -> None:
        self.change(hooks=self.settings.deploy.hooks.model_copy(update=commands))

    def plan(self, version: str = "2", **words: Any) -> Proposal:
        asked = deploy.request(self.settings, deploy.Words(version, **words))
        return deploy.planned(self.settings, asked.version, asked.options, asked.terms)

    def run(self, version: str = "2", said: Any = lambda _: None, **words: Any) -> Outcome:
        asked = deploy.request(self.settings, deploy.Words(version, **words))
        return deploy.deploy(
            self.settings,
            asked.version,
            asked.options,
            confirmed=lambda _: None,
            said=said,
            terms=asked.terms,
        )

    def locked_by_bob(self) -> None:
        lease.acquire(
            dynamo.locks(self.settings),
            "deploy",
            holder="bob@desk:1",
            reason="deploy 7: ticket 3",
            seconds=60,
            now=time.time(),
            take_over=True,
        )

    @property
    def audited(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in audit.lines(self.settings)]

    def untouched(self) -> bool:
        """Whether no host was changed, staged to, or taken out of rotation."""
        calls = {call for one in self.fleet.machines.values() for call in one.calls}
        return calls <= {"status"} and self.fleet.everything_up()


def published(settings: Settings, version: str, content: bytes = b"a release") -> None:
    import hashlib

    path = settings.root / "artifact.tar.gz"
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    assert Artifacts(settings).put(version, path, sha256=digest, released_by="test")


@pytest.fixture
def site(
    tmp_path: Path,
    fleet: Fleet,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Site]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with mock_aws():
        settings = maker(tmp_path)().settings
        application = settings.application.model_copy(update={"boot_seconds": 2})
        settings = settings.model_copy(update={"application": application}).placed(tmp_path, "")
        s3 = client(settings, "s3")
        where = {"LocationConstraint": settings.region}
        for name in ("artifacts", "audit"):
            bucket = settings.name_of(name)
            s3.create_bucket(Bucket=bucket, CreateBucketConfiguration=where)
            s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        client(settings, "dynamodb").create_table(
            TableName=settings.name_of("locks"),
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        made = Site(settings, fleet)
        made.change(soak_seconds=0, drain_seconds=3)
        published(settings, "2")

        @contextmanager
        def connect(_: Settings) -> Iterator[tuple[World, dict[str, str]]]:
            yield fleet.world, {name: f"zone-{name[-1]}" for name in fleet.machines}

        @contextmanager
        def watched(*_: Any, **__: Any) -> Iterator[dict[str, Any]]:
            yield {}

        monkeypatch.setattr(operate, "connect", connect)
        monkeypatch.setattr(operate, "watched", watched)
        yield made


# -- what a plan says ------------------------------------------------------------------------------


def test_a_plan_says_who_goes_when_what_stays_and_how_long_it_takes(site: Site) -> None:
    for server in site.fleet.machines:
        for runtime in site.fleet.world.balancers._runtimes.values():
            runtime._send(f"set maxconn server app/{server} 100")
    made = site.plan()
    text = deploy.described(made)
    assert "batch 1 (canary): app-1 (1, zone-1)" in text
    assert "meanwhile 2 hosts serve and take 200 requests at once" in text
    assert "at most " in text
    told = made.as_dict()
    assert told["zones"] == {"app-1": "zone-1", "app-2": "zone-2", "app-3": "zone-3"}
    assert told["capacity"]["steps"][0] == {"serving": 2, "sessions": 200}
    json.dumps(told)
    assert site.untouched()


def test_the_time_expected_is_that_of_the_deploys_before(site: Site) -> None:
    published(site.settings, "3")
    outcome = site.run()
    made = site.plan("3")
    assert made.expected.deploys == 1
    assert made.expected.seconds == pytest.approx(outcome.seconds, rel=0.5)
    assert "as the last deploy took" in deploy.described(made)


def test_deploys_that_went_wrong_and_exchanges_of_hosts_say_nothing_about_the_time(
    site: Site,
) -> None:
    for number, (plan, end) in enumerate(
        [
            ({"role": "app", "old": ["app-1"]}, {"result": "done", "seconds": 300}),
            ({"batches": [["app-1"]]}, {"result": "stopped", "seconds": 300, "steps": {}}),
            ({"batches": []}, {"result": "nothing to do", "seconds": 1, "steps": {}}),
        ]
    ):
        journal = deploy.Journal.begin(site.settings, f"x{number}")
        journal.write("begin", plan=plan)
        journal.write("end", **end)
    deploy.Journal.begin(site.settings, "cut-off").write("begin", plan={"batches": [["app-1"]]})
    assert site.plan().expected.deploys == 0


# -- plans that are kept ---------------------------------------------------------------------------


def saved(site: Site, version: str = "2") -> str:
    return str(plans.save(site.settings, site.plan(version).as_dict(), now=datetime.now(UTC)))


def test_a_saved_plan_is_what_is_run(site: Site) -> None:
    path = saved(site)
    outcome = site.run("", plan=path, reason="ticket 12")
    assert outcome.result == "done"
    line = site.audited[-1]
    assert (line["plan"], line["why"]) == (Path(path).stem, "ticket 12")


def test_a_saved_plan_is_refused_with_every_host_that_changed(site: Site) -> None:
    path = saved(site)
    site.fleet.machines["app-2"].version = "0"
    site.fleet.world.balancers.order("app-3", "state drain")
    with pytest.raises(Refused) as refused:
        site.run("", plan=path)
    site.fleet.world.balancers.order("app-3", "state ready")
    assert refused.value.exit_code == 3
    assert "app-3 was taken out of rotation" in str(refused.value)
    with pytest.raises(Refused) as refused:
        site.run("", plan=path)
    assert "app-2 ran 1, now 0" in str(refused.value)
    assert "--save" in refused.value.next
    assert site.untouched()


def test_a_plan_whose_release_was_replaced_is_refused(site: Site) -> None:
    path = saved(site)
    s3 = client(site.settings, "s3")
    s3.delete_object(Bucket=site.settings.name_of("artifacts"), Key=key("2"))
    published(site.settings, "2", b"another release")
    with pytest.raises(Refused, match="release 2 had the checksum"):
        site.run("", plan=path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "Invalid JSON"),
        ("[]", "is not a plan that can be run"),
        ('{"format": 1}', "is not a plan that can be run"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(site: Site, content: str, said: str) -> None:
    path = site.settings.root / "plan.json"
    path.write_text(content)
    with pytest.raises(Refused, match=said):
        site.run("", plan=str(path))


def test_a_plan_that_was_edited_by_hand_is_refused(site: Site) -> None:
    path = Path(saved(site))
    tree = json.loads(path.read_text())
    tree["batches"] = [["app-1", "app-2", "app-3"]]
    path.write_text(json.dumps(tree))
    with pytest.raises(Refused, match="app-2 was in batch 1, now it is in batch 2"):
        site.run("", plan=str(path))


def test_a_plan_that_is_not_there_lists_those_that_are(site: Site) -> None:
    path = saved(site)
    with pytest.raises(BadOption, match="No such file") as refused:
        site.run("", plan="nowhere.json")
    assert path in refused.value.what


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"version": ""}, "neither --version nor --plan"),
        ({"version": "2", "plan": "p.json"}, "--plan has its own --version"),
        ({"version": "2", "floor": "100"}, "--floor is '100': it must be a number from 1 to 99"),
        ({"version": "2", "headroom": "much"}, "--headroom is 'much'"),
    ],
)
def test_an_option_that_is_wrong_is_named(site: Site, words: dict[str, str], said: str) -> None:
    with pytest.raises(BadOption, match=said):
        deploy.request(site.settings, deploy.Words(**words))  # type: ignore[arg-type]


def test_what_was_typed_can_be_typed_again() -> None:
    words = deploy.Words("2", batches="1,2", adopt=True, reason="it's due", override_freeze="a b")
    typed = shlex.split(words.typed)
    assert typed[:5] == ["--version", "2", "--batches", "1,2", "--adopt"]
    assert typed[5:] == ["--reason", "it's due", "--override-freeze", "a b"]


def test_fab_and_the_script_take_the_same_options() -> None:
    task = next(c for c in namespace.to_contexts() if c.name == "deploy.run")
    flags = {name.lstrip("-") for name in task.flags}
    assert set(HELP) <= flags
    typed = ["2", "--batches", "1,2", "--override-freeze", "x y", "--headroom", "0", "--adopt"]
    given = vars(rolling_deploy._parser().parse_args(typed))
    fields = {one.name for one in dataclasses.fields(deploy.Words)}
    assert fields <= given.keys()
    words = deploy.Words(**{name: given[name] for name in fields if given[name] is not None})
    assert words == deploy.Words(
        "2", batches="1,2", headroom="0", adopt=True, override_freeze="x y"
    )


# -- refused before any host is touched ------------------------------------------------------------


def test_an_unknown_version_lists_those_that_exist(site: Site) -> None:
    with pytest.raises(BadOption, match="no release '9'; there are: 2") as refused:
        site.run("9")
    assert refused.value.exit_code == 5
    assert site.untouched()


def test_an_artifact_that_was_deleted_is_missing_and_not_unknown(site: Site) -> None:
    client(site.settings, "s3").delete_object(
        Bucket=site.settings.name_of("artifacts"), Key=key("2")
    )
    with pytest.raises(
        Refused, match="artifact of release 2 is missing: it was deleted"
    ) as refused:
        site.run()
    assert refused.value.next.startswith("fab app.release --version 2")
    assert site.untouched()


def test_an_artifact_that_was_changed_is_refused(site: Site) -> None:
    s3, bucket = client(site.settings, "s3"), site.settings.name_of("artifacts")
    metadata = s3.head_object(Bucket=bucket, Key=key("2"))["Metadata"]
    s3.put_object(Bucket=bucket, Key=key("2"), Body=b"something else", Metadata=metadata)
    with pytest.raises(Refused, match=r"has the checksum \w{12} and was released with \w{12}"):
        site.run()
    assert site.untouched()


def test_an_artifact_changed_after_it_was_found_right_is_refused(site: Site) -> None:
    site.plan()
    test_an_artifact_that_was_changed_is_refused(site)


def test_a_closed_window_says_until_when_and_how_to_override_it(site: Site) -> None:
    site.freeze()
    with pytest.raises(Refused, match=r"the year's end, until .*2999-01-01") as refused:
        site.run()
    assert "--override-freeze REASON" in refused.value.next
    assert site.untouched()
    assert "in a freeze window" in deploy.described(site.plan()), "a plan may be made meanwhile"


def test_an_override_is_recorded_with_its_reason(site: Site) -> None:
    site.freeze()
    assert site.run(override_freeze="the shop is down").result == "done"
    assert site.audited[-1]["freeze"] == {
        "window": "the year's end",
        "overridden_because": "the shop is down",
    }


def test_hosts_that_get_what_all_others_serve_are_no_new_release(site: Site) -> None:
    site.run()
    site.freeze()
    assert site.run().result == "nothing to do"


def test_a_held_lock_names_who_why_since_and_until(site: Site) -> None:
    site.locked_by_bob()
    with pytest.raises(lease.Held) as refused:
        site.run()
    said = str(refused.value)
    for part in ("held by bob@desk:1", "since 20", "until 20", "deploy 7: ticket 3", "--take-over"):
        assert part in said
    assert site.untouched()


def test_too_much_load_for_one_host_less_is_refused_with_figures(site: Site) -> None:
    lbs = site.fleet.world.balancers._runtimes
    for server in site.fleet.machines:
        for runtime in lbs.values():
            runtime._send(f"set maxconn server app/{server} 4")
    port = int(site.fleet.url.rpartition(":")[2])
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
    for one in clients:
        one.sendall(b"GET /slow HTTP/1.0\r\n\r\n")
    until(lambda: lbs["lb-1"].load().sessions == 8)
    for one in clients:
        one.recv(4096)
        one.close()
    with pytest.raises(Refused) as refused:
        site.run()
    assert (
        "3 hosts serve and take 12 requests at once; with one out, 8 are left and 11 are needed"
        in (refused.value.what)
    )
    assert "130% of 8" in refused.value.what
    assert "--headroom" in refused.value.next
    assert site.untouched()
    assert site.run(headroom="0").result == "done"


def test_a_load_balancer_that_hangs_is_refused(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "hangs.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        whole = site.fleet.world.balancers
        runtimes = whole._runtimes | {"lb-2": Runtime("lb-2", local(path))}
        site.fleet.world = replace(site.fleet.world, balancers=Balancers(runtimes))
        began = time.monotonic()
        with pytest.raises(Refused, match="lb-2: HAProxy's runtime socket does not answer"):
            survey.look(site.fleet.world, {"app-1": "zone-1"})
        assert time.monotonic() - began < 20
    site.fleet.world = replace(site.fleet.world, balancers=whole)
    assert site.untouched()


def test_a_load_balancer_that_is_away_is_refused(site: Site) -> None:
    _, process = site.fleet.processes["lb-2"]
    process.terminate()
    process.wait(10)
    with pytest.raises(Refused, match="lb-2: HAProxy's runtime socket does not answer"):
        site.run()
    site.fleet.start_again("lb-2")
    until(lambda: not site.fleet.world.balancers.answering()[1])
    until(site.fleet.everything_up)
    assert site.untouched()


def test_load_balancers_with_different_states_are_refused(site: Site) -> None:
    site.fleet.world.balancers.order("app-2", "state drain", only=["lb-2"])
    with pytest.raises(Refused, match="app-2"):
        site.run()
    site.fleet.world.balancers.order("app-2", "state ready", only=["lb-2"])
    assert site.untouched()


# -- hooks, notes, and the end that is recorded ----------------------------------------------------


def test_a_hook_that_forbids_a_deploy_leaves_everything_as_it_was(site: Site) -> None:
    site.hook(before=[FAIL])
    with pytest.raises(Refused, match="the before hook"):
        site.run()
    assert site.untouched()
    assert deploy.history(site.settings) == []
    assert site.audited[-1]["result"] == "refused"


def test_a_hook_that_forbids_a_host_takes_the_deploy_back(site: Site) -> None:
    code = "import os; raise SystemExit(os.environ['FLOTILLA_HOST'] == 'app-3')"
    site.hook(before_host=[[sys.executable, "-c", code]])
    outcome = site.run()
    assert outcome.result == "rolled back"
    assert "app-3: the before_host hook" in outcome.reason
    assert site.fleet.versions == ["1", "1", "1"]
    assert not any("switch 2" in call for call in site.fleet.machines["app-3"].calls)


def test_a_hook_or_receiver_that_fails_afterwards_is_a_note_and_the_end_stays(site: Site) -> None:
    site.hook(after=[FAIL], after_host=[FAIL])
    site.change(
        notify=site.settings.deploy.notify.model_copy(
            update={"webhook_url_parameter": "/flotilla/lab/deploy/none"}
        )
    )
    outcome = site.run()
    assert outcome.result == "done"
    outcome.raise_failure()
    notes = "\n".join(outcome.notes)
    assert "the after hook" in notes
    assert "app-1: the after_host hook" in notes
    assert "the webhook was not told that the deploy began" in notes
    assert "the webhook was not told that the deploy ended" in notes


def test_a_deploy_that_could_not_stage_is_recorded_too(site: Site) -> None:
    site.fleet.machines["app-2"].fails["stage 2"] = "no space left"
    with pytest.raises(HostFailed, match="no space left"):
        site.run(reason="ticket 9")
    line = site.audited[-1]
    assert (line["result"], line["why"]) == ("failed", "ticket 9")
    assert "no space left" in line["error"]


def test_a_run_that_lost_its_lock_stops_before_the_next_change(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody takes the lock over while the canary drains."""
    monkeypatch.setattr(lock, "CONFIRM_SECONDS", 0.0)
    seen: list[str] = []

    def said(step: Any) -> None:
        seen.append(step.name)
        if step.name == "drain" and len(seen) == 1:
            site.locked_by_bob()

    outcome = site.run(said=said)
    assert outcome.result == "stopped"
    assert "no longer ours" in outcome.reason
    assert site.fleet.versions == ["1", "1", "1"]
    assert not any("switch" in call for one in site.fleet.machines.values() for call in one.calls)
    statuses = {
        s.status for seen in [site.fleet.world.balancers.views("app-1")] for s in seen.values()
    }
    assert statuses == {"MAINT"}, "nothing was given after the lock was lost, not even the way back"
    now = lease.read(dynamo.locks(site.settings), "deploy")
    assert now
    assert now.holder == "bob@desk:1", "the new holder's lock is left alone"
