"""What the steps of provisioning share: clients, names, tags, and the ids AWS gave to named
things.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml
from botocore.exceptions import ClientError

from flotilla import images
from flotilla.aws import session
from flotilla.aws.errors import code
from flotilla.errors import FlotillaError, Unreachable
from flotilla.images import Image
from flotilla.settings import Settings
from flotilla.wait import DeadlineError, until

DATA = Path(__file__).resolve().parents[1] / "data"
MANAGED_BY = "flotilla"
POLL_SECONDS = 0.5
T = TypeVar("T")


class World:
    """One fleet's corner of an AWS account.

    ``ids`` fills up as the steps find and make things, so that a later step can name what an
    earlier one made. ``sleep`` takes seconds and ``clock`` returns them; tests pass their own.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.ids: dict[tuple[str, str], str] = {}
        self._images: dict[str, Image] = {}
        self._sleep = sleep
        self._clock = clock

    def client(self, service: str) -> Any:
        """The shared boto3 client of ``service``."""
        return session.client(self.settings, service)

    @property
    def ec2(self) -> Any:
        """The EC2 client, by far the most used."""
        return self.client("ec2")

    @cached_property
    def account(self) -> str:
        """The twelve digits of the account."""
        return str(self.client("sts").get_caller_identity()["Account"])

    def image(self, role: str) -> Image:
        """The image new hosts of ``role`` get, looked up once: what is planned is what is made.

        Raises Refused when there is no tested one.
        """
        if role not in self._images:
            self._images[role] = images.latest_tested(self.settings, role)
        return self._images[role]

    def use(self, image: Image) -> None:
        """Give new hosts of its role this image, instead of the newest tested one."""
        self._images[image.role] = image

    def id(self, kind: str, name: str) -> str:
        """The id of something seen or made before; FlotillaError when there is none."""
        try:
            return self.ids[kind, name]
        except KeyError:
            raise FlotillaError(
                f"there is no {kind} {name}",
                why="another part of the fleet needs it and it has vanished meanwhile",
                next="fab fleet.provision",
            ) from None

    def tags(self, name: str, **more: str) -> list[dict[str, str]]:
        """The tags of everything we make, in the form most services take."""
        tags = {
            "Name": name,
            "Fleet": self.settings.name,
            "Env": self.settings.env,
            "ManagedBy": MANAGED_BY,
        }
        return [{"Key": key, "Value": value} for key, value in (tags | more).items() if value]

    def tagged(self, resource: str, name: str, **more: str) -> list[dict[str, Any]]:
        """``TagSpecifications`` for an EC2 call that creates one ``resource``."""
        return [{"ResourceType": resource, "Tags": self.tags(name, **more)}]

    def mine(self, *names: str) -> list[dict[str, Any]]:
        """EC2 filters that match only what we made for this fleet and environment, optionally by
        Name.
        """
        wanted = {
            "Fleet": [self.settings.name],
            "Env": [self.settings.env],
            "ManagedBy": [MANAGED_BY],
        }
        if names:
            wanted["Name"] = list(names)
        return [{"Name": f"tag:{key}", "Values": values} for key, values in wanted.items()]

    def owns(self, resource: Mapping[str, Any]) -> bool:
        """Whether the resource carries our three tags."""
        found = [tag(resource, key) for key in ("Fleet", "Env", "ManagedBy")]
        return found == [self.settings.name, self.settings.env, MANAGED_BY]

    def wait(self, what: str, ready: Callable[[], T | None], *, seconds: float) -> T:
        """The first true answer of ``ready``; Unreachable after ``seconds`` without one."""
        try:
            return until(
                ready, seconds=seconds, every=POLL_SECONDS, clock=self._clock, sleep=self._sleep
            )
        except DeadlineError as error:
            raise Unreachable(f"{what}: {error}", next="fab fleet.provision") from error

    def persist(self, act: Callable[[], T], *, codes: Iterable[str], seconds: float = 90) -> T:
        """Call ``act`` again while AWS answers with one of ``codes``: what was just made is not
        seen everywhere yet.
        """
        deadline = self._clock() + seconds
        passing = set(codes)
        while True:
            try:
                return act()
            except ClientError as error:
                if code(error) not in passing or self._clock() >= deadline:
                    raise
            self._sleep(2 * POLL_SECONDS)


@cache
def data(name: str) -> Any:
    """A file of ``flotilla/data``, parsed once (JSON is YAML as well). Not to be changed."""
    return yaml.safe_load((DATA / name).read_text(encoding="utf-8"))


def tag(resource: Mapping[str, Any], key: str) -> str:
    """The value of a tag, "" when there is none."""
    return next((t["Value"] for t in resource.get("Tags", ()) if t["Key"] == key), "")


def by_name(resources: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Resources by their tag Name."""
    return {tag(resource, "Name"): resource for resource in resources}


def letter(zone: str) -> str:
    """The last letter of a zone: ``a`` of ``eu-central-1a``."""
    return zone[-1]
