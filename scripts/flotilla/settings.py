"""The shape of fleet.yml: what a fleet is, key by key, and what each key may hold.

No key has a default: Ansible reads the same file without these models, so a value that existed only
here would be seen by Python and not by the roles. Nothing in this module reads or writes anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr

from flotilla.kinds import (
    Account,
    Command,
    Folder,
    InstanceType,
    Line,
    LocalPath,
    Name,
    Names,
    Network,
    Networks,
    Parameter,
    Region,
    Section,
    Text,
    Url,
    UrlPath,
    Word,
    Words,
    listed,
    root_certificates,
    split_by_shell,
)
from flotilla.settings_deploy import DeploySection

ROLES = ("bastion", "lb", "app", "mysql", "redis")
# Hosts that live for one restore drill: made of their tier's image, with rights of their own, and
# in nobody's inventory.
SCRATCH = {"restore": "mysql"}

# Ports that a fleet's own services hold on an application host.
TAKEN_PORTS = {
    22: "SSH",
    80: "nginx",
    443: "nginx",
    3306: "MySQL writer",
    3307: "MySQL readers",
    6379: "Redis",
}


def _port(number: int) -> int:
    if number in TAKEN_PORTS:
        raise ValueError(f"port {number} is {TAKEN_PORTS[number]}'s; choose another one")
    return number


class Aws(Section):
    """Which account and API the fleet lives in."""

    profile: Line | None
    credentials_file: LocalPath | None
    endpoint_url: Url | None
    instance_endpoint_url: Url | None
    hint: Line


class Ssh(Section):
    """How operators log in."""

    user: Account
    key_file: LocalPath
    allow_from: Networks


class Inventory(Section):
    """How old the list of hosts may be, in seconds."""

    fresh_seconds: Annotated[int, Field(ge=0, le=3600)]
    max_age_seconds: Annotated[int, Field(ge=10, le=3600)]
    other_regions: Annotated[tuple[Region, ...], BeforeValidator(listed)]


class Acme(Section):
    """The authority that certificates are ordered from, and whom it may write to."""

    directory: Annotated[
        str,
        Text(
            r"https://[A-Za-z0-9.:-]+(/[A-Za-z0-9._~/-]*)?",
            "the authority's directory: https://...",
        ),
    ]
    email: Annotated[
        str, Text(r"[A-Za-z0-9._+-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", "an e-mail address")
    ]
    # Of an authority of one's own; null for one that browsers trust.
    ca_pem: Annotated[str, AfterValidator(root_certificates)] | None


class LoadBalancer(Section):
    """Who may reach the load balancers, and their certificate."""

    allow_from: Networks
    certificate_parameter: Parameter | None
    acme: Acme | None


class Tier(Section):
    """How many hosts of a role, and how large."""

    count: Annotated[int, Field(ge=1, le=1000)]
    type: InstanceType
    disk_gb: Annotated[int, Field(ge=8, le=16384)]


class Tiers(Section):
    """One tier for each role."""

    bastion: Tier
    lb: Tier
    app: Tier
    mysql: Tier
    redis: Tier

    def items(self) -> Iterator[tuple[str, Tier]]:
        """Role and tier, in the order of ``ROLES``."""
        return ((role, getattr(self, role)) for role in ROLES)


class Application(Section):
    """The program the fleet serves."""

    name: Name
    # One of the two: what builds the tarball ({version} and {output} are filled in), or where it is
    # (a path or an s3:// address; {version} is filled in).
    build: (
        Annotated[
            str,
            Text(r".*\{output\}.*", "a command with {output} in it"),
            AfterValidator(split_by_shell),
        ]
        | None
    )
    artifact: Line | None
    start: Command
    port: Annotated[int, Field(ge=1024, le=65535), AfterValidator(_port)]
    health_path: UrlPath
    ready_path: UrlPath
    version_path: UrlPath
    static_dir: Folder | None
    migrate: Command | None
    boot_seconds: Annotated[int, Field(ge=1, le=900)]
    environment: dict[
        Annotated[str, Text(r"[A-Z_][A-Z0-9_]*", "the name of a variable, in upper case")], str
    ]


class SourceImage(Section):
    """The public machine image that ours are built from; the newest match is taken."""

    owner: Annotated[
        str,
        Text(
            r"\d{12}|self|amazon|aws-marketplace",
            "an account of 12 digits in quotes, or self, amazon or aws-marketplace",
        ),
    ]
    name: Line


class Packer(Section):
    """The temporary host an image is built on."""

    type: InstanceType
    subnet_id: Annotated[str, Text(r"subnet-[0-9a-f]+", "a subnet id, or null")] | None
    ssh_interface: Literal["public_ip", "private_ip"]
    timeout_minutes: Annotated[int, Field(ge=1, le=240)]


class Images(Section):
    """How machine images are made and how many are kept."""

    source: SourceImage
    keep: Annotated[int, Field(ge=1, le=100)]
    packer: Packer


class AptSource(Section):
    """The package source that real MySQL is installed from."""

    uri: Url | None
    suite: Word
    components: Words
    signing_key: Line | None
    check_valid_until: bool
    packages: Words


class Mysql(Section):
    """The database."""

    database: Annotated[
        str, Text(r"[a-z][a-z0-9_]{0,63}", "lower case letters, digits and underscores")
    ]
    user: Annotated[
        str, Text(r"[a-z][a-z0-9_]{0,31}", "lower case letters, digits and underscores")
    ]
    buffer_pool_mb: Annotated[int, Field(ge=64)]
    apt: AptSource


class Redis(Section):
    """The cache and session store."""

    maxmemory_mb: Annotated[int, Field(ge=16)]
    maxmemory_policy: Literal[
        "noeviction", "allkeys-lru", "allkeys-lfu", "volatile-lru", "volatile-lfu", "volatile-ttl"
    ]
    down_after_seconds: Annotated[float, Field(ge=0.5, le=120)]


class Cloudwatch(Section):
    """Where measurements and logs go."""

    namespace: Annotated[
        str, Text(r"[A-Za-z0-9_./#-]{1,255}", "letters, digits and any of _ . / # -")
    ]
    interval_seconds: Literal[10, 30, 60, 300]
    # The days CloudWatch Logs accepts.
    log_retention_days: Literal[1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731]


class Backups(Section):
    """Where backups are kept a second time, so that the loss of a region is not theirs."""

    copy_region: Region | None


class Secrets(Section):
    """Passwords and keys: which KMS key seals them in SSM, and how old one may be."""

    kms_key: (
        Annotated[
            str,
            Text(
                r"alias/[A-Za-z0-9/_-]{1,250}|arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:\S+",
                "alias/NAME or the ARN of a key in this region, or null for AWS's own",
            ),
        ]
        | None
    )
    max_age_days: Annotated[int, Field(ge=1, le=3650)]


class Settings(Section):
    """One fleet in one environment: everything under ``fleet:`` in fleet.yml.

    ``flotilla.config.load`` makes these; the paths and the digest come with the file it read.
    """

    name: Name
    env: Name
    region: Region
    zones: Names
    vpc_cidr: Network
    domain: Annotated[
        str,
        Text(
            r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}",
            "a host name such as www.acme.example",
        ),
    ]
    aws: Aws
    ssh: Ssh
    inventory: Inventory
    lb: LoadBalancer
    tiers: Tiers
    application: Application
    deploy: DeploySection
    images: Images
    mysql: Mysql
    redis: Redis
    backups: Backups
    secrets: Secrets
    cloudwatch: Cloudwatch
    _root: Path = PrivateAttr(default_factory=Path)
    _digest: str = PrivateAttr(default="")

    @property
    def prefix(self) -> str:
        """``<fleet>-<env>``: how every AWS name of ours begins."""
        return f"{self.name}-{self.env}"

    @property
    def root(self) -> Path:
        """The repository that the file was read in; relative paths start here."""
        return self._root

    @property
    def scratch(self) -> Path:
        """``var/<env>``: snapshots, SSH files, journals."""
        return self._root / "var" / self.env

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes of fleet.yml, to tell whether something derived is out of date."""
        return self._digest

    def elsewhere(self, region: str) -> Settings:
        """The same fleet's corner of another region."""
        return self.model_copy(update={"region": region})

    def path(self, relative: str) -> Path:
        """A path of fleet.yml made absolute; ``~`` is the operator's home."""
        return self._root / Path(relative).expanduser()

    def name_of(self, suffix: str) -> str:
        """An AWS name: ``name_of("locks")`` is ``<fleet>-<env>-locks``."""
        return f"{self.prefix}-{suffix}"

    def parameter(self, role: str, name: str) -> str:
        """The SSM parameter of a secret: ``/<fleet>/<env>/<role>/<name>``."""
        return f"/{self.name}/{self.env}/{role}/{name}"

    def zone(self, role: str) -> str:
        """The name that every host of a role can prove to have; its hosts' own are below it."""
        return f"{role}.{self.name}.{self.env}.internal"

    def placed(self, root: Path, digest: str) -> Settings:
        """The same settings, knowing where their file was and what it held."""
        copy = self.model_copy()
        copy._root = root  # noqa: SLF001  a copy of our own class
        copy._digest = digest  # noqa: SLF001
        return copy
