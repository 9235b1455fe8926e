"""The fleet's secrets as SSM keeps them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flotilla.aws.session import client, described
from flotilla.errors import FlotillaError, Refused
from flotilla.rules.secrets import SUFFIXES, Held, Write, gathered, written
from flotilla.settings import Settings

# What everybody trusts; see provision.authority.
CERTIFICATE = ("authority", "certificate")
# GetParameters takes no more names at once.
_MOST = 10


@dataclass(frozen=True, slots=True)
class Stored:
    """When a parameter was last written (seconds since the epoch), by whom, and with which key.

    ``by`` is what the writer said of itself, or the identity that AWS knows.
    """

    changed_at: float
    by: str
    key: str


def of_roles(settings: Settings, roles: Iterable[str]) -> dict[str, str]:
    """Every secret of these roles: "<role>/<name>" to its value.

    Raises Refused naming a role that has none (the fleet is not provisioned), and Unreachable.
    """
    found: dict[str, str] = {}
    for role in sorted(set(roles)):
        above = settings.parameter(role, "")
        with described(settings, f"read the secrets below {above}"):
            pages = client(settings, "ssm").get_paginator("get_parameters_by_path")
            mine = {
                f"{role}/{parameter['Name'].removeprefix(above)}": parameter["Value"]
                for page in pages.paginate(Path=above, Recursive=True, WithDecryption=True)
                for parameter in page["Parameters"]
            }
        if not mine:
            raise Refused(
                f"SSM has no secret below {above}",
                "hosts would be configured with empty passwords",
                "Nothing was changed",
                "fab fleet.provision",
            )
        found |= mine
    return found


def demand(settings: Settings, found: Iterable[str], wanted: Iterable[str]) -> None:
    """Raise Refused naming what is ``wanted`` and not ``found``, both as "<role>/<name>"."""
    paths = [settings.parameter(*key.split("/", 1)) for key in sorted({*wanted} - {*found})]
    if paths:
        raise Refused(
            f"SSM has no parameter {', '.join(paths)}",
            "some hosts would be configured and others not, before it is missed",
            "Nothing was changed",
            "fab fleet.provision",
        )


def named(settings: Settings, names: Iterable[str], *, are_ours: bool = False) -> dict[str, str]:
    """Secrets by their full parameter names. Raises Refused naming those that do not exist.

    Those that ``are_ours`` are made with a fleet; others somebody stores, and fleet.yml names them.
    """
    wanted = sorted(set(names))
    if not wanted:
        return {}
    with described(settings, f"read {', '.join(wanted)}"):
        answer = client(settings, "ssm").get_parameters(Names=wanted, WithDecryption=True)
    if answer["InvalidParameters"]:
        raise Refused(
            f"SSM has no parameter {', '.join(answer['InvalidParameters'])}",
            "it is made with a fleet, and nobody can store another one in its place"
            if are_ours
            else f"fleet.yml of environment {settings.env!r} names it",
            "Nothing was changed",
            "fab fleet.provision"
            if are_ours
            else "aws ssm put-parameter --type SecureString --name NAME --value file://FILE",
        )
    return {parameter["Name"]: parameter["Value"] for parameter in answer["Parameters"]}


def authority(settings: Settings) -> str:
    """The certificate (PEM) of the fleet's authority. Raises Refused where there is none yet."""
    name = settings.parameter(*CERTIFICATE)
    return named(settings, [name], are_ours=True)[name]


def held(settings: Settings, role: str, parameters: Iterable[str]) -> dict[str, Held]:
    """What SSM holds of secrets of a role, those of a rotation too; absent ones are left out."""
    above = settings.parameter(role, "")
    names = [f"{above}{name}{suffix}" for name in parameters for suffix in ("", *SUFFIXES)]
    found: dict[str, str] = {}
    with described(settings, f"read secrets below {above}"):
        for first in range(0, len(names), _MOST):
            some = names[first : first + _MOST]
            answer = client(settings, "ssm").get_parameters(Names=some, WithDecryption=True)
            found |= {one["Name"].removeprefix(above): one["Value"] for one in answer["Parameters"]}
    return gathered(found)


def version(settings: Settings, role: str, parameter: str) -> int:
    """How often a secret was written; no value is read."""
    name = settings.parameter(role, parameter)
    with described(settings, f"read the version of {name}"):
        answer = client(settings, "ssm").get_parameter(Name=name)
    return int(answer["Parameter"]["Version"])


def write(
    settings: Settings,
    role: str,
    parameter: str,
    change: Write,
    *,
    by: str,
    check: Callable[[], None] = lambda: None,
) -> Held:
    """Make one change of a rotation and read it back: what SSM holds now.

    ``check`` raises where the lock is lost; it is asked when all has been read. A machine that was
    asleep meanwhile would bring back a value that another one has ended. Raises FlotillaError where
    SSM does not hold what was written.
    """
    name = settings.parameter(role, parameter) + change.suffix
    before = held(settings, role, [parameter]).get(parameter)
    if before is None:
        raise Refused(
            f"SSM has no parameter {settings.parameter(role, parameter)} any more",
            "somebody deleted it in the middle of a rotation",
            "Nothing was changed by this step; what hosts have been given works on",
            "docs/runbooks/rotate-a-secret.md",
        )
    ssm = client(settings, "ssm")
    check()
    with described(settings, f"write {name}"):
        if change.value is None:
            # Gone already is what was wanted.
            ssm.delete_parameters(Names=[name])
        else:
            ssm.put_parameter(
                Name=name,
                Value=change.value,
                Type="SecureString",
                Overwrite=True,
                Description=by,
                **sealed_by(settings),
            )
    now = held(settings, role, [parameter]).get(parameter)
    if now != written(before, change):
        raise FlotillaError(
            f"{name} is not what was written",
            "somebody else may have changed it in this moment",
            "SSM keeps its earlier versions",
            "fab secrets.status",
        )
    return now


def sealed_by(settings: Settings) -> dict[str, str]:
    """What PutParameter is told of the KMS key; without it, SSM takes AWS's own."""
    key = settings.secrets.kms_key
    return {"KeyId": key} if key else {}


def stored(settings: Settings) -> dict[str, Stored]:
    """Every parameter of the fleet by its full name; no value is read."""
    above = f"/{settings.name}/{settings.env}"
    path = {"Key": "Path", "Option": "Recursive", "Values": [above]}
    with described(settings, f"list the secrets below {above}"):
        pages = client(settings, "ssm").get_paginator("describe_parameters")
        return {
            one["Name"]: Stored(
                one["LastModifiedDate"].timestamp(),
                one.get("Description") or one.get("LastModifiedUser", ""),
                one.get("KeyId", ""),
            )
            for page in pages.paginate(ParameterFilters=[path])
            for one in page["Parameters"]
        }
