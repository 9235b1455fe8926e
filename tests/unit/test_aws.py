"""AWS at the edge: whose account, what an operator is told, and who holds a lease."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore import exceptions as boto
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws

from flotilla import config
from flotilla.aws import dynamo, lease, waiters
from flotilla.aws import session as aws
from flotilla.aws.errors import describe, described
from flotilla.aws.items import Table
from flotilla.aws.lease import Held, Lease
from flotilla.errors import FlotillaError, Refused, Unreachable
from flotilla.settings import Settings

REGION = "eu-central-1"


@pytest.fixture(scope="module")
def settings() -> Settings:
    """The lab's settings on AWS itself, which moto stands in for inside this process."""
    lab = config.load("lab")
    return lab.model_copy(
        update={
            "aws": lab.aws.model_copy(
                update={"endpoint_url": None, "profile": None, "credentials_file": None}
            )
        }
    )


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(aws, "_clients", {})
    with mock_aws():
        yield


# -- whose account -------------------------------------------------------------------------------


def test_subprocesses_act_on_the_fleets_account_and_no_other():
    lab = config.load("lab")
    shell = {
        "AWS_ACCESS_KEY_ID": "AKIAPRODUCTION",
        "AWS_SESSION_TOKEN": "t",
        "AWS_PROFILE": "production",
        "AWS_ENDPOINT_URL_S3": "https://elsewhere.example",
        "PATH": "/bin",
    }
    assert aws.subprocess_environment(lab, shell) == {
        "PATH": "/bin",
        "AWS_PROFILE": "lab",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_SHARED_CREDENTIALS_FILE": str(lab.root / "var/lab/aws/credentials"),
        "AWS_ENDPOINT_URL": "http://127.0.0.1:4566",
    }


def test_without_a_profile_the_shells_credentials_are_used(settings):
    shell = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_PROFILE": "mine"}
    assert shell.items() <= aws.subprocess_environment(settings, shell).items()


def test_a_client_is_made_once_for_each_account(settings, cloud):
    elsewhere = settings.model_copy(update={"region": "eu-west-1"})
    assert aws.client(settings, "ec2") is aws.client(settings, "ec2")
    assert aws.client(settings, "ec2") is not aws.client(elsewhere, "ec2")


# -- described errors ----------------------------------------------------------------------------


def answer(code: str, status: int = 400) -> boto.ClientError:
    return boto.ClientError(
        {"Error": {"Code": code, "Message": "said AWS"},
         "ResponseMetadata": {"HTTPStatusCode": status}},
        "RunInstances",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (boto.EndpointConnectionError(endpoint_url="x"), Unreachable, "does not answer"),
        (boto.ConnectTimeoutError(endpoint_url="x"), Unreachable, "does not answer"),
        (boto.ReadTimeoutError(endpoint_url="x"), Unreachable, "does not answer"),
        (boto.NoCredentialsError(), Refused, "no AWS credentials for profile 'lab'"),
        (boto.ProfileNotFound(profile="lab"), Refused, "in var/lab/aws/credentials"),
        (answer("ExpiredToken"), Refused, "rejects the credentials of profile 'lab'"),
        (answer("UnauthorizedOperation", 403), Refused, "is not allowed to call RunInstances"),
        (answer("RequestLimitExceeded", 503), Unreachable, "RunInstances answered Request"),
        (answer("Strange", 500), Unreachable, "RunInstances answered Strange: said AWS"),
        (answer("InvalidParameterValue"), FlotillaError, "answered InvalidParameterValue: said"),
        (boto.ParamValidationError(report="bad"), FlotillaError, "could not launch app-1"),
    ],
)
def test_what_boto_raises_is_said_in_our_words(raised, kind, said):
    error = describe(config.load("lab"), "launch app-1", raised)
    assert type(error) is kind
    assert said in str(error)
    assert str(error).startswith("could not launch app-1: ")


def test_the_next_command_comes_from_the_fleet_file():
    down = boto.EndpointConnectionError(endpoint_url="x")
    assert str(describe(config.load("lab"), "list", down)).endswith("Next: fab lab.up")


def test_other_errors_and_results_pass_through(settings):
    with pytest.raises(ZeroDivisionError), described(settings, "divide"):
        raise ZeroDivisionError

    @described(settings, "add")
    def add(left: int, right: int) -> int:
        return left + right

    assert add(1, 2) == 3


# -- listing and waiting -------------------------------------------------------------------------


def launched(count: int) -> list[str]:
    answer = boto3.client("ec2", REGION).run_instances(
        ImageId="ami-12c6146b", MinCount=count, MaxCount=count
    )
    return [one["InstanceId"] for one in answer["Instances"]]


def test_all_pages_are_listed(settings, cloud):
    s3 = boto3.client("s3", REGION)
    s3.create_bucket(Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": REGION})
    for number in range(5):
        s3.put_object(Bucket="bucket", Key=f"{number}", Body=b"")
    found = waiters.paginate(
        settings,
        "s3",
        "list_objects_v2",
        "Contents",
        Bucket="bucket",
        PaginationConfig={"PageSize": 2},
    )
    assert [one["Key"] for one in found] == list("01234")


def test_waiting_ends_when_every_instance_is_there(settings, cloud):
    ids = launched(2)
    boto3.client("ec2", REGION).stop_instances(InstanceIds=ids[:1])

    def stop_the_other(_: float) -> None:
        boto3.client("ec2", REGION).stop_instances(InstanceIds=ids)

    waiters.instances_in_state(settings, ids, "stopped", seconds=9, sleep=stop_the_other)


def test_the_deadline_names_who_is_late(settings, cloud):
    ids = launched(1)
    clock = iter([0.0, 1.0, 99.0])
    with pytest.raises(Unreachable, match=rf"not stopped after 9 s: {ids[0]} \(running\)"):
        waiters.instances_in_state(
            settings, ids, "stopped", seconds=9, clock=lambda: next(clock), sleep=lambda _: None
        )


def test_an_instance_that_dies_on_the_way_is_not_waited_for(settings, cloud):
    ids = launched(1)
    boto3.client("ec2", REGION).terminate_instances(InstanceIds=ids)
    with pytest.raises(FlotillaError, match="terminated instead of becoming running"):
        waiters.instances_in_state(settings, ids, "running", seconds=9, sleep=lambda _: None)


# -- the lease: the rule -------------------------------------------------------------------------


def mine(holder: str = "ann", term: int = 0, until: float = 160.0) -> Lease:
    return Lease("deploy", term, holder, "release 7", 100.0, until)


def test_a_lease_nobody_ever_held_starts_at_term_one():
    taken = lease.decide(None, "acquire", mine(), now=100.0)
    assert isinstance(taken, Lease)
    assert (taken.term, taken.holder, taken.acquired_at) == (1, "ann", 100.0)


def test_a_held_lease_is_refused_with_its_holder():
    reason = lease.decide(mine("bob", 4), "acquire", mine(), now=164.9)
    assert reason == (
        "deploy is taken: held by bob in term 4 since 1970-01-01 00:01:40 UTC, "
        "until 1970-01-01 00:02:40 UTC unless it is renewed"
    )


def test_an_expired_lease_may_be_taken_after_the_clocks_skew():
    taken = lease.decide(mine("bob", 4), "acquire", mine(), now=165.1)
    assert isinstance(taken, Lease)
    assert (taken.term, taken.holder) == (5, "ann")


def test_renewing_never_shortens():
    renewed = lease.decide(mine("ann", 4, 160.0), "renew", mine("ann", 4, 150.0), now=120.0)
    assert isinstance(renewed, Lease)
    assert renewed.expires_at == 160.0


leases = st.one_of(
    st.none(),
    st.builds(
        Lease,
        st.just("deploy"),
        st.integers(0, 9),
        st.sampled_from(["", "ann", "bob"]),
        st.just("why"),
        st.just(0.0),
        st.floats(0, 1000),
    ),
)
actions = st.sampled_from(["acquire", "renew", "release", "take over"])


@given(leases, actions, st.integers(0, 9), st.floats(0, 1000))
def test_terms_never_shrink_and_only_holders_keep_one(found, action, term, now):
    wanted = lease.decide(found, action, mine("ann", term, now + 60), now=now)
    if isinstance(wanted, str):
        return
    before = found.term if found else 0
    if action in {"renew", "release"}:
        assert found is not None
        assert (found.holder, found.term) == ("ann", term)
        assert wanted.term == before
    else:
        assert wanted.term == before + 1
        assert action == "take over" or found is None or found.is_free(now)


# -- the lease: the table ------------------------------------------------------------------------


@pytest.fixture
def table(settings: Settings, cloud: None) -> Table:
    boto3.client("dynamodb", REGION).create_table(
        TableName=settings.name_of("locks"),
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    return dynamo.locks(settings)


def take(table: Table, holder: str, now: float, **more: Any) -> Lease:
    return lease.acquire(
        table, "deploy", holder=holder, reason="release 7", seconds=60, now=now, **more
    )


def test_a_second_operator_is_refused_and_told_who_and_why(table):
    take(table, "ann", 100.0)
    with pytest.raises(Held) as caught:
        take(table, "bob", 110.0)
    assert caught.value.exit_code == 3
    assert "deploy is taken: held by ann in term 1 since 1970-01-01 00:01:40 UTC" in str(
        caught.value
    )
    assert "it is held for: release 7" in str(caught.value)


def test_after_release_the_next_holder_has_a_higher_term(table):
    first = take(table, "ann", 100.0)
    lease.release(table, first, now=101.0)
    assert take(table, "bob", 102.0).term == first.term + 1


def test_a_holder_who_slept_finds_out_at_once(table):
    slept = take(table, "ann", 100.0)
    take(table, "bob", 200.0)
    for act in (
        lambda: lease.renew(table, slept, seconds=60, now=201.0),
        lambda: lease.release(table, slept, now=201.0),
    ):
        with pytest.raises(Held, match=r"ann no longer holds deploy .term 1.: held by bob"):
            act()
    assert lease.read(table, "deploy").holder == "bob"


def test_an_operator_may_take_over_from_a_holder_who_is_gone(table):
    take(table, "ann", 100.0)
    taken = take(table, "bob", 110.0, take_over=True)
    assert (taken.holder, taken.term) == ("bob", 2)


def test_of_two_that_decide_on_the_same_item_one_wins(table, monkeypatch):
    read = lease.read
    bob: list[Lease] = []

    def read_then_lose_the_race(*arguments: Any) -> Lease | None:
        found = read(*arguments)
        if not bob:
            monkeypatch.setattr(lease, "read", read)
            bob.append(take(table, "bob", 100.0))
        return found

    monkeypatch.setattr(lease, "read", read_then_lose_the_race)
    with pytest.raises(Held, match="deploy was taken in this moment: held by bob"):
        take(table, "ann", 100.0)
    assert read(table, "deploy") == bob[0]


def test_renewing_extends_what_the_table_says(table):
    held = take(table, "ann", 100.0)
    lease.renew(table, held, seconds=60, now=130.0)
    assert lease.read(table, "deploy").expires_at == 190.0


def test_a_table_that_is_not_there_is_described(settings, cloud):
    with pytest.raises(Refused, match=r"there is no table .*-locks") as refused:
        take(dynamo.locks(settings), "ann", 100.0)
    assert refused.value.next == "fab fleet.provision"
