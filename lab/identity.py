"""Who an instance is to the API: the role of its instance profile, and the keys it holds for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

# EC2 hands out keys for about six hours and has new ones ready well before the old ones expire;
# the SDKs begin to ask again a quarter of an hour before.
LIFETIME = timedelta(hours=6)
RENEW_BEFORE = timedelta(hours=1)

# Role name by access key, for every key this process gave out.
_given: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Role:
    """The role behind an instance profile."""

    name: str
    arn: str
    profile_arn: str
    profile_id: str


@dataclass(frozen=True, slots=True)
class Keys:
    """Temporary keys of one instance for one role; times are UTC."""

    access_key: str
    secret_key: str
    token: str
    issued: datetime
    expires: datetime


class Identity:
    """Mints keys through STS, so that GetCallerIdentity names the role and the instance.

    `backend` gives moto's backend of the account by service name; `now` is the clock (UTC).
    """

    def __init__(
        self,
        backend: Callable[[str], Any],
        region: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._backend, self._region, self._now = backend, region, now
        self._held: dict[tuple[str, str], Keys] = {}
        self._lock = threading.Lock()

    def role(self, profile_arn: str | None) -> Role | None:
        """The role of an instance profile; None without a profile, or for one that has no role."""
        for profile in self._backend("iam").get_instance_profiles() if profile_arn else []:
            if profile.arn == profile_arn and profile.roles:
                role = profile.roles[0]
                return Role(role.name, role.arn, profile.arn, profile.id)
        return None

    def keys(self, instance_id: str, role: Role) -> Keys:
        """The instance's keys for `role`, renewed an hour before they expire."""
        with self._lock:
            held = self._held.get((instance_id, role.arn))
            if held is None or held.expires - self._now() < RENEW_BEFORE:
                held = self._held[instance_id, role.arn] = self._mint(instance_id, role)
            return held

    def _mint(self, instance_id: str, role: Role) -> Keys:
        issued = self._now()
        assumed = self._backend("sts").assume_role(
            region_name=self._region,
            role_session_name=instance_id,
            role_arn=role.arn,
            policy=None,
            duration=int(LIFETIME.total_seconds()),
            external_id=None,
        )
        _given[assumed.access_key_id] = role.name
        return Keys(
            assumed.access_key_id,
            assumed.secret_access_key,
            assumed.session_token,
            issued,
            issued + LIFETIME,
        )


def role_of(access_key: str) -> str | None:
    """Name of the role behind a key that this process gave out; None for any other key."""
    return _given.get(access_key)
