"""What is wrong with a fleet: one thing broken at a time, and every mixture of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import (
    app,
    balancer,
    cache,
    host,
    image,
    mysql,
    names,
    report,
    server,
    silenced,
    with_host,
    world,
)

from flotilla import environment
from flotilla.rules.redis import Lasts
from flotilla.rules.restore_drill import Drilled
from flotilla.rules.status import findings, is_well
from flotilla.rules.status_finding import Severity
from flotilla.rules.status_world import Backups, Disk, Follows, RedisBackups, Tls, World

PAGES = {page.stem for page in (environment.root() / "docs" / "runbooks").glob("*.md")}
UNREADY = "RISK the application on app-2 cannot serve: its readiness page"


def said(fleet: World) -> list[str]:
    return [f"{one.severity.name} {one.what}" for one in findings(fleet)]


def only(fleet: World) -> str:
    """The one thing that is wrong."""
    lines = said(fleet)
    assert len(lines) == 1, lines
    return lines[0]


def with_server(status: str, check: str, *balancers: str) -> World:
    fleet = world()
    views = []
    for one in fleet.balancers:
        bad = {"app-2": server("app-2", status, check)} if one.name in balancers else {}
        views.append(replace(one, servers=dict(one.servers or {}) | bad))
    return replace(fleet, balancers=tuple(views))


def with_app(name: str, **changes: object) -> World:
    fleet = world()
    apps = (app(one.name, **changes) if one.name == name else one for one in fleet.apps)
    return replace(fleet, apps=tuple(apps))


def test_a_healthy_fleet_has_nothing_wrong():
    assert said(world()) == []
    assert is_well(findings(world()))


# --- hosts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(names()) - {"lb-1", "redis-1"}))
def test_a_silent_host_is_told_of_once(name):
    assert only(silenced(name)) == f"RISK {name} does not answer: no answer"


def test_a_redis_primary_that_is_silent_leaves_clients_without_one():
    assert said(silenced("redis-1")) == [
        "DOWN no host is the primary: none says so",
        "RISK redis-1 does not answer: no answer",
    ]


def test_a_silent_host_is_not_well():
    assert not is_well(findings(silenced("redis-3")))


@pytest.mark.parametrize(
    "seen",
    [
        {"mysql": None, "mysql_error": "no answer"},
        {"mysql": mysql(primary=None, members=[], problems=["no member answers"])},
    ],
)
def test_a_bastion_that_lets_nobody_through_is_the_one_cause(seen):
    line = only(replace(silenced(*names()), **seen))
    assert line.startswith(
        "RISK bastion-1 does not let us through (no answer), so none of 12 hosts"
    )


def test_hosts_silent_behind_an_open_bastion_are_each_named():
    lines = said(silenced("app-1", "app-2", "redis-2"))
    assert [line.split()[1] for line in lines] == ["app-1", "app-2", "redis-2"]


def test_a_stopped_host_is_missing_and_can_be_started():
    found = findings(with_host("lb-2", state="stopped", report=None))
    assert [one.what for one in found] == ["lb-2 is stopped"]
    assert found[0].next == "aws ec2 start-instances --instance-ids i-lb-2"


def test_an_application_host_that_is_stopped_is_replaced_and_not_started():
    (found,) = findings(with_host("app-2", state="stopped", report=None))
    assert found.what == "app-2 is stopped; Auto Scaling launches another in its place"
    assert (found.next, found.page) == ("fab fleet.status", "replace-an-app-host")


def test_a_database_host_that_is_stopped_is_not_just_started():
    (found,) = findings(with_host("mysql-2", state="stopped", report=None))
    assert (found.what, found.next) == ("mysql-2 is stopped", "fab mysql.rejoin mysql-2")
    assert found.page == "mysql-failed-over"


def test_a_host_that_is_missing_is_told_of_beside_one_that_is_stopped():
    fleet = with_host("app-2", state="stopped", report=None)
    gone = replace(fleet, hosts=tuple(host for host in fleet.hosts if host.name != "app-3"))
    first, second = findings(gone)[:2]
    assert first.what == "1 of 3 app hosts run"
    assert second.what.startswith("app-2 is stopped")


def test_a_role_without_a_host_is_down_and_surplus_is_no_worry():
    fleet = world()
    gone = replace(fleet, hosts=tuple(h for h in fleet.hosts if h.role != "redis"), redis=())
    assert "DOWN 0 of 3 redis hosts run" in said(gone)
    more = replace(fleet, wanted={**fleet.wanted, "redis": 2})
    assert only(more) == "NOTE 3 redis hosts run, fleet.yml wants 2"


@pytest.mark.parametrize(
    ("disk", "line"),
    [
        (Disk("/", 89.9, 10.0, 1), None),
        (Disk("/", 91.0, 10.0, 1), "RISK 91 % of the space of / on mysql-1 is used"),
        (Disk("/", 99.0, 10.0, 1), "DOWN 99 % of the space of / on mysql-1 is used"),
        (Disk("/", 50.0, 95.0, 1), "RISK 95 % of the inodes of / on mysql-1 is used"),
    ],
)
def test_a_disk_is_reported_before_it_is_full(disk, line):
    lines = said(with_host("mysql-1", report=report("mysql", disks=(disk,))))
    assert lines == ([line] if line else [])


def test_a_unit_that_does_not_run_is_named_once():
    broken = report("app", units={"app": "failed"}, failed_units=("app.service", "cron.service"))
    assert said(with_host("app-1", report=broken)) == [
        "RISK app is failed on app-1",
        "RISK cron.service has failed on app-1",
    ]


@pytest.mark.parametrize(("offset", "word"), [(3.0, "3.0 s ahead of"), (-9.0, "9.0 s behind")])
def test_a_clock_that_is_wrong_is_reported_before_leases_suffer(offset, word):
    lines = said(with_host("redis-1", report=report("redis", clock_offset_seconds=offset)))
    assert lines == [f"RISK the clock of redis-1 is {word} this machine's"]


def test_images_that_are_old_gone_or_untested():
    newer = image("app", 2)
    fleet = world()
    hosts = tuple(replace(h, newer=newer) if h.role == "app" else h for h in fleet.hosts)
    line = only(replace(fleet, hosts=hosts))
    assert line == "NOTE app-1, app-2, app-3 run flotilla-app-1; flotilla-app-2 is newer and tested"
    assert is_well(findings(replace(fleet, hosts=hosts)))
    gone = only(with_host("app-1", image=None))
    assert "(ami-app-1) is not one of the fleet's any more" in gone
    untested = only(with_host("app-1", image=image("app", 1, "baked")))
    assert untested == "RISK app-1 runs flotilla-app-1, which never passed its test"


def test_without_images_to_read_no_host_is_accused():
    hosts = tuple(replace(h, image=None) for h in world().hosts)
    assert only(world(hosts=hosts, api_error="it is down")).startswith(
        "RISK AWS could not be asked"
    )


def test_a_missing_agent_is_one_note_for_all_hosts_with_the_same_reason():
    hosts = tuple(
        host(name, report=report(name.partition("-")[0], agent_missing="no route"))
        for name in names()
    )
    assert only(world(hosts=hosts)) == (
        "NOTE the CloudWatch agent is left out on 12 hosts: no route"
    )


# --- the way of a request ------------------------------------------------------------------------


def test_the_address_with_a_silent_load_balancer_is_down():
    lines = said(silenced("lb-1"))
    assert lines[0] == ("DOWN the Elastic IP 203.0.113.1 is with lb-1, which does not answer")
    assert "DOWN no load balancer is VRRP master" not in lines


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"edge_address": "", "edge_owner": ""}, "DOWN the fleet has no Elastic IP for clients"),
        ({"edge_owner": ""}, "DOWN nobody has the Elastic IP 203.0.113.1"),
        (
            {"edge_owner": "i-other"},
            "DOWN 203.0.113.1 is with i-other, which is no load balancer of this fleet",
        ),
        (
            {"edge_owner": "i-app-1"},
            "DOWN 203.0.113.1 is with app-1, which is no load balancer of this fleet",
        ),
        ({"edge_owner": "i-lb-2"}, "DOWN lb-1 is VRRP master, but lb-2 has 203.0.113.1"),
    ],
)
def test_the_address_in_the_wrong_hands_is_down(changes, line):
    assert only(world(**changes)) == line


def test_an_owner_that_ec2_did_not_tell_is_not_guessed_at():
    assert said(world(edge_owner=None, edge_address=None)) == []


def test_vrrp_without_a_master_or_with_two():
    none = world(balancers=(balancer("lb-1", "BACKUP"), balancer("lb-2", "FAULT")))
    assert only(none) == "DOWN no load balancer is VRRP master"
    two = world(balancers=(balancer("lb-1", "MASTER"), balancer("lb-2", "MASTER")))
    assert only(two) == "RISK lb-1 and lb-2 both say they are VRRP master"


@pytest.mark.parametrize(("name", "severity"), [("lb-1", "DOWN"), ("lb-2", "RISK")])
def test_haproxy_that_does_not_answer_is_worse_where_the_address_is(name, severity):
    balancers = tuple(
        replace(one, servers=None, error="refused") if one.name == name else one
        for one in world().balancers
    )
    assert only(world(balancers=balancers)) == (
        f"{severity} HAProxy on {name} does not answer: refused"
    )


def test_a_server_that_is_down_is_one_sentence_for_all_load_balancers():
    line = only(with_server("DOWN", "L4CON", "lb-1", "lb-2"))
    assert line == "RISK app-2 is DOWN (L4CON) on lb-1, lb-2"


def test_a_drained_server_can_be_taken_back():
    (found,) = findings(with_server("DRAIN", "L7OK", "lb-1"))
    assert found.next == "fab deploy.run --version v1 --adopt"


def test_while_a_deploy_runs_its_host_out_of_rotation_is_no_alarm():
    fleet = replace(with_server("MAINT", "", "lb-1", "lb-2"), lock="somebody holds it")
    stopped = replace(
        fleet, apps=(app("app-1", release="v2", served="v2"), app("app-2", ready=503), app("app-3"))
    )
    assert is_well(findings(stopped))
    assert not is_well(findings(replace(stopped, lock="")))


def test_a_load_balancer_that_does_not_know_a_host_or_knows_a_stranger():
    fewer = {name: server(name) for name in ("app-1", "app-2")}
    fleet = world(balancers=(balancer("lb-1", "MASTER", servers=fewer), balancer("lb-2", "BACKUP")))
    assert only(fleet).startswith("RISK lb-1 does not know app-3")
    more = {f"app-{n}": server(f"app-{n}") for n in (1, 2, 3, 9)}
    fleet = world(balancers=(balancer("lb-1", "MASTER", servers=more), balancer("lb-2", "BACKUP")))
    assert only(fleet) == "NOTE lb-1 still has app-9, which the fleet no longer has"


def follows(**changes: Any) -> Any:
    return balancer("lb-1", "MASTER", follows=replace(Follows(1.0, hosts=3), **changes))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"trouble": "EC2 gave no answer"}, "RISK lb-1 keeps the servers it has, whoever comes or"),
        ({"age_seconds": 300.0}, "RISK lb-1 looked at EC2 300 s ago for the last time: hosts that"),
        ({"notes": ("not drained yet",)}, "NOTE lb-1: not drained yet"),
    ],
)
def test_a_load_balancer_that_does_not_follow_the_hosts_says_why(changes, line):
    fleet = world(balancers=(follows(**changes), balancer("lb-2", "BACKUP")))
    assert only(fleet).startswith(line)


def test_a_load_balancer_that_follows_the_hosts_is_well():
    fleet = world(balancers=(follows(last="add app-3"), balancer("lb-2", "BACKUP")))
    assert findings(fleet) == []


def test_a_load_balancer_with_nobody_to_serve_is_down():
    none = {f"app-{n}": server(f"app-{n}", "DOWN", "L4CON") for n in (1, 2, 3)}
    fleet = world(balancers=(balancer("lb-1", "MASTER", servers=none), balancer("lb-2", "BACKUP")))
    assert "DOWN lb-1 has no server to give requests to" in said(fleet)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"release": None}, "RISK app-2 has no release"),
        ({"is_active": False}, "RISK the application does not run on app-2"),
        ({"is_stale": True}, "RISK app-2 runs another release than v1, which it should run"),
        ({"served": "v0"}, "NOTE app-2 answers as version v0 and should run v1"),
        ({"ready": None}, f"{UNREADY} does not answer"),
        ({"ready": 503}, f"{UNREADY} answers 503"),
        ({"error": "no tool"}, "RISK app-2: no tool"),
    ],
)  # fmt: skip
def test_an_application_host_that_is_not_right(changes, line):
    assert line in said(with_app("app-2", **changes))


def test_different_releases_are_named_with_their_hosts():
    line = only(with_app("app-3", release="v2", served="v2"))
    assert line == (
        "RISK application hosts run different releases: v1 on app-1, app-2; v2 on app-3"
    )


def proxied(proxy: str, *views: tuple[str, ...]) -> World:
    fleet = world()
    apps = (
        replace(one, proxies={**(one.proxies or {}), proxy: view})
        for one, view in zip(fleet.apps, views, strict=True)
    )
    return replace(fleet, apps=tuple(apps))


def test_no_primary_for_all_for_one_or_two_of_them():
    one = ("mysql-1",)
    assert only(proxied("mysql_writer", (), (), ())) == (
        "DOWN 3 of 3 application hosts reach no MySQL primary: app-1, app-2, app-3"
    )
    assert only(proxied("mysql_writer", one, (), one)) == (
        "DOWN 1 of 3 application hosts reach no MySQL primary: app-2"
    )
    both = proxied("mysql_writer", ("mysql-1", "mysql-2"), one, one)
    assert only(both).endswith("MySQL primary: mysql-1, mysql-2; it writes to neither")
    split = proxied("redis_primary", ("redis-1",), ("redis-2",), ("redis-1",))
    assert only(split) == (
        "DOWN application hosts write to different Redis primary hosts: redis-1, redis-2"
    )


def test_nobody_to_read_from():
    line = only(proxied("mysql_readers", (), ("mysql-2",), ("mysql-2",)))
    assert "reach no MySQL host to read from: app-1" in line


# --- data ----------------------------------------------------------------------------------------


def test_the_problems_of_the_cluster_are_told_with_its_own_next_command():
    broken = mysql(problems=["mysql-3: it does not replicate"], next="fab mysql.ensure")
    (found,) = findings(world(mysql=broken))
    assert (found.severity, found.next) == (Severity.RISK, "fab mysql.ensure")
    (found,) = findings(world(mysql=broken | {"primary": None}))
    assert (found.severity, found.page) == (Severity.DOWN, "mysql-takes-no-writes")


@pytest.mark.parametrize(
    ("hours", "what"),
    [
        (60.0, None),
        (40.0, "mysql-1: its certificate ends in 40 h and was not renewed"),
        (-1.0, "mysql-1: its certificate has ended: clients and replicas refuse it"),
    ],
)
def test_a_certificate_that_mysql_did_not_renew_is_told_of(hours: float, what: str | None) -> None:
    members = mysql()["members"]
    members[0]["certificate"] = [(hours - 168) * 3600, hours * 3600]
    found = findings(world(mysql=mysql(members=members), at=0.0))
    assert [one.what for one in found] == ([what] if what else [])


# --- certificates that hosts make for themselves --------------------------------------------------

DAY = 86400.0


def certified(*names: str, hours: float = 100.0, days: float = 400.0, **changes: Any) -> World:
    """Hosts whose certificate lasts so many hours more, and its issuer so many days."""
    fleet = world(at=0.0, **changes)
    tls = Tls(hours * 3600, days * DAY, 168)
    return replace(
        fleet,
        hosts=tuple(
            replace(one, report=replace(one.report, tls=tls))
            if one.report and one.name.startswith(names)
            else one
            for one in fleet.hosts
        ),
    )


@pytest.mark.parametrize("role", ["app", "mysql", "redis"])
@pytest.mark.parametrize(("days", "is_told"), [(91.0, False), (89.0, True), (8.0, True)])
def test_an_issuer_that_ends_is_told_of_for_every_role_once_and_90_days_before(
    role: str, days: float, is_told: bool
) -> None:
    found = findings(certified(role, days=days))
    said = f"what {role}-1, {role}-2, {role}-3 sign certificates with ends in {days:.0f} days"
    assert [(one.subject, one.what) for one in found] == ([(role, said)] if is_told else [])
    assert all("--limit" not in one.next and "fleet.provision" in one.next for one in found)
    assert is_well(found) is not is_told


@pytest.mark.parametrize("name", ["app-1", "mysql-1", "redis-1"])
@pytest.mark.parametrize(
    ("hours", "said"),
    [
        (48.0, None),
        (47.0, "its certificate ends in 47 h and was not renewed"),
        (-1.0, "its certificate has ended: clients refuse it"),
    ],
)
def test_a_certificate_that_a_host_did_not_renew_is_told_of_once(
    name: str, hours: float, said: str | None
) -> None:
    # What the service serves is the same file, and its report says so too.
    members = mysql()["members"]
    members[0]["certificate"] = [-700 * DAY, hours * 3600 if name == "mysql-1" else 9 * DAY]
    mine = Lasts(hours, 168.0, 400.0) if name == "redis-1" else None
    redis = (cache(1, "primary", certificate=mine), cache(2), cache(3))
    fleet = certified(name, hours=hours, mysql=mysql(members=members), redis=redis)
    # The other databases' hosts know how long theirs are to last, too.
    found = [one for one in findings(fleet) if "certificate" in one.what]
    expected = [f"{name}: {said}"] if said else []
    assert [one.what for one in found if one.subject == name] == expected
    assert all(one.page == "certificate-runs-out" for one in found)


@pytest.mark.parametrize("hours", [47.0, 20.0, 1.0])
def test_near_its_issuers_end_a_certificate_is_late_however_short_it_is_itself(hours: float):
    """Each is shorter than the one before: measured by its own length none was ever late."""
    members = mysql()["members"]
    members[0]["certificate"] = [(hours - hours * 1.5) * 3600, hours * 3600]
    fleet = certified("mysql-1", hours=hours, days=hours / 24, mysql=mysql(members=members))
    told = {one.subject: one for one in findings(fleet)}
    assert told["mysql"].what.startswith("what mysql-1 signs certificates with ends in")
    mine = told["mysql-1"]
    assert mine.what == f"mysql-1: its certificate ends in {hours:.0f} h and so does its issuer"
    assert mine.next == "fab fleet.provision, then fab fleet.configure"


def test_a_server_that_did_not_take_its_hosts_certificate_is_told_of_by_its_settings() -> None:
    members = mysql()["members"]
    # Valid for two years by its dates, and made for a week.
    members[0]["certificate"] = [-700 * DAY, 60 * 3600]
    assert findings(certified("mysql-1", mysql=mysql(members=members))) == []
    members[0]["certificate"] = [-700 * DAY, 40 * 3600]
    (found,) = findings(certified("mysql-1", mysql=mysql(members=members)))
    assert found.what == "mysql-1: its certificate ends in 40 h and was not renewed"


def test_a_host_without_a_certificate_and_one_that_does_not_say_are_told_of() -> None:
    members = mysql()["members"]
    members[0]["certificate"] = [-700 * DAY, 60 * 3600]
    for tls, severity, said in (
        (Tls(None, 400 * DAY, 168), Severity.RISK, "mysql-1: it has no certificate"),
        (Tls(error="timed out"), Severity.NOTE, "mysql-1: when its certificate ends is not known"),
    ):
        fleet = with_host("mysql-1", report=report("mysql", tls=tls))
        (found,) = findings(replace(fleet, mysql=mysql(members=members), at=0.0))
        assert (found.severity, said in found.what) == (severity, True)


def test_many_hosts_are_counted() -> None:
    fleet = certified("app", days=10)
    hosts = [replace(host(f"app-{n}"), report=fleet.by_role("app")[0].report) for n in range(9)]
    found = findings(replace(fleet, wanted={"app": 9}, hosts=tuple(hosts), mysql=None))
    assert "what 9 app hosts sign certificates with ends in 10 days" in [one.what for one in found]


def test_a_primary_that_takes_no_writes_is_down_however_it_is_called():
    members = mysql()["members"]
    members[0]["writable"] = False
    problem = "mysql-1 is primary by the record but read-only"
    paused = {"by": "ana", "reason": "new disks", "until": 1.0}
    sentence = "automatic failover is paused by ana: new disks"
    found = findings(
        world(
            mysql=mysql(
                members=members,
                problems=[problem, sentence],
                next="fab mysql.ensure",
                paused=paused,
            )
        )
    )
    assert [(one.severity, one.next, one.page) for one in found] == [
        (Severity.DOWN, "fab mysql.ensure", "mysql-takes-no-writes"),
        (Severity.RISK, "fab mysql.unpause", "mysql-failover-is-refused"),
    ]


def test_a_failover_that_nobody_looked_at_is_told():
    (found,) = findings(world(mysql=mysql(blocked_until=1.0)))
    assert (found.severity, found.page) == (Severity.RISK, "mysql-failed-over")
    assert found.next == "fab mysql.history --acknowledge"


@pytest.mark.parametrize(
    ("problem", "page"),
    [
        ("mysql-3: it does not replicate", "mysql-replica-stopped"),
        ("mysql-3 is kept out (it is ahead): fab mysql.rejoin mysql-3", "mysql-host-is-kept-out"),
        ("automatic failover is paused by ana: new disks", "mysql-failover-is-refused"),
    ],
)
def test_each_problem_of_the_database_leads_to_its_page(problem: str, page: str) -> None:
    paused = {"by": "ana", "reason": "new disks", "until": 1.0} if "paused" in problem else None
    (found,) = findings(world(mysql=mysql(problems=[problem], paused=paused)))
    assert found.page == page


def test_a_replica_that_lags_and_writes_that_nobody_acknowledges():
    members = mysql()["members"]
    members[2]["lag_seconds"] = 61.0
    assert only(world(mysql=mysql(members=members))) == "RISK mysql-3 is 61 s behind the primary"
    members = mysql()["members"]
    members[0]["acknowledging_replicas"] = 0
    assert only(world(mysql=mysql(members=members))).startswith("DOWN no replica acknowledges")


def test_a_cluster_that_cannot_be_looked_at():
    assert only(world(mysql=None, mysql_error="the record is gone")) == (
        "RISK the MySQL cluster could not be looked at: the record is gone"
    )


def test_redis_without_a_primary_is_down_and_a_broken_link_is_not():
    none = world(redis=(cache(1), cache(2), cache(3)))
    assert said(none)[0].startswith("DOWN no host is the primary")
    cut = world(redis=(cache(1, "primary"), cache(2), cache(3, is_linked=False)))
    assert only(cut) == "RISK redis-3: its link to redis-1 is down"


def test_a_redis_replica_far_behind():
    far = world(
        redis=(cache(1, "primary", offset=20_000_000), cache(2, offset=20_000_000), cache(3))
    )
    assert only(far) == "RISK redis-3 is 20 MB behind redis-1"


# --- all together --------------------------------------------------------------------------------


@given(quiet=st.sets(st.sampled_from(names())))
def test_whoever_is_silent_is_named_exactly_once(quiet):
    fleet = silenced(*quiet)
    lines = [line for line in said(fleet) if "does not answer: " in line]
    everybody = len(quiet) == len(names())
    assert len(lines) == (0 if everybody else len(quiet))
    assert said(fleet) or not quiet


@given(
    quiet=st.sets(st.sampled_from(names())),
    stopped=st.sets(st.sampled_from(names())),
    owner=st.sampled_from(["", "i-lb-1", "i-lb-2", "i-stranger", None]),
    lock=st.sampled_from(["", "somebody"]),
    looked=st.booleans(),
)
def test_every_finding_has_a_sentence_and_a_command_and_the_worst_is_first(
    quiet, stopped, owner, lock, looked
):
    fleet = silenced(*quiet)
    fleet = replace(
        fleet,
        hosts=tuple(
            replace(h, state="stopped", silent="") if h.name in stopped else h for h in fleet.hosts
        ),
        edge_owner=owner,
        lock=lock,
        mysql=fleet.mysql if looked else None,
        mysql_error="" if looked else "no answer",
    )
    found = findings(fleet)
    assert [one.severity for one in found] == sorted(one.severity for one in found)
    assert all(one.what and one.next and one.subject for one in found)
    assert len({one.what for one in found}) == len(found), "one cause, one sentence"
    assert {one.page for one in found} <= {"", *PAGES}, "a page that there is"


@pytest.mark.parametrize(
    ("seen", "said_"),
    [
        (Backups(None, "", 1e6), "RISK there is no full backup"),
        (Backups(1e6 - 40 * 3600, "", 1e6), "RISK the newest full backup is 40 h old"),
        (Backups(1e6 - 3600, "the archive is behind", 1e6), "RISK the archive is behind"),
        (
            Backups(1e6 - 3600, "", 1e6, Drilled(1e6 - 60, "it was not exact")),
            "RISK it was not exact",
        ),
        (
            Backups(1e6 - 3600, "", 1e6, Drilled(1e6 - 52 * 3600, "")),
            "RISK the newest restore drill is 52 h old",
        ),
        (Backups(1e6 - 3600, "", 1e6), "RISK no restore drill was ever made"),
        (Backups(None, "", 1e6, silent="no route"), "RISK S3 does not tell what is backed up: no"),
    ],
)
def test_a_recovery_point_that_is_too_old_is_a_risk(seen, said_):
    old = tuple(replace(host, age_seconds=9e5) for host in world().hosts)
    # An old backup or none is told of alone where a drill is another matter.
    if seen.drilled is None and "drill" not in said_:
        seen = replace(seen, drilled=Drilled(1e6 - 60, ""))
    assert only(replace(world(), hosts=old, backups=seen)).startswith(said_)


def test_how_far_the_archive_is_behind_is_told_while_s3_is_away():
    seen = replace(world(), backups=Backups(None, "it is 99 s behind", 1e6, silent="no route"))
    assert [one.what for one in findings(seen)][-1] == "it is 99 s behind"


def young():
    return tuple(replace(host, age_seconds=60.0) for host in world().hosts)


def test_good_backups_and_a_new_fleet_without_one_are_well():
    good = Backups(1e6 - 3600, "", 1e6, Drilled(1e6 - 3600, ""))
    assert is_well(findings(replace(world(), backups=good)))
    assert is_well(findings(replace(world(), hosts=young(), backups=Backups(None, "x", 1e6))))
    failed = Backups(1e6 - 60, "", 1e6, Drilled(1e6 - 60, "the drill failed"))
    assert only(replace(world(), hosts=young(), backups=failed)).startswith("RISK the drill failed")


def test_redis_without_a_recent_backup_is_a_risk_unless_it_is_new():
    old = tuple(replace(host, age_seconds=9e5) for host in world().hosts)
    for newest, said_ in (
        (None, "RISK there is no backup of Redis"),
        (1e6 - 28 * 3600, "RISK the newest backup of Redis is 28 h old"),
    ):
        seen = replace(world(), redis_backups=RedisBackups(newest, 1e6))
        assert is_well(findings(replace(seen, hosts=young())))
        assert only(replace(seen, hosts=old)).startswith(said_)
    good = RedisBackups(1e6 - 3600, 1e6)
    assert is_well(findings(replace(world(), hosts=old, redis_backups=good)))
