"""Buckets (versioned, encrypted, closed to the public), tables, and the secrets that are generated
once.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from botocore.exceptions import ClientError

from flotilla.aws.errors import code
from flotilla.aws.secrets import sealed_by
from flotilla.errors import Refused
from flotilla.hosts import certificates
from flotilla.provision.change import Change, Stage
from flotilla.provision.world import World, data

# 192 bits, 32 characters: MySQL takes no longer password for a replication user (error 3056).
SECRET_BYTES = 24
TABLE_SECONDS = 120
UPLOAD_DAYS = 7  # a multipart upload nobody finished costs money unseen
CLOSED = {
    "BlockPublicAcls": True,
    "IgnorePublicAcls": True,
    "BlockPublicPolicy": True,
    "RestrictPublicBuckets": True,
}
UNSET = {
    "ObjectLockConfigurationNotFoundError",
    "ReplicationConfigurationNotFoundError",
    "NoSuchLifecycleConfiguration",
    "NoSuchPublicAccessBlockConfiguration",
    "NoSuchTagSet",
    "ServerSideEncryptionConfigurationNotFoundError",
}


def stages(world: World) -> list[Stage]:
    """Buckets before their settings, and versions before locks; tables and secrets need nobody."""
    layout = data("storage.yml")
    buckets = {world.settings.name_of(bucket["name"]): bucket for bucket in layout["buckets"]}
    missing = [name for name in buckets if not bucket_exists(world, name)]
    create = [
        Change("create", "bucket", name, partial(make_bucket, world, name)) for name in missing
    ]
    settings = [
        change
        for name, bucket in buckets.items()
        for change in bucket_settings(world, name, bucket, new=name in missing)
    ]
    tables = [change for table in layout["tables"] for change in _table(world, table)]
    locks = [
        change
        for name, bucket in buckets.items()
        for change in bucket_lock(world, name, bucket, new=name in missing)
    ]
    return [[*create, *tables, *_secrets(world)], settings, locks]


def bucket_exists(world: World, name: str) -> bool:
    """Whether the bucket exists and is ours; Refused when another account has the name."""
    try:
        world.client("s3").head_bucket(Bucket=name)
    except ClientError as error:
        if code(error) == "404":
            return False
        if code(error) in {"403", "301"}:
            raise Refused(
                f"bucket {name} belongs to another account or region",
                why="all of AWS shares one list of bucket names, and ours are <fleet>-<env>-<use>",
                untouched="Nothing was changed",
                next="choose another fleet.name in fleet.yml",
            ) from error
        raise
    return True


def make_bucket(world: World, name: str) -> None:
    """Create it, in the world's region."""
    region = world.settings.region
    # us-east-1 is the one region that S3 refuses to be told.
    where = {"CreateBucketConfiguration": {"LocationConstraint": region}}
    world.client("s3").create_bucket(Bucket=name, **({} if region == "us-east-1" else where))


def bucket_settings(
    world: World, name: str, bucket: Mapping[str, Any], *, new: bool
) -> list[Change]:
    """What a bucket of storage.yml lacks; all of it where it is ``new``."""
    s3 = world.client("s3")
    wanted = {
        "versioned": "Enabled",
        "encrypted": "AES256",
        "closed to the public": CLOSED,
        "lifecycle": _lifecycle(bucket),
        "tags": _sorted(world.tags(name)),
    }
    present = {} if new else _present(s3, name)
    return [
        Change("change", "bucket", name, partial(_put, s3, name, setting, value), setting)
        for setting, value in wanted.items()
        if present.get(setting) != value
    ]


def _present(s3: Any, name: str) -> dict[str, Any]:
    encryption = read(s3.get_bucket_encryption, name, "ServerSideEncryptionConfiguration")
    rules = encryption["Rules"] if encryption else []
    return {
        "versioned": s3.get_bucket_versioning(Bucket=name).get("Status"),
        "encrypted": next(
            (rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] for rule in rules), None
        ),
        "closed to the public": read(
            s3.get_public_access_block, name, "PublicAccessBlockConfiguration"
        ),
        "lifecycle": read(s3.get_bucket_lifecycle_configuration, name, "Rules"),
        "tags": _sorted(read(s3.get_bucket_tagging, name, "TagSet") or []),
    }


def bucket_lock(world: World, name: str, bucket: Mapping[str, Any], *, new: bool) -> list[Change]:
    """What keeps objects from being deleted. Only ever set: nothing here takes a lock away."""
    if "lock_days" not in bucket:
        return []
    s3, days = world.client("s3"), int(bucket["lock_days"])
    present = {} if new else read(s3.get_object_lock_configuration, name, "ObjectLockConfiguration")
    kept = (present or {}).get("Rule", {}).get("DefaultRetention", {})
    if (kept.get("Mode"), kept.get("Days")) == ("GOVERNANCE", days):
        return []
    rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": days}}
    wanted = {"ObjectLockEnabled": "Enabled", "Rule": rule}
    act = partial(s3.put_object_lock_configuration, Bucket=name, ObjectLockConfiguration=wanted)
    return [Change("change", "bucket", name, act, f"locked for {days} days")]


def read(call: Callable[..., Any], bucket: str, key: str) -> Any:
    """One setting of a bucket, None where it was never set."""
    try:
        return call(Bucket=bucket)[key]
    except ClientError as error:
        if code(error) in UNSET:
            return None
        raise


def _put(s3: Any, name: str, setting: str, value: Any) -> None:
    default = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": value}}
    calls = {
        "versioned": (s3.put_bucket_versioning, {"VersioningConfiguration": {"Status": value}}),
        "encrypted": (
            s3.put_bucket_encryption,
            {"ServerSideEncryptionConfiguration": {"Rules": [default]}},
        ),
        "closed to the public": (
            s3.put_public_access_block,
            {"PublicAccessBlockConfiguration": value},
        ),
        "lifecycle": (
            s3.put_bucket_lifecycle_configuration,
            {"LifecycleConfiguration": {"Rules": value}},
        ),
        "tags": (s3.put_bucket_tagging, {"Tagging": {"TagSet": value}}),
    }
    call, arguments = calls[setting]
    call(Bucket=name, **arguments)


def _lifecycle(bucket: Mapping[str, Any]) -> list[dict[str, Any]]:
    everything: dict[str, Any] = {"Status": "Enabled", "Filter": {"Prefix": ""}}
    rules = [
        everything
        | {
            "ID": "unfinished-uploads",
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": UPLOAD_DAYS},
        }
    ]
    if days := bucket.get("noncurrent_days"):
        expiry = {"NoncurrentVersionExpiration": {"NoncurrentDays": days}}
        rules.append(everything | {"ID": "old-versions"} | expiry)
    return [
        *rules,
        *(
            _rule("expire", what) | {"Expiration": {"Days": what["days"]}}
            for what in bucket.get("expire", ())
        ),
        *(
            _rule("cold", what)
            | {"Transitions": [{"Days": what["days"], "StorageClass": what["class"]}]}
            for what in bucket.get("cold", ())
        ),
    ]


def _rule(verb: str, what: Mapping[str, Any]) -> dict[str, Any]:
    name = f"{verb}-{what['prefix'].strip('/').replace('/', '-')}"
    return {"ID": name, "Status": "Enabled", "Filter": {"Prefix": what["prefix"]}}


def _sorted(tags: list[dict[str, str]]) -> list[dict[str, str]]:
    return sorted(tags, key=lambda tag: tag["Key"])


def _table(world: World, table: Mapping[str, Any]) -> list[Change]:
    name = world.settings.name_of(table["name"])
    if table_exists(world, name):
        return []
    make = partial(_make_table, world, name, table["key"])
    return [Change("create", "table", name, make, f"key {table['key']}")]


def table_exists(world: World, name: str) -> bool:
    """Whether DynamoDB knows the table, in whatever state."""
    dynamodb = world.client("dynamodb")
    try:
        dynamodb.describe_table(TableName=name)
    except dynamodb.exceptions.ResourceNotFoundException:
        return False
    return True


def ensure_table(world: World, suffix: str) -> None:
    """Make one table now, ahead of everything else; no effect where it exists."""
    tables = {table["name"]: table for table in data("storage.yml")["tables"]}
    for change in _table(world, tables[suffix]):
        change.act()


def _make_table(world: World, name: str, key: str) -> None:
    dynamodb = world.client("dynamodb")
    with suppress(dynamodb.exceptions.ResourceInUseException):  # another run is making it
        dynamodb.create_table(
            TableName=name,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"}],
            KeySchema=[{"AttributeName": key, "KeyType": "HASH"}],
            Tags=world.tags(name),
        )
    world.wait(
        f"table {name} is active",
        lambda: dynamodb.describe_table(TableName=name)["Table"]["TableStatus"] == "ACTIVE",
        seconds=TABLE_SECONDS,
    )


def _secrets(world: World) -> list[Change]:
    present = parameters(world)
    wanted = {
        world.settings.parameter(role, name): role
        for role, names in data("secrets.yml").items()
        for name in names
    }
    return [
        Change("create", "secret", path, partial(_generate, world, path, role))
        for path, role in wanted.items()
        if path not in present
    ]


def parameters(world: World) -> set[str]:
    """Names of the fleet's SSM parameters; their values are never read here."""
    pages = (
        world.client("ssm")
        .get_paginator("describe_parameters")
        .paginate(
            ParameterFilters=[
                {
                    "Key": "Path",
                    "Option": "Recursive",
                    "Values": [f"/{world.settings.name}/{world.settings.env}"],
                }
            ]
        )
    )
    return {parameter["Name"] for page in pages for parameter in page["Parameters"]}


def _secret(role: str) -> str:
    """Something new that nobody can guess: for SSH a CA's key, else a password."""
    return certificates.new_ca() if role == "ssh" else secrets.token_urlsafe(SECRET_BYTES)


def _generate(world: World, path: str, role: str) -> None:
    """Store a new random secret; without Overwrite, SSM itself refuses to replace an old one."""
    ssm = world.client("ssm")
    try:
        ssm.put_parameter(
            Name=path,
            Value=_secret(role),
            Type="SecureString",
            Overwrite=False,
            Tags=world.tags(path, Role=role),
            **sealed_by(world.settings),
        )
    except ssm.exceptions.ParameterAlreadyExists:
        return  # another run was first, and its secret is the one hosts may already have
