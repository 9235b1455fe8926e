"""The fleet's two CAs, and what follows from them for hosts."""

from __future__ import annotations

from collections.abc import Sequence

from flotilla.aws import grants, secrets
from flotilla.errors import FlotillaError, Refused
from flotilla.hosts import certificates
from flotilla.rules import access as rules
from flotilla.settings import Settings

# How often somebody else may come first.
_TRIES = 5


class Authority:
    """Signs; its keys are read from SSM once, and never written down. Raises Refused without."""

    def __init__(self, settings: Settings) -> None:
        names = {kind: settings.parameter("ssh", f"{kind}_ca") for kind in ("user", "host")}
        try:
            found = secrets.named(settings, names.values())
        except Refused as error:
            error.why = "it is the key that certificates are signed with"
            error.next = "fab fleet.provision"
            raise
        self._user, self._host = found[names["user"]], found[names["host"]]
        # The public keys by which hosts know certificates of people, and people those of hosts.
        # Now: a key that cannot be read is found before anything is recorded.
        self.user = certificates.public_of(self._user, f"people@{settings.prefix}")
        self.host = certificates.public_of(self._host, f"hosts@{settings.prefix}")

    def person(self, grant: rules.Grant, key: str) -> str:
        """The certificate that a grant stands for."""
        return certificates.signed(
            self._user,
            key,
            identity=grant.name,
            principals=[grant.principal],
            serial=grant.serial,
            begins=grant.begins,
            ends=grant.ends,
        )

    def machine(self, key: str, names: Sequence[str], *, now: int) -> str:
        """The certificate of a host's key, for the names and addresses it is reached by."""
        return certificates.signed(
            self._host,
            key,
            identity=names[0],
            principals=names,
            serial=now,
            begins=now - rules.EARLY_SECONDS,
            ends=now + rules.HOST_SECONDS,
            is_host=True,
        )


def trust(settings: Settings, authority: Authority) -> bytes:
    """What hosts have to be told now, from the records alone."""
    revoked = sorted(grants.revoked(settings))
    # The number of revocations grows with each of them, whoever made it and from wherever.
    return rules.trust(
        authority.user,
        certificates.revocations(authority.user, revoked),
        len(revoked),
        settings.ssh.user,
    )


def publish(settings: Settings, authority: Authority, *, dry: bool = False) -> bool:
    """Tell hosts whom to trust; whether they were told something else."""
    for _ in range(_TRIES):
        # Before the records: who revokes meanwhile replaces it, and an older list is not taken.
        told, mark = grants.published(settings)
        body = trust(settings, authority)
        # Made anew, the list of what is revoked has another date in it.
        if told and rules.is_same(body, told):
            return False
        if dry or grants.publish(settings, body, over=mark):
            return True
    raise FlotillaError(
        f"what hosts are told was replaced {_TRIES} times by somebody else",
        why="people are let in or out at the same time, and the newest list must win",
        untouched="Hosts have what was told last",
        next="the same command again",
    )
