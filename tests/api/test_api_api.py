"""What the lab reads from and adds to moto's state, on a real moto backend without any host."""

from __future__ import annotations

import functools
import tempfile
import types
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import moto_env  # isort: skip  moto reads its settings when it is imported

import boto3
from moto import mock_aws
from moto.backends import get_backend
from moto.core import DEFAULT_ACCOUNT_ID
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import EC2Backend
from moto.s3 import models as s3_models
from moto.s3.responses import S3Response

from lab import addresses, amis, buckets, dependencies, launching, views
from lab.amis import AmiStore
from lab.layout import IMAGE_OWNER
from lab.ports import Rule

KEPT = {
    "id": "ami-0123456789abcdef0",
    "name": "kept",
    "description": "d",
    "owner_id": "123456789012",
    "architecture": "x86_64",
    "platform": None,
    "boot_mode": "uefi",
    "state": "available",
    "creation_date": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).isoformat(),
    "tags": {"Role": "app", "Status": "tested"},
    "launch_permissions": [],
    "imds_support": "v2.0",
    "deprecation_time": "2027-01-01T00:00:00.000Z",
    "encrypted": True,
    "source_image_id": "ami-00000000000000001",
    "instance_id": "i-00000000000000001",
    "volume_size": 12,
    "snapshot": {"id": "snap-0123456789abcdef0", "description": "s", "tags": {"Role": "app"}},
}


@pytest.fixture
def ec2() -> Iterator[Any]:
    with mock_aws():
        yield moto_env.ec2()


def launch(ec2: Any, count: int = 1, **options: Any) -> list[Any]:
    """Instances in moto's books only, in the default VPC."""
    if not ec2.amis:
        amis.register(ec2, KEPT)
    subnet = next(iter(ec2.get_default_subnets().values())).id
    more = {"instance_type": "t3.micro", "is_instance_type_default": False, "subnet_id": subnet}
    return list(ec2.run_instances(KEPT["id"], count, None, [], **{**more, **options}).instances)


def test_a_bucket_that_holds_objects_can_be_locked() -> None:
    with mock_aws():
        s3 = get_backend("s3")["123456789012"]["aws"]
        s3.create_bucket("held", "eu-central-1")
        s3.put_bucket_versioning("held", "Enabled")
        s3.put_object("held", "key", b"value")
        buckets.lock(type(s3).put_object_lock_configuration, s3, "held", True, "GOVERNANCE", 14)
        bucket = s3.get_bucket("held")
        assert (bucket.default_lock_mode, bucket.default_lock_days) == ("GOVERNANCE", 14)
        assert s3.get_object("held", "key").value == b"value"


@given(st.lists(st.binary(max_size=4)), st.integers(-9, 9), st.integers(-9, 9))
def test_pieces_in_a_row_are_cut_like_bytes(pieces: list[bytes], begin: int, end: int) -> None:
    rope, whole = buckets.Rope(pieces), b"".join(pieces)
    assert (len(rope), bytes(rope)) == (len(whole), whole)
    assert rope[begin:end] == whole[begin:end]
    assert rope[begin:] == whole[begin:]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("seek"), st.integers(0, 12)),
            st.tuples(st.just("write"), st.binary(max_size=6)),
            st.tuples(st.just("read"), st.integers(-1, 8)),
            st.tuples(st.just("truncate")),
        )
    )
)
def test_what_an_object_holds_is_used_like_the_file_that_it_stands_for(steps: Any) -> None:
    ours = buckets.Held(5)
    with tempfile.SpooledTemporaryFile() as file:
        for name, *values in (*steps, ("seek", 0), ("read", -1)):
            answers = [getattr(one, name)(*values) for one in (ours, file)]
            assert answers[0] == answers[1] or name == "truncate"
    ours.close()
    with pytest.raises(ValueError, match="closed"):
        ours.read()


def test_an_object_of_parts_is_read_in_ranges_and_its_parts_are_held_once(monkeypatch: Any) -> None:
    held = types.SimpleNamespace(SpooledTemporaryFile=buckets.Held)
    monkeypatch.setattr(s3_models, "tempfile", held)
    original = s3_models.FakeMultipart.complete
    ends = functools.partialmethod(lambda self, *args: buckets.complete(original, self, *args))
    monkeypatch.setattr(s3_models.FakeMultipart, "complete", ends)
    got = S3Response.get_object
    gets = functools.partialmethod(lambda self: buckets.answer(got, self))
    monkeypatch.setattr(S3Response, "get_object", gets)
    with mock_aws():
        s3 = boto3.client("s3", region_name="us-east-1")
        s3.create_bucket(Bucket="bucket-one")
        upload = s3.create_multipart_upload(Bucket="bucket-one", Key="many")["UploadId"]
        name = {"Bucket": "bucket-one", "Key": "many"}
        bodies = (bytes(5 << 20), b"1" * (5 << 20), b"end")
        tags = [
            s3.upload_part(**name, UploadId=upload, PartNumber=number, Body=body)["ETag"]
            for number, body in enumerate(bodies, 1)
        ]
        parts = get_backend("s3")[DEFAULT_ACCOUNT_ID]["aws"].get_bucket("bucket-one").multiparts
        unfinished = parts[upload]
        listed = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
        s3.complete_multipart_upload(**name, UploadId=upload, MultipartUpload={"Parts": listed})
        assert all(part.disposed for part in unfinished.parts.values())
        backend = get_backend("s3")[DEFAULT_ACCOUNT_ID]["aws"]
        stored = backend.get_object("bucket-one", "many").value
        assert isinstance(stored, buckets.Rope), "nothing was put together"
        s3.copy_object(Bucket="bucket-one", Key="copy", CopySource=name)
        assert backend.get_object("bucket-one", "copy").value is stored
        whole = b"".join(bodies)
        first, last = (5 << 20) - 2, (10 << 20) + 1
        for wanted in (f"bytes={first}-{last}", f"bytes={first}-", "bytes=0-0"):
            found = s3.get_object(**name, Range=wanted)
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            assert found["Body"].read() == whole[int(begin) : int(end or len(whole)) + 1]
        assert s3.get_object(**name)["Body"].read() == whole


def test_what_is_stored_in_a_bucket_with_a_copy_is_in_the_copy(monkeypatch: Any) -> None:
    for method, around in (
        ("_key_response_put", buckets.put),
        ("_key_response_post", buckets.replicate),
    ):
        original = getattr(S3Response, method)
        wrapped = functools.partialmethod(
            lambda self, around, original, *args: around(original, self, *args), around, original
        )
        monkeypatch.setattr(S3Response, method, wrapped)
    with mock_aws():
        s3 = boto3.client("s3", region_name="us-east-1")
        for name in ("here", "there", "empty"):
            s3.create_bucket(Bucket=f"bucket-{name}")
            s3.put_bucket_versioning(
                Bucket=f"bucket-{name}", VersioningConfiguration={"Status": "Enabled"}
            )
        s3.put_object(Bucket="bucket-here", Key="before", Body=b"not copied")
        rule = {
            "Priority": 1,
            "Status": "Enabled",
            "Filter": {"Prefix": ""},
            "DeleteMarkerReplication": {"Status": "Disabled"},
            "Destination": {"Bucket": "arn:aws:s3:::bucket-there"},
        }
        s3.put_bucket_replication(
            Bucket="bucket-here",
            ReplicationConfiguration={"Role": "arn:aws:iam::1:role/copy", "Rules": [rule]},
        )
        s3.put_object(Bucket="bucket-here", Key="one", Body=b"1", Metadata={"part": "x"})
        upload = s3.create_multipart_upload(Bucket="bucket-here", Key="many")["UploadId"]
        tag = s3.upload_part(
            Bucket="bucket-here", Key="many", UploadId=upload, PartNumber=1, Body=b"22"
        )["ETag"]
        assert [o["Key"] for o in s3.list_objects_v2(Bucket="bucket-there")["Contents"]] == ["one"]
        s3.complete_multipart_upload(
            Bucket="bucket-here",
            Key="many",
            UploadId=upload,
            MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": tag}]},
        )
        found = s3.get_object(Bucket="bucket-there", Key="one")
        assert (found["Body"].read(), found["Metadata"]) == (b"1", {"part": "x"})
        assert s3.get_object(Bucket="bucket-there", Key="many")["Body"].read() == b"22"
        s3.put_object_lock_configuration(
            Bucket="bucket-empty",
            ObjectLockConfiguration={
                "ObjectLockEnabled": "Enabled",
                "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}},
            },
        )
        s3.copy_object(
            Bucket="bucket-empty", Key="one", CopySource={"Bucket": "bucket-here", "Key": "one"}
        )
        s3.delete_object(Bucket="bucket-here", Key="one")
        assert s3.head_object(Bucket="bucket-there", Key="one")


def test_an_image_comes_back_as_it_was_kept(ec2: Any) -> None:
    assert amis.describe(amis.register(ec2, KEPT)) == KEPT
    assert ec2.describe_snapshots(snapshot_ids=[KEPT["snapshot"]["id"]])[0].encrypted


def test_a_second_image_of_a_name_is_refused(ec2: Any, tmp_path: Any) -> None:
    amis.register(ec2, KEPT)
    store = AmiStore(tmp_path, podman=None, log=lambda *_: None)
    with pytest.raises(EC2ClientError, match=KEPT["id"]):
        store.check_name(ec2, "kept")
    store.check_name(ec2, "another")


def test_a_new_base_image_takes_the_place_of_the_old_one(ec2: Any, tmp_path: Any) -> None:
    store = AmiStore(tmp_path, podman=None, log=lambda *_: None)
    for number in (1, 2):
        store.add_base(ec2, f"ami-0000000000000000{number}", "debian", datetime.now(UTC))
    (left,) = ec2.describe_images(owners=[IMAGE_OWNER])
    assert left.id == "ami-00000000000000002"
    assert [path.stem for path in tmp_path.glob("*.json")] == [left.id]


def test_an_image_that_is_not_available_is_not_launched(ec2: Any) -> None:
    amis.register(ec2, {**KEPT, "state": "pending"})
    with pytest.raises(EC2ClientError, match="is pending, not available"):
        launching.check_image(ec2, KEPT["id"])
    with pytest.raises(EC2ClientError, match="does not exist"):
        launching.check_image(ec2, "ami-9")


def associate(ec2: Any, **how: Any) -> Any:
    return addresses.associate(ec2, EC2Backend.associate_address, **how)


def test_an_elastic_ip_that_moves_leaves_its_old_host(ec2: Any) -> None:
    old, new = launch(ec2, 2)
    eip = ec2.allocate_address("vpc")
    associate(ec2, instance=old, allocation_id=eip.allocation_id)
    assert addresses.published(ec2)[eip.public_ip] == old.private_ip
    associate(ec2, instance=new, allocation_id=eip.allocation_id, reassociate=True)
    assert addresses.published(ec2)[eip.public_ip] == new.private_ip
    assert old.public_ip != eip.public_ip
    assert eip.instance_id == new.id


def test_a_second_elastic_ip_on_a_host_frees_the_first(ec2: Any) -> None:
    (host,) = launch(ec2)
    first, second = (ec2.allocate_address("vpc") for _ in range(2))
    associate(ec2, instance=host, allocation_id=first.allocation_id)
    associate(ec2, instance=host, allocation_id=second.allocation_id)
    assert (first.association_id, first.instance_id) == (None, "")
    assert addresses.published(ec2) == {second.public_ip: host.private_ip}


def test_an_elastic_ip_stays_over_stop_and_start_and_goes_with_termination(ec2: Any) -> None:
    (host,) = launch(ec2)
    eip = ec2.allocate_address("vpc")
    associate(ec2, instance=host, allocation_id=eip.allocation_id)
    host.stop()
    addresses.restore(ec2, host)
    assert host.public_ip == eip.public_ip
    host.start()
    addresses.restore(ec2, host)
    assert host.public_ip == eip.public_ip
    addresses.release(ec2, host)
    assert (host.public_ip, eip.association_id) == (None, None)


def test_a_rule_that_names_a_group_means_its_members_of_the_moment(ec2: Any) -> None:
    group = ec2.create_security_group("g", "d")
    ec2.authorize_security_group_ingress(group.id, "tcp", 80, 81, [], None, [{"GroupId": group.id}])
    hosts = launch(ec2, 2, security_group_ids=[group.id])
    both = tuple(sorted(f"{host.private_ip}/32" for host in hosts))
    assert [view.ingress for view in views.security_views(ec2)] == [
        (Rule("tcp", 80, 81, both),)
    ] * 2
    hosts[1].terminate()
    (view,) = views.security_views(ec2)
    assert view.ingress == (Rule("tcp", 80, 81, (f"{hosts[0].private_ip}/32",)),)


def test_a_view_has_the_rules_of_all_groups_and_of_the_subnets_acl(ec2: Any) -> None:
    one, two = (ec2.create_security_group(name, "d") for name in ("one", "two"))
    ec2.authorize_security_group_ingress(one.id, "tcp", 22, 22, [{"CidrIp": "198.18.0.0/15"}])
    ec2.authorize_security_group_ingress(two.id, "112", -1, -1, [{"CidrIp": "10.0.0.0/8"}])
    (host,) = launch(ec2, security_group_ids=[one.id, two.id])
    (view,) = views.security_views(ec2)
    assert set(view.ingress) == {
        Rule("tcp", 22, 22, ("198.18.0.0/15",)),
        Rule("112", None, None, ("10.0.0.0/8",)),
    }
    assert Rule("-1", None, None, ("0.0.0.0/0",)) in view.egress
    assert (view.instance_id, view.address) == (host.id, host.private_ip)
    assert [entry.action for entry in view.acl_ingress] == ["allow", "deny"]


TEMPLATE = {
    "ImageId": KEPT["id"],
    "MetadataOptions": {"HttpTokens": "required"},
    "NetworkInterfaces": [{"DeviceIndex": 0, "AssociatePublicIpAddress": True, "Groups": ["sg-1"]}],
    "Placement": {"AvailabilityZone": "eu-central-1b"},
    "IamInstanceProfile": {"Name": "app"},
}


def test_a_launch_template_gives_what_moto_does_not_take_from_it(ec2: Any) -> None:
    made = ec2.create_launch_template("t", "", TEMPLATE, {})
    kwargs: dict[str, Any] = {"launch_template": {"LaunchTemplateId": made.id}, "subnet_id": "s-1"}
    template = launching._from_template(ec2, kwargs)
    assert template["IamInstanceProfile"] == {"Name": "app"}
    assert kwargs["metadata_options"] == {"HttpTokens": "required"}
    assert kwargs["nics"][0] == {**TEMPLATE["NetworkInterfaces"][0], "SubnetId": "s-1"}
    assert kwargs["placement"] == "eu-central-1b"


def test_without_a_subnet_a_launch_goes_to_the_default_one_of_its_zone(ec2: Any) -> None:
    kwargs: dict[str, Any] = {"placement": "eu-central-1c"}
    chosen = ec2.get_subnet(launching._subnet(ec2, kwargs))
    assert (chosen.availability_zone, kwargs["subnet_id"]) == ("eu-central-1c", chosen.id)


def test_a_subnet_is_needed_by_its_instances_until_they_are_terminated(ec2: Any) -> None:
    (host,) = launch(ec2)
    assert dependencies.of_subnet(ec2, host.subnet_id) == [host.id]
    with pytest.raises(EC2ClientError, match=host.id):
        dependencies.delete_subnet(EC2Backend.delete_subnet, ec2, host.subnet_id)
    host.terminate()
    dependencies.delete_subnet(EC2Backend.delete_subnet, ec2, host.subnet_id)


def test_a_group_is_needed_by_its_members_and_by_rules_that_name_it(ec2: Any) -> None:
    one, two = (ec2.create_security_group(name, "d") for name in ("one", "two"))
    ec2.authorize_security_group_ingress(two.id, "tcp", 80, 80, [], None, [{"GroupId": one.id}])
    ec2.authorize_security_group_ingress(one.id, "tcp", 80, 80, [], None, [{"GroupId": one.id}])
    (host,) = launch(ec2, security_group_ids=[one.id])
    assert dependencies.of_security_group(ec2, one.id) == [host.id, two.id]
    assert dependencies.of_security_group(ec2, two.id) == []
