"""The fleet's certificate authority in SSM: the root for the operator alone, an issuer for a role.

``/<fleet>/<env>/operator/authority`` is the root with its key: no host's role may read below that
path. ``authority/certificate`` is what everybody trusts, ``<role>/tls_issuer`` a role's own.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any

from flotilla.aws.errors import described
from flotilla.aws.secrets import sealed_by
from flotilla.errors import Refused
from flotilla.provision.change import Change, Stage
from flotilla.provision.world import World
from flotilla.rules import authority as rules

# Roles whose hosts serve TLS with a certificate of their own.
HOLDERS = ("redis", "app", "mysql")
ROOT, CERTIFICATE = ("operator", "authority"), ("authority", "certificate")
ISSUER = "tls_issuer"


def stages(world: World) -> list[Stage]:
    """The root before what it makes."""
    path, public = (world.settings.parameter(*name) for name in (ROOT, CERTIFICATE))
    known = _value(world, path)
    root = _root(path, known) if known else None
    if root is None:
        _demand_new(world, path)
    made = [Change("create", "authority", path, partial(_make_root, world))] if not root else []
    told = _value(world, public)
    if root is None or told != root.public():
        act = partial(_tell, world)
        made.append(Change("change" if told else "create", "certificate", public, act))
    issuers = [change for role in HOLDERS for change in _issuer(world, role, root)]
    return [made[:1], [*made[1:], *issuers]]


def _demand_new(world: World, path: str) -> None:
    """Raises Refused where a root was lost: another one would be trusted by no host."""
    left = [world.settings.parameter(*CERTIFICATE)]
    left += [world.settings.parameter(role, ISSUER) for role in HOLDERS]
    there = [name for name in left if _value(world, name)]
    if there:
        raise Refused(
            f"SSM has no parameter {path}, and has what it signed: {', '.join(there)}",
            "hosts go on until the issuer ends; another root means that every host and application"
            " is configured anew at once, and cannot be reached in between",
            "Nothing was changed",
            f"aws ssm get-parameter-history --name {path} --with-decryption; for another root, "
            f"aws ssm delete-parameters --names {' '.join(there)}, then fab fleet.provision",
        )


def _issuer(world: World, role: str, root: rules.Authority | None) -> list[Change]:
    path = world.settings.parameter(role, ISSUER)
    act = partial(_make_issuer, world, role)
    found = _value(world, path)
    if not found:
        return [Change("create", "issuer", path, act)]
    why = "another root made it"
    if root is not None:
        why = rules.why_new(found, *_scope(world, role), root.certificate, _now())
    return [Change("change", "issuer", path, act, why)] if why else []


def _make_root(world: World) -> None:
    ssm, path = world.client("ssm"), world.settings.parameter(*ROOT)
    made = rules.root(world.settings.name, world.settings.env, rules.new_key(), _now())
    try:
        _put(world, ROOT, made.pem(), overwrite=False)
    except ssm.exceptions.ParameterAlreadyExists:
        _root(path, _value(world, path))  # another run was first


def _tell(world: World) -> None:
    _put(world, CERTIFICATE, _made(world).public(), overwrite=True)


def _make_issuer(world: World, role: str) -> None:
    made = rules.issuer(*_scope(world, role), _made(world), rules.new_key(), _now())
    _put(world, (role, ISSUER), made.pem(), overwrite=True)


def _made(world: World) -> rules.Authority:
    path = world.settings.parameter(*ROOT)
    return _root(path, _value(world, path))


def _root(path: str, pem: str) -> rules.Authority:
    try:
        return rules.read(pem)
    except ValueError as error:
        raise Refused(
            f"SSM's parameter {path} is no authority: {error}",
            "every certificate hangs on it, and another one would be trusted by nobody",
            "Nothing was changed",
            f"aws ssm get-parameter-history --name {path} --with-decryption",
        ) from error


def _scope(world: World, role: str) -> tuple[str, str]:
    settings = world.settings
    return settings.zone(role), str(settings.vpc_cidr)


def _value(world: World, path: str) -> str:
    """A parameter's value, empty where there is none."""
    with described(world.settings, f"read {path}"):
        found = world.client("ssm").get_parameters(Names=[path], WithDecryption=True)["Parameters"]
    return str(found[0]["Value"]) if found else ""


def _put(world: World, name: tuple[str, str], value: str, *, overwrite: bool) -> None:
    ssm, path = world.client("ssm"), world.settings.parameter(*name)
    common: dict[str, Any] = {"Name": path, "Value": value, "Type": "SecureString"}
    common |= sealed_by(world.settings)
    # SSM takes tags of new parameters only.
    if overwrite and _value(world, path):
        ssm.put_parameter(**common, Overwrite=True)
        return
    role = {} if name[0] in (ROOT[0], CERTIFICATE[0]) else {"Role": name[0]}
    ssm.put_parameter(**common, Overwrite=False, Tags=world.tags(path, **role))


def _now() -> datetime:
    return datetime.now(UTC)
