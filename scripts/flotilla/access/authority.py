"""The fleet's two CAs, and what follows from them for hosts."""

from __future__ import annotations

from collections.abc import Sequence

from flotilla.aws import grants, secrets
from flotilla.errors import Refused
from flotilla.hosts import certificates
from flotilla.rules import access as rules
from flotilla.settings import Settings


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
        self._settings = settings
        self._user, self._host = found[names["user"]], found[names["host"]]

    @property
    def user(self) -> str:
        """The public key by which hosts know certificates of people."""
        return certificates.public_of(self._user, f"people@{self._settings.prefix}")

    @property
    def host(self) -> str:
        """The public key by which people know certificates of hosts."""
        return certificates.public_of(self._host, f"hosts@{self._settings.prefix}")

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
    # Made anew, the list of what is revoked has another date in it.
    body, told = trust(settings, authority), grants.published(settings)
    if told and rules.is_same(body, told):
        return False
    return grants.publish(settings, body, dry=dry)
