"""No secret of the fleet is anywhere but where it belongs: on hosts, in the lab, at the operator's.

conftest.py has it run after the others, which had their chance to leave one somewhere.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from guests import REPO, client, control, needs_lab
from security import canary, search
from security.canary import Found
from security.test_canary import PLACES

from flotilla import inventory
from flotilla.hosts.ssh import Runner, prepare
from flotilla.provision.world import data
from flotilla.settings import Settings

from lab.layout import layout  # isort: skip

# Four gigabytes of images, and twelve hosts.
pytestmark = [needs_lab, pytest.mark.timeout(900)]

SEARCH = Path(search.__file__).read_text()
ROOTS = ["/etc", "/var", "/tmp", "/run", "/root", "/home", "/srv", "/opt", "/usr/local", "/boot"]
HOST_SECONDS = 240.0
# The root that everybody trusts is no secret, nor is how an order of a certificate went.
PUBLIC = ("authority/certificate", "lb/acme/attempts", "lb/acme/request")
# The operator's own keys, and the lab's words for them.
KEPT = ("keys", "aws", "host_keys.json")


def secrets(settings: Settings) -> dict[str, str]:
    """Every SecureString of the fleet, by slot."""
    above = settings.parameter("x", "").removesuffix("x/")
    pages = client("ssm").get_paginator("get_parameters_by_path")
    found = {
        one["Name"].removeprefix(above): one["Value"]
        for page in pages.paginate(Path=above, Recursive=True, WithDecryption=True)
        for one in page["Parameters"]
    }
    wanted = {f"{role}/{name}" for role, names in data("secrets.yml").items() for name in names}
    assert wanted <= found.keys()
    return {slot: value for slot, value in found.items() if slot not in PUBLIC}


def test_no_secret_is_where_it_does_not_belong(standing_fleet: Settings) -> None:
    texts = canary.texts(secrets(standing_fleet))
    finder = search.Finder(texts)
    found = [*_on_hosts(standing_fleet, texts)]
    repo = Path(control("status")["repo"])
    mine = [path for path in (repo / "var").rglob("*") if path.is_file()]
    kept = [repo / "var" / "lab" / name for name in KEPT]
    roots = [str(p) for p in mine if not any(p.is_relative_to(k) for k in kept)]
    roots += [str(p) for p in REPO.iterdir() if p.name not in ("var", ".venv")]
    found += [Found(slot, "", "", place) for slot, place in finder.files(roots)]
    found += [Found(slot, "", "", place) for slot, place in finder.compressed(roots)]
    # Disks that images are made of; those of hosts stand beside them, and were searched above.
    images = str(layout().storage / "overlay")
    running = {path.parent.name for path in layout().storage.glob("overlay/*/merged")}
    found += [
        Found(slot, "", "", place)
        for slot, place in finder.files([images])
        if not running & set(Path(place).parts)
    ]
    found += [Found(slot, "", "", place) for slot, place in _in_s3(finder)]
    assert canary.leaks(found, PLACES) == []


def _on_hosts(settings: Settings, texts: dict[str, list[str]]) -> list[Found]:
    snapshot = inventory.load(settings, refresh=True)
    active = [host for host in snapshot.hosts if host.is_active]
    prepare(settings, snapshot)
    command = "python3 -c 'import sys; n = int(sys.stdin.readline()); exec(sys.stdin.read(n))'"
    order = json.dumps({"texts": texts, "roots": ROOTS, "host": True})
    with Runner(settings, snapshot) as runner:
        done = runner.run_on(
            active,
            command,
            sudo=True,
            stdin=f"{len(SEARCH)}\n{SEARCH}{order}",
            seconds=HOST_SECONDS,
        )
    done.raise_errors()
    return [
        Found(slot, host.name, host.role, place)
        for host in active
        for slot, place in json.loads(done.results[host.name].stdout)
    ]


def _in_s3(finder: search.Finder) -> list[tuple[str, str]]:
    """Every version of every object: they are in the lab's memory and in no file."""
    s3, found = client("s3"), []
    for bucket in [one["Name"] for one in s3.list_buckets()["Buckets"]]:
        for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
            for one in page.get("Versions", ()):
                which = {"Bucket": bucket, "Key": one["Key"], "VersionId": one["VersionId"]}
                body = s3.get_object(**which)["Body"]
                found += [(slot, f"s3://{bucket}/{one['Key']}") for slot in finder.slots(body)]
    return found
