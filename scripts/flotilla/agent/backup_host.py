"""A host as its backup tool sees it: who it is, and where its bucket and its keys are."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from flotilla.agent.patience import METADATA
from flotilla.aws.lean import Api, LeanTable, Metric, parameters
from flotilla.aws.own_role import METADATA_URL, OwnRole
from flotilla.backup.bucket import Bucket
from flotilla.backup.scratch import Scratch
from flotilla.backup.sealed import Ring, no_keys
from flotilla.errors import FlotillaError, Refused

log = logging.getLogger(__name__)

DATA = Path("/var/lib/mysql")
# The one place besides its data directory where Debian's AppArmor profile lets the server write.
WORK = Path("/var/lib/mysql-files/flotilla")
# A backup takes a copy of the data first, and a restore builds a second data directory.
SPARE = 1.15
# As watchers wait for the record, and for anything else.
RECORD_SECONDS, SLOW_SECONDS = 1.0, 5.0


def described_by(parser: argparse.ArgumentParser) -> None:
    """Have a tool's command line say what ``Host`` is made of."""
    parser.add_argument("--fleet", required=True)
    parser.add_argument("--env", required=True)
    parser.add_argument("--host", required=True, help="this host's name")
    parser.add_argument("--namespace", required=True, help="of the fleet's metrics")


class Host:
    """This host: who it is, where its bucket and its keys are."""

    def __init__(
        self, options: argparse.Namespace, environment: Mapping[str, str], role: str = "mysql"
    ) -> None:
        self.fleet, self.env, self.namespace = options.fleet, options.env, options.namespace
        self._role_name = role
        self._region = environment.get("AWS_REGION", "")
        if not self._region:
            raise Refused(
                "AWS_REGION is not set",
                "it belongs into /etc/flotilla/aws.env, which role base writes",
                "Nothing was changed",
                f"fab fleet.configure --limit {role}",
            )
        endpoint = environment.get("AWS_ENDPOINT_URL")
        self._role = OwnRole(environment.get(METADATA, METADATA_URL))
        self._quick = Api(self._region, self._role, endpoint_url=endpoint, seconds=RECORD_SECONDS)
        self._slow = Api(self._region, self._role, endpoint_url=endpoint, seconds=SLOW_SECONDS)
        self.name = options.host

    @cached_property
    def instance_id(self) -> str:
        """As EC2 calls it."""
        return self._role.text("instance-id")

    @cached_property
    def table(self) -> LeanTable:
        """Where records and leases are."""
        return LeanTable(self._quick, f"{self.fleet}-{self.env}-clusters", "cluster", "lease_term")

    @cached_property
    def bucket(self) -> Bucket:
        """Where backups are."""
        return Bucket(self._client("s3"), f"{self.fleet}-{self.env}-backups")

    @cached_property
    def scratch(self) -> Scratch:
        """Hosts for restore drills."""
        return Scratch(self._client("ec2"), self.fleet, self.env)

    def tell(self, metrics: Mapping[str, Metric]) -> bool:
        """Put metrics, and whether they were taken; what CloudWatch refuses is said in the journal
        and costs nothing else.
        """
        try:
            self._slow.put_metrics(self.namespace, {"Role": self._role_name}, metrics)
        except FlotillaError as error:
            log.warning("metrics %s were not stored: %s", ", ".join(metrics), error.what)
            return False
        return True

    def _client(self, service: Literal["ec2", "s3"]) -> Any:
        # Region, endpoint and keys boto3 finds by itself.
        import boto3  # noqa: PLC0415  30 MiB, for those verbs only that need it
        from botocore.config import Config  # noqa: PLC0415

        retries: Any = {"mode": "standard", "total_max_attempts": 3}
        config = Config(connect_timeout=5, read_timeout=60, retries=retries)
        return boto3.client(service, config=config)

    def ring(self) -> Ring:
        """The keys, read again each time: they may have been rotated. Raises FlotillaError."""
        name = f"/{self.fleet}/{self.env}/{self._role_name}/backup_keys"
        found = parameters(self._slow, {name: "keys"})
        if "keys" not in found:
            raise no_keys(name)
        return Ring.parse(found["keys"])


def no_room(where: Path, free: int, need: int) -> Refused:
    """Why nothing is done on a file system with too few bytes free."""
    return Refused(
        f"{where} has {free >> 20} MiB free, and {need >> 20} MiB are needed",
        "a copy of the data is made there first",
        "Nothing was changed",
        "docs/runbooks/disk-is-full.md",
    )


def say(text: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
