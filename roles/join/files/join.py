#!/usr/bin/python3
"""Make a host that has just been started serve, with nobody there: its first boot.

An Auto Scaling group replaces a host at any hour. Its image has the programs; what belongs to the
fleet is a bundle in S3 that the playbook has published: files rendered from the roles' own
templates, with marks where a host's name, its address or a secret goes. This puts them in place,
starts the services and the release that the last deploy left current.

Exit 0: the host serves, or it is not for us to configure (the reason is said). Exit 1: not yet; the
unit tries again. Every step can be repeated: what is right already is left as it is.
"""

from __future__ import annotations

import contextlib
import grp
import hashlib
import json
import os
import pwd
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

METADATA = "http://169.254.169.254/latest"
RELEASE_TOOL = "/usr/local/sbin/app-release"
MARK = re.compile(r"%%([a-z_]+(?:/[a-z_]+)?)%%")
# A host that the playbook configured has this file; one that we began and did not finish has both.
CONFIGURED = "etc/app/environment"
BEGUN = "var/lib/flotilla/join-begun"
JOINED = "var/lib/flotilla/joined"
PRESENT = ("pending", "running", "stopping", "stopped")
# EC2 shows a tag to its own writer late: a name is ours when it is seen this often, a second apart.
NAME_READS = 2
NAME_SECONDS = 60.0
NAME_PAUSE = 1.0


class NotYetError(Exception):
    """Why the host cannot serve yet, in one line."""


class NotOursError(Exception):
    """Why there is nothing to do here, in one line."""


@dataclass(frozen=True)
class Identity:
    """What EC2 says this host is."""

    instance_id: str
    address: str
    vpc_id: str
    fleet: str
    env: str
    role: str


@dataclass(frozen=True)
class Peer:
    """A host of the same tier, as DescribeInstances shows it; ``name`` "" before it has one."""

    launched_at: str  # ISO 8601: sorts as time does
    instance_id: str
    name: str


def identity(ask: Callable[[str], str | None]) -> Identity:
    """Who we are; ``ask`` reads one path of the metadata. Raises NotOursError, NotYetError."""
    tags = {name: ask(f"tags/instance/{name}") for name in ("Fleet", "Env", "Role")}
    missing = [name for name, value in tags.items() if not value]
    if missing:
        raise NotOursError(f"this instance has no tag {', '.join(missing)}: no host of a fleet")
    mac = needed(ask, "mac")
    return Identity(
        instance_id=needed(ask, "instance-id"),
        address=needed(ask, "local-ipv4"),
        vpc_id=needed(ask, f"network/interfaces/macs/{mac}/vpc-id"),
        fleet=str(tags["Fleet"]),
        env=str(tags["Env"]),
        role=str(tags["Role"]),
    )


def needed(ask: Callable[[str], str | None], path: str) -> str:
    """One path of the metadata that every instance has."""
    value = ask(path)
    if not value:
        raise NotYetError(f"the instance metadata has no {path}")
    return value


def metadata(path: str) -> str | None:
    """One path of the instance metadata (IMDSv2); None where there is no such path."""
    request = urllib.request.Request(  # noqa: S310  the link-local address
        f"{METADATA}/api/token",
        method="PUT",
        headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"},
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
            token = answer.read().decode()
        request = urllib.request.Request(  # noqa: S310
            f"{METADATA}/meta-data/{path}", headers={"X-aws-ec2-metadata-token": token}
        )
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise NotYetError(f"the instance metadata answered {error.code} to {path}") from None
    except OSError as error:
        raise NotYetError(f"the instance metadata does not answer: {error}") from None


def wanted_name(role: str, me: str, peers: Sequence[Peer]) -> str:
    """The name of host ``me``: the rule by which ``fleet.provision`` names hosts, too.

    A good name is kept, of two with the same name by the older host; the others get the lowest free
    numbers, the oldest first. So hosts that start together come to different names.
    """
    good = re.compile(rf"{re.escape(role)}-[1-9]\d*")
    named: dict[str, str] = {}
    nameless = []
    for peer in sorted(peers, key=lambda one: (one.launched_at, one.instance_id)):
        if good.fullmatch(peer.name) and peer.name not in named.values():
            named[peer.instance_id] = peer.name
        else:
            nameless.append(peer.instance_id)
    taken = set(named.values())
    free = (f"{role}-{n}" for n in count(1) if f"{role}-{n}" not in taken)
    named |= dict(zip(nameless, free, strict=False))
    return named[me]


def claimed_name(
    role: str,
    me: str,
    peers: Callable[[], Sequence[Peer]],
    take: Callable[[str], None],
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """A name that EC2 shows as ours NAME_READS times in a row. Raises NotYetError."""
    started, seen = clock(), 0
    while clock() - started < NAME_SECONDS:
        found = peers()
        if any(peer.instance_id == me for peer in found):
            name = wanted_name(role, me, found)
            if any(peer.instance_id == me and peer.name == name for peer in found):
                seen += 1
                if seen >= NAME_READS:
                    return name
            else:
                seen = 0
                take(name)
        sleep(NAME_PAUSE)
    raise NotYetError(f"EC2 did not show a name as ours within {NAME_SECONDS:g} s")


def filled(text: str, values: Mapping[str, str], *, quoted: bool) -> str:
    """The text with every mark replaced; ``quoted``: within double quotes, as JSON writes them.

    Raises NotYetError for a mark that ``values`` does not have.
    """

    def value(mark: re.Match[str]) -> str:
        if mark[1] not in values:
            raise NotYetError(f"the bundle asks for {mark[1]!r}, which is not known here")
        plain = values[mark[1]]
        return json.dumps(plain, ensure_ascii=False)[1:-1] if quoted else plain

    return MARK.sub(value, text)


def checked(body: bytes, sha256: str, what: str) -> dict[str, Any]:
    """A JSON object whose bytes are the ones that were published. Raises NotYetError."""
    actual = hashlib.sha256(body).hexdigest()
    if actual != sha256:
        raise NotYetError(f"{what} is {actual[:12]}, but was published as {sha256[:12]}")
    content: dict[str, Any] = json.loads(body)
    return content


def install(file: Mapping[str, Any], text: str, root: Path = Path("/")) -> bool:
    """Put one file in place, whole or not at all, once its own program takes it; was it changed?

    Raises NotYetError with what that program said.
    """
    path = root / str(file["path"]).lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = int(file["mode"], 8)
    owner, group = pwd.getpwnam(file["owner"]).pw_uid, grp.getgrnam(file["group"]).gr_gid
    with contextlib.suppress(OSError):
        have = path.stat()
        rights = (have.st_mode & 0o7777, have.st_uid, have.st_gid)
        if path.read_bytes() == text.encode() and rights == (mode, owner, group):
            return False
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    fresh = Path(name)
    try:
        with os.fdopen(handle, "wb") as target:
            os.fchown(target.fileno(), owner, group)
            os.fchmod(target.fileno(), mode)
            target.write(text.encode())
            target.flush()
            os.fsync(target.fileno())
        if file.get("check"):
            run([part.replace("%s", name) for part in file["check"]])
        fresh.rename(path)
    finally:
        fresh.unlink(missing_ok=True)
    return True


def run(argv: Sequence[str]) -> str:
    """What a command wrote. Raises NotYetError with its last words."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise NotYetError(
            f"{' '.join(argv[:3])}: {said[-1] if said else f'exit {done.returncode}'}"
        )
    return done.stdout


class Aws:
    """The calls to AWS, as the instance's own role. Region and endpoint are in the environment."""

    def __init__(self, me: Identity) -> None:
        import boto3  # noqa: PLC0415  0.3 s, and an instance that is none of ours needs none of it
        from botocore.config import Config  # noqa: PLC0415

        retries = {"mode": "standard", "total_max_attempts": 4}
        config = Config(connect_timeout=5, read_timeout=30, retries=retries)
        self._client = lambda service: boto3.client(service, config=config)
        self._me = me
        self._bucket = f"{me.fleet}-{me.env}-artifacts"

    def published(self, name: str) -> dict[str, Any] | None:
        """``join/<role>/<name>.json``, verified; None when nobody has published it."""
        from botocore.exceptions import ClientError  # noqa: PLC0415

        key = f"join/{self._me.role}/{name}.json"
        try:
            answer = self._client("s3").get_object(Bucket=self._bucket, Key=key)
        except ClientError as error:
            if error.response["Error"]["Code"] in {"NoSuchKey", "404"}:
                return None
            raise
        what = f"s3://{self._bucket}/{key}"
        return checked(answer["Body"].read(), answer["Metadata"].get("sha256", ""), what)

    def secrets(self, parameters: Mapping[str, str]) -> dict[str, str]:
        """Values by the bundle's own names; ``parameters``: to the names in SSM."""
        if not parameters:
            return {}
        wanted = sorted(parameters.values())
        answer = self._client("ssm").get_parameters(Names=wanted, WithDecryption=True)
        found = {one["Name"]: one["Value"] for one in answer["Parameters"]}
        absent = [name for name in wanted if name not in found]
        if absent:
            raise NotYetError(f"SSM has no parameter {', '.join(absent)}")
        return {name: found[parameter] for name, parameter in parameters.items()}

    def peers(self) -> list[Peer]:
        """Every host of our tier that is not gone."""
        wanted = {
            "tag:Fleet": [self._me.fleet],
            "tag:Env": [self._me.env],
            "tag:Role": [self._me.role],
            "instance-state-name": list(PRESENT),
        }
        filters = [{"Name": name, "Values": values} for name, values in wanted.items()]
        pages = self._client("ec2").get_paginator("describe_instances").paginate(Filters=filters)
        found = (i for page in pages for r in page["Reservations"] for i in r["Instances"])
        return [
            Peer(
                one["LaunchTime"].isoformat(),
                one["InstanceId"],
                next((t["Value"] for t in one.get("Tags", ()) if t["Key"] == "Name"), ""),
            )
            for one in found
        ]

    def take_name(self, name: str) -> None:
        """Set our tag Name."""
        tags = [{"Key": "Name", "Value": name}]
        self._client("ec2").create_tags(Resources=[self._me.instance_id], Tags=tags)


def configure(bundle: Mapping[str, Any], values: Mapping[str, str], root: Path) -> list[str]:
    """Put the bundle's files in place and see that its services run; the paths that changed."""
    changed = [
        file
        for file in bundle["files"]
        if install(file, filled(file["content"], values, quoted=bool(file.get("quoted"))), root)
    ]
    run(["hostnamectl", "set-hostname", values["name"]])
    run(["systemctl", "daemon-reload"])
    run(["systemctl", "enable", "--quiet", *bundle["enable"]])
    for unit in bundle["start"]:
        if run(["systemctl", "show", unit, "-P", "ActiveState"]).strip() != "active":
            run(["systemctl", "start", unit])
        elif any(file.get("unit") == unit for file in changed):
            run(["systemctl", "reload", unit])
    return [str(file["path"]) for file in changed]


def serve(aws: Aws) -> str:
    """Bring the current release up and wait until it is ready; what to say of it.

    The pointer is read again after the download, which takes longest: a deploy may have moved it.
    """
    release = aws.published("release")
    if release is None:
        return "is configured; no release was deployed yet, fab deploy.run brings one"
    while True:
        version = str(release["version"])
        run([RELEASE_TOOL, "stage", version, "--sha256", str(release["sha256"])])
        again = aws.published("release")
        if again == release:
            break
        release = again or release
    status = json.loads(run([RELEASE_TOOL, "status"]))
    if status["current"] != version or not status["active"] or status["stale"]:
        run([RELEASE_TOOL, "switch", version])
    run([RELEASE_TOOL, "wait", version])
    return f"serves {version}"


def join(
    ask: Callable[[str], str | None] = metadata,
    root: Path = Path("/"),
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Do all of it; what to say. Raises NotYetError, NotOursError."""
    begun = root / BEGUN
    if (root / CONFIGURED).exists() and not begun.exists():
        raise NotOursError("this host was configured by the playbook")
    me = identity(ask)
    aws = Aws(me)
    bundle = aws.published("bundle")
    if bundle is None:
        raise NotOursError(
            f"nothing is published for role {me.role} yet; fab fleet.configure does that"
        )
    if bundle["vpc_id"] != me.vpc_id:
        raise NotOursError(
            f"what is published is for {bundle['vpc_id']}, and this host is in {me.vpc_id}: an "
            "earlier fleet of this name; fab fleet.configure publishes anew"
        )
    begun.parent.mkdir(parents=True, exist_ok=True)
    begun.touch()
    secrets = aws.secrets(bundle["parameters"])
    name = claimed_name(me.role, me.instance_id, aws.peers, aws.take_name, sleep=sleep)
    configure(bundle, {"name": name, "address": me.address, **secrets}, root)
    said = serve(aws)
    record = {"instance_id": me.instance_id, "name": name}
    (root / JOINED).write_text(json.dumps(record) + "\n")
    begun.unlink(missing_ok=True)
    return f"{name} {said}"


def main() -> int:
    """Join and say how it went; the exit code."""
    started = time.monotonic()
    try:
        said = join()
    except NotOursError as reason:
        sys.stdout.write(f"nothing to do: {reason}\n")
        return 0
    except NotYetError as reason:
        sys.stderr.write(f"not yet, trying again: {reason}\n")
        return 1
    except Exception as error:
        # boto3's are many, and the next try is the same for all of them.
        sys.stderr.write(f"not yet, trying again: {type(error).__name__}: {error}\n")
        return 1
    sys.stdout.write(f"{said}, {time.monotonic() - started:.1f} s after it was begun\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
