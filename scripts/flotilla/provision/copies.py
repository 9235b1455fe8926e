"""The second bucket of backups, in another region, that S3 fills by itself; and the keys there.

What was stored before the copy was asked for is not copied: the next full backup is. Deletions are
not copied either; the copy has the same lifecycle of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from flotilla.provision import identity, storage
from flotilla.provision.change import Change, Stage
from flotilla.provision.world import World, data

BACKUPS, COPIES = "backups", "backups-copy"
KEYS = (("mysql", "backup_keys"), ("redis", "backup_keys"))
# A role that was made a moment ago is not known to S3 at once.
NOT_YET = ("InvalidRequest", "InvalidArgument")


def stages(world: World) -> list[Stage]:
    """The bucket, its settings, its lock, and then what fills it."""
    there, name = elsewhere(world), world.settings.name_of(COPIES)
    if there is None:
        return [_unfilled(world)]
    layout = next(one for one in data("storage.yml")["buckets"] if one["name"] == BACKUPS)
    new = not storage.bucket_exists(there, name)
    make = Change(
        "create", "bucket", name, partial(storage.make_bucket, there, name), there.settings.region
    )
    return [
        [make] if new else [],
        storage.bucket_settings(there, name, layout, new=new),
        storage.bucket_lock(there, name, layout, new=new),
        [*_filled(world, name), *_keys(world, there)],
    ]


def elsewhere(world: World) -> World | None:
    """The fleet's corner of the region of the copy; None where it has no copy."""
    region = world.settings.backups.copy_region
    return World(world.settings.elsewhere(region)) if region else None


def _filled(world: World, copy: str) -> list[Change]:
    arn = f"arn:{identity.partition(world.settings.region)}"
    role = f"{arn}:iam::{world.account}:role/{world.settings.name_of(identity.COPY)}"
    rule = {
        "ID": "copy",
        "Priority": 1,
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "DeleteMarkerReplication": {"Status": "Disabled"},
        "Destination": {"Bucket": f"{arn}:s3:::{copy}"},
    }
    name = world.settings.name_of(BACKUPS)
    present = _present(world, name)
    found = [(r.get("Status"), r["Destination"]["Bucket"]) for r in present.get("Rules", ())]
    if (present.get("Role"), found) == (role, [("Enabled", f"{arn}:s3:::{copy}")]):
        return []
    put = partial(
        world.client("s3").put_bucket_replication,
        Bucket=name,
        ReplicationConfiguration={"Role": role, "Rules": [rule]},
    )
    act = partial(world.persist, put, codes=NOT_YET)
    return [Change("change", "bucket", name, act, f"copied to {copy}")]


def _unfilled(world: World) -> list[Change]:
    name = world.settings.name_of(BACKUPS)
    if not storage.bucket_exists(world, name) or not _present(world, name):
        return []
    act = partial(world.client("s3").delete_bucket_replication, Bucket=name)
    return [Change("change", "bucket", name, act, "not copied any more")]


def _present(world: World, name: str) -> Mapping[str, Any]:
    if not storage.bucket_exists(world, name):
        return {}
    read = world.client("s3").get_bucket_replication
    return storage.read(read, name, "ReplicationConfiguration") or {}


def _keys(world: World, there: World) -> list[Change]:
    """The rings of keys where the copy is, unless those are at least as new; no value is read."""
    found = []
    for name in (world.settings.parameter(*one) for one in KEYS):
        here, copied = _changed(world, name), _changed(there, name)
        if copied is None or (here is not None and copied < here):
            act = partial(_copy_keys, world, there, name)
            found.append(Change("change" if copied else "create", "secret copy", name, act))
    return found


def _copy_keys(world: World, there: World, name: str) -> None:
    found = world.client("ssm").get_parameter(Name=name, WithDecryption=True)["Parameter"]["Value"]
    there.client("ssm").put_parameter(Name=name, Value=found, Type="SecureString", Overwrite=True)


def _changed(world: World, name: str) -> Any:
    wanted = [{"Key": "Name", "Values": [name]}]
    found = world.client("ssm").describe_parameters(ParameterFilters=wanted)["Parameters"]
    return found[0]["LastModifiedDate"] if found else None
