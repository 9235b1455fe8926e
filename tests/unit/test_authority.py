"""The fleet's authority in SSM, and what its parts may vouch for, as OpenSSL judges it."""

from __future__ import annotations

import ssl
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from fleets import Make, maker
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws

from flotilla.errors import Refused
from flotilla.provision import authority as parts
from flotilla.provision.change import carry_out
from flotilla.provision.world import World
from flotilla.rules import authority as rules

ROLES = Path(__file__).resolve().parents[2] / "roles"
sys.path.insert(0, str(ROLES / "tls" / "files"))

import tls_leaf as tool  # noqa: E402  the role's own file

NOW = datetime.now(UTC).replace(microsecond=0)
ZONE, NETWORK = "redis.shop.blue.internal", "10.40.0.0/16"
ROOT = rules.root("shop", "blue", rules.new_key(), NOW)
ISSUER = rules.issuer(ZONE, NETWORK, ROOT, rules.new_key(), NOW)
WANTED = tool.Settings([ZONE, f"redis-1.{ZONE}"], ["10.40.1.5"], 168, "root")


def leaf(wanted: Any = WANTED, by: rules.Authority = ISSUER, now: datetime = NOW) -> bytes:
    return bytes(tool.made(wanted, *by, now)[0])


def shaken(folder: Path, served: bytes, name: str, trusted: rules.Authority = ROOT) -> str:
    """What a client says that connects to a server of this certificate by ``name``; "" for yes."""
    (folder / "leaf.pem").write_bytes(served)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "leaf.pem")
    client = ssl.create_default_context(cadata=trusted.public())
    # What Python 3.13 and later, so the hosts, ask for by default.
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(incoming, outgoing, server_hostname=name)
    other = server.wrap_bio(outgoing, incoming, server_side=True)
    for _ in range(4):
        for end in (one, other):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as error:
                return error.verify_message
    return ""


@pytest.mark.parametrize("name", [ZONE, f"redis-1.{ZONE}", "10.40.1.5"])
def test_a_host_is_believed_by_its_names_and_its_address(tmp_path, name):
    assert shaken(tmp_path, leaf(), name) == ""


@pytest.mark.parametrize("name", [f"redis-2.{ZONE}", "10.40.1.6", "mysql.shop.blue.internal"])
def test_and_by_no_other(tmp_path, name):
    assert "mismatch" in shaken(tmp_path, leaf(), name)


@pytest.mark.parametrize(
    ("names", "addresses"),
    [
        (["mysql.shop.blue.internal"], []),
        (["redis.shop.green.internal"], []),
        (["xredis.shop.blue.internal"], []),
        (["example.com"], []),
        ([ZONE], ["192.0.2.1"]),
    ],
)
def test_an_issuer_vouches_for_nothing_outside_of_its_role(tmp_path, names, addresses):
    """Whoever breaks into a Redis host has its issuer, and is still no MySQL server."""
    wanted = tool.Settings(names, addresses, 168, "root")
    name = addresses[0] if addresses else names[0]
    assert shaken(tmp_path, leaf(wanted), name) == "permitted subtree violation"
    assert "may not vouch for" in tool.why_not(wanted, ISSUER.certificate, ROOT.certificate, NOW), (
        "and the host says so before it makes one"
    )


def test_an_issuer_makes_no_further_issuer(tmp_path):
    below = rules.issuer(f"a.{ZONE}", NETWORK, ISSUER, rules.new_key(), NOW)
    wanted = tool.Settings([f"a.{ZONE}"], [], 168, "root")
    served = leaf(wanted, by=below) + ISSUER.public().encode()
    assert shaken(tmp_path, served, f"a.{ZONE}") == "path length constraint exceeded"


def test_another_fleets_authority_and_what_has_ended_are_refused(tmp_path):
    other = rules.root("shop", "green", rules.new_key(), NOW)
    assert "unable to get" in shaken(tmp_path, leaf(), ZONE, trusted=other)
    ended = leaf(now=NOW - timedelta(days=8), by=_older())
    assert shaken(tmp_path, ended, ZONE) == "certificate has expired"


def _older() -> rules.Authority:
    return rules.issuer(ZONE, NETWORK, ROOT, rules.new_key(), NOW - timedelta(days=30))


hours = st.integers(1, 24 * 400)


@given(lasts=hours, age=st.integers(0, 24 * 500), issuer_age=st.integers(0, 729))
def test_a_certificate_that_is_kept_is_valid_and_has_a_third_left(lasts, age, issuer_age):
    start = NOW - timedelta(days=issuer_age)
    root = rules.root("shop", "blue", ROOT.key, start)
    issuer = rules.issuer(ZONE, NETWORK, root, ISSUER.key, start)
    wanted = tool.Settings(WANTED.names, WANTED.addresses, lasts, "root")
    _, made = tool.made(wanted, *issuer, NOW)
    assert made.not_valid_after_utc <= issuer.certificate.not_valid_after_utc
    assert not tool.why_new(made, wanted, issuer.certificate, NOW) or issuer_age > 0
    then = NOW + timedelta(hours=age)
    if not tool.why_new(made, wanted, issuer.certificate, then):
        assert made.not_valid_before_utc <= then < made.not_valid_after_utc
        is_last = made.not_valid_after_utc == issuer.certificate.not_valid_after_utc
        assert is_last or made.not_valid_after_utc - then >= timedelta(hours=lasts) / 3


# What a host's clock may say, in hours from what it is.
wrong = st.integers(-24 * 400, 24 * 30)


@given(runs=st.lists(st.tuples(st.integers(0, 24 * 30), wrong), min_size=1, max_size=8))
def test_whatever_a_clock_says_a_run_leaves_a_certificate_no_worse(runs):
    """And one by a clock that is right leaves one that is valid for long enough."""
    issuer = ISSUER.certificate
    truth, kept = NOW, None
    for hours, ahead in runs:
        truth += timedelta(hours=hours)
        for clock in (truth + timedelta(hours=ahead), truth):
            before, kept = kept, _run(kept, issuer, clock)
            if before is not None and before != kept:
                assert kept.not_valid_after_utc >= before.not_valid_after_utc
            assert kept is None or kept.not_valid_before_utc <= truth
            assert kept is None or kept.not_valid_after_utc <= issuer.not_valid_after_utc
            again = _run(kept, issuer, clock)
            assert again == kept, "a second run by the same clock has nothing to do"
        assert kept is not None
        assert kept.not_valid_before_utc <= truth < kept.not_valid_after_utc
        assert kept.not_valid_after_utc - truth >= timedelta(hours=168) / 3


@given(gaps=st.lists(st.integers(0, 24 * 30), max_size=12))
def test_with_a_right_clock_none_lasts_longer_than_mozillas_modern_profile_allows(gaps):
    kept, now = _run(None, ISSUER.certificate, NOW), NOW
    for hours in gaps:
        now += timedelta(hours=hours)
        kept = _run(kept, ISSUER.certificate, now)
        assert kept.not_valid_after_utc - kept.not_valid_before_utc <= timedelta(days=90)


@given(ahead=st.integers(0, 24 * 700), late=st.lists(st.integers(0, 24 * 60), max_size=6))
def test_after_one_run_by_any_clock_a_host_is_believed_for_good(ahead, late):
    issuer, truth = ISSUER.certificate, NOW + timedelta(days=1)
    kept = _run(_run(None, issuer, truth), issuer, truth + timedelta(hours=ahead))
    for hours in late:
        truth += timedelta(hours=hours)
        kept = _run(kept, issuer, truth)
        assert kept.not_valid_before_utc <= truth < kept.not_valid_after_utc


def _run(kept: Any, issuer: x509.Certificate, clock: datetime) -> Any:
    """What a host has after a run by that clock."""
    if not tool.why_new(kept, WANTED, issuer, clock):
        return kept
    if tool.why_not(WANTED, issuer, ROOT.certificate, clock):
        return kept
    return tool.made(WANTED, ISSUER.key, issuer, clock, kept)[1]


@pytest.mark.parametrize("days", [-20, -3, 3, 5, 30, 300])
def test_clients_believe_a_host_after_one_run_with_a_wrong_clock(home: Path, tmp_path, days):
    """30 days ahead it was refused by all, 20 days behind it had ended."""
    issuer = _older()
    put(home, issuer)
    usual = timedelta(hours=100)
    assert tool.renew(home, NOW - usual) == 0
    for late in (0, 1, 24):
        clock = NOW + timedelta(days=days, hours=late)
        assert tool.renew(home, clock) == 0
        folder = tmp_path / "client"
        folder.mkdir(exist_ok=True)
        assert shaken(folder, (home / "leaf.pem").read_bytes(), ZONE) == ""


def test_one_of_before_that_was_dated_from_when_it_was_made_is_replaced_by_no_worse():
    """What hosts have when the tool is updated; their clock may be wrong then, too."""
    _, old = tool.made(WANTED, *ISSUER, NOW + timedelta(days=20))
    behind = tool.made(WANTED, *ISSUER, NOW + timedelta(days=1), old)[1]
    assert behind.not_valid_after_utc == old.not_valid_after_utc


def test_an_issuer_that_ends_fails_the_run_a_week_before_and_restarts_nobody(home: Path, capsys):
    put(home, after=[["sh", "-c", f"echo told >> {home}/told"]])
    end = ISSUER.certificate.not_valid_after_utc
    assert tool.renew(home, end - timedelta(days=8)) == 0
    assert tool.renew(home, end - timedelta(days=4)) == 1
    assert tool.renew(home, end - timedelta(hours=60)) == 1
    last = (home / "leaf.pem").read_bytes()
    for hours in (50, 20, 1):
        capsys.readouterr()
        assert tool.renew(home, end - timedelta(hours=hours)) == 1
        (told,) = capsys.readouterr().err.splitlines()
        assert "and what it signed not later: fab fleet.provision, then fab fleet.conf" in told
        # A playbook may have something else to mend.
        assert tool.renew(home, end - timedelta(hours=hours), tell=False) == 0
        assert (home / "leaf.pem").read_bytes() == last
    assert tool.renew(home, end) == 1
    assert "fab fleet.provision" in capsys.readouterr().err
    assert (home / "told").read_text() == "told\n" * 7


@pytest.mark.parametrize(
    ("wanted", "issuer", "why"),
    [
        (tool.Settings([ZONE], ["10.40.1.5"], 168, "root"), ISSUER, "other names"),
        (tool.Settings(WANTED.names, ["10.40.1.9"], 168, "root"), ISSUER, "other names"),
        (WANTED, rules.issuer(ZONE, NETWORK, ROOT, rules.new_key(), NOW), "another issuer"),
        (WANTED, ISSUER, ""),
    ],
)
def test_a_new_one_is_made_when_names_or_issuer_change(wanted, issuer, why):
    made = x509.load_pem_x509_certificate(leaf())
    assert why in tool.why_new(made, wanted, issuer.certificate, NOW)


def test_an_issuer_is_replaced_in_time_and_when_its_root_or_its_names_change():
    def why(zone: str = ZONE, root: rules.Authority = ROOT, days: int = 0) -> str:
        now = NOW + timedelta(days=days)
        return rules.why_new(ISSUER.pem(), zone, NETWORK, root.certificate, now)

    assert (why(), why(days=486)) == ("", "")
    assert "it ends" in why(days=487)
    assert "other names" in why("mysql.shop.blue.internal")
    assert "another root" in why(root=rules.root("shop", "blue", rules.new_key(), NOW))
    assert "cannot be read" in rules.why_new("junk", ZONE, NETWORK, ROOT.certificate, NOW)


# --- the host's tool ------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Path:
    put(tmp_path)
    return tmp_path


def put(home: Path, issuer: rules.Authority = ISSUER, **changes: Any) -> None:
    """What role tls puts into /etc/flotilla/tls."""
    settings = {"names": WANTED.names, "addresses": WANTED.addresses, "hours": 168, "group": "root"}
    (home / "authority.pem").write_text(ROOT.public())
    (home / "issuer.pem").write_text(issuer.pem())
    (home / "tls.json").write_text(tool.json.dumps(settings | changes))


def test_one_is_made_when_it_is_time_and_services_are_told_at_every_run(home: Path) -> None:
    put(home, after=[["sh", "-c", f"echo told >> {home}/told"]])
    assert tool.renew(home, NOW) == 0
    first = (home / "leaf.pem").read_bytes()
    assert (home / "leaf.pem").stat().st_mode & 0o777 == 0o640
    assert tool.renew(home, NOW + timedelta(hours=100)) == 0
    assert (home / "leaf.pem").read_bytes() == first
    assert tool.renew(home, NOW + timedelta(hours=113)) == 0
    assert (home / "leaf.pem").read_bytes() != first
    assert (home / "told").read_text() == "told\n" * 3


def test_a_service_that_does_not_take_it_is_told_of_and_told_again(home: Path) -> None:
    put(home, after=[["false"], ["no-such-program"], ["sh", "-c", f"echo told > {home}/told"]])
    assert tool.renew(home, NOW) == 1
    assert (home / "told").exists(), "one that fails keeps nobody else from it"


def test_a_service_that_is_restarted_may_look_for_a_certificate(home: Path) -> None:
    """A Sentinel is, and does so before it starts; it waited for who waited for it."""
    put(home, after=[["flock", "--nonblock", f"{home}/.lock", "true"]])
    assert tool.renew(home, NOW) == 0


@pytest.mark.parametrize(
    ("issuer", "days", "said"),
    [
        (
            rules.issuer("mysql.shop.blue.internal", NETWORK, ROOT, ROOT.key, NOW),
            0,
            "may not vouch",
        ),
        (ISSUER, 731, "valid until"),
        (
            rules.issuer(ZONE, NETWORK, rules.root("a", "b", ISSUER.key, NOW), ROOT.key, NOW),
            0,
            "was not made by the authority",
        ),
    ],
)
def test_without_a_good_issuer_the_old_one_is_kept(home: Path, capsys, issuer, days, said) -> None:
    put(home, issuer)
    (home / "leaf.pem").write_bytes(b"as it was")
    assert tool.renew(home, NOW + timedelta(days=days)) == 1
    assert (home / "leaf.pem").read_bytes() == b"as it was"
    told = capsys.readouterr().err
    assert said in told
    assert "fab fleet.provision" in told


def test_status_tells_when_everything_ends(home: Path, capsys) -> None:
    tool.renew(home, NOW)
    capsys.readouterr()
    tool.status(home, NOW)
    told = tool.json.loads(capsys.readouterr().out)
    ends = told["ends"]
    assert told["hours"] == 168
    assert NOW.timestamp() < ends["leaf"] < ends["issuer"] < ends["root"]


# --- SSM ------------------------------------------------------------------------------------------


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    with mock_aws():
        yield maker(tmp_path)


def words(world: World) -> list[str]:
    return [str(change) for stage in parts.stages(world) for change in stage]


def value(world: World, path: str) -> str:
    answer = world.client("ssm").get_parameter(Name=f"/flotilla/lab/{path}", WithDecryption=True)
    return str(answer["Parameter"]["Value"])


def test_it_is_made_once_and_the_root_before_what_hangs_on_it(account: Make) -> None:
    world = account()
    assert words(world) == [
        "create authority /flotilla/lab/operator/authority",
        "create certificate /flotilla/lab/authority/certificate",
        "create issuer /flotilla/lab/redis/tls_issuer",
        "create issuer /flotilla/lab/app/tls_issuer",
        "create issuer /flotilla/lab/mysql/tls_issuer",
    ]
    carry_out(parts.stages(world))
    assert words(world) == []
    root, issuer = (rules.read(value(world, p)) for p in ("operator/authority", "redis/tls_issuer"))
    issuer.certificate.verify_directly_issued_by(root.certificate)
    assert value(world, "authority/certificate") == root.public()
    types = world.client("ssm").describe_parameters()["Parameters"]
    assert {one["Type"] for one in types} == {"SecureString"}


def test_what_was_lost_comes_back_from_the_root(account: Make) -> None:
    world = account()
    carry_out(parts.stages(world))
    root = value(world, "operator/authority")
    for path in ("authority/certificate", "redis/tls_issuer"):
        world.client("ssm").delete_parameter(Name=f"/flotilla/lab/{path}")
    carry_out(parts.stages(world))
    assert words(world) == []
    assert value(world, "operator/authority") == root


def test_a_root_that_was_lost_is_never_made_anew_beside_what_it_signed(account: Make) -> None:
    world = account()
    carry_out(parts.stages(world))
    ssm = world.client("ssm")
    ssm.delete_parameter(Name="/flotilla/lab/operator/authority")
    with pytest.raises(Refused, match=r"no parameter .*operator/authority, and has") as refusal:
        parts.stages(world)
    command = "aws ssm delete-parameters --names "
    names = refusal.value.next.partition(command)[2].partition(",")[0].split()
    ssm.delete_parameters(Names=names)
    carry_out(parts.stages(world))
    assert words(world) == []


def test_a_root_that_cannot_be_read_is_never_replaced(account: Make) -> None:
    world = account()
    carry_out(parts.stages(world))
    world.client("ssm").put_parameter(
        Name="/flotilla/lab/operator/authority", Value="junk", Overwrite=True
    )
    with pytest.raises(Refused, match=r"operator/authority is no authority"):
        parts.stages(world)
    assert value(world, "operator/authority") == "junk"
