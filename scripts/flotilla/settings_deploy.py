"""The ``deploy`` section of fleet.yml: how releases are rolled out, when, and who is told."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from flotilla.kinds import Line, Parameter, Section, Text, listed

_DAY = r"\d{4}-\d{2}-\d{2}"
_CLOCK = r"([01]\d|2[0-3]):[0-5]\d|24:00"


def _quoted(value: Any) -> Any:
    # YAML reads 17:30 as the number 1050 and 2026-12-24 as a date of its own.
    if isinstance(value, str):
        return value
    raise ValueError("put it in quotes; YAML reads a bare time or date as something else")


def _zone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (KeyError, ValueError, OSError):
        raise ValueError("it must be a time zone such as Europe/Berlin or UTC") from None
    return text


def _canary_first(batches: tuple[str, ...]) -> tuple[str, ...]:
    if batches[0] != "1":
        raise ValueError('the first batch must be "1", the canary')
    return batches


def _growing(shares: tuple[int, ...]) -> tuple[int, ...]:
    if shares[-1] != 100 or list(shares) != sorted(set(shares)):
        raise ValueError("the shares must grow and end with 100")
    return shares


Percent = Annotated[int, Field(ge=1, le=100)]
Seconds = Annotated[int, Field(ge=0, le=3600)]
Long = Annotated[int, Field(ge=10, le=86400)]
BatchSize = Annotated[
    str, Text(r"[1-9]\d*|([1-9]\d?|100)%", 'a number of hosts or a share, in quotes: "1" or "50%"')
]
Moment = Annotated[
    str,
    BeforeValidator(_quoted),
    Text(
        rf"{_CLOCK}|{_DAY} ({_CLOCK})",
        'a time such as "16:00", or a day and a time such as "2026-12-24 12:00"',
    ),
]
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
# A command and its arguments, one list element each: no shell is between.
Command = Annotated[tuple[Line, ...], BeforeValidator(listed), Field(min_length=1)]
Commands = Annotated[tuple[Command, ...], BeforeValidator(listed)]
Topic = Annotated[
    str, Text(r"arn:aws[a-z-]*:sns:[a-z0-9-]+:\d{12}:[A-Za-z0-9_-]+", "the ARN of an SNS topic")
]


class Freeze(Section):
    """A time in which nothing is deployed: on ``days`` of every week, or once when dates say so."""

    model_config = ConfigDict(serialize_by_alias=True)

    begin: Moment = Field(alias="from")
    end: Moment = Field(alias="to")
    days: Annotated[tuple[Weekday, ...], BeforeValidator(listed)] = ()
    reason: Line

    @model_validator(mode="after")
    def _one_kind(self) -> Freeze:
        dated = [" " in moment for moment in (self.begin, self.end)]
        if any(dated) if self.days else not all(dated):
            raise ValueError(
                "with days, from and to are times of day; without them, both are a day and a time"
            )
        if not self.days and self.begin >= self.end:
            raise ValueError("it must end after it begins")
        return self


class Windows(Section):
    """When no deploy may begin. Times are those of ``timezone``."""

    timezone: Annotated[Line, AfterValidator(_zone)]
    freeze: Annotated[tuple[Freeze, ...], BeforeValidator(listed)]


class Hooks(Section):
    """Commands run on the operator's machine; rules in the example of production."""

    before: Commands
    after: Commands
    before_host: Commands
    after_host: Commands
    deadline_seconds: Annotated[int, Field(ge=1, le=900)]


class Notify(Section):
    """Who is told that a deploy began and how it ended."""

    webhook_url_parameter: Parameter | None
    sns_topic: Topic | None


class DeploySection(Section):
    """How a release gets onto the fleet."""

    batches: Annotated[
        tuple[BatchSize, ...],
        BeforeValidator(listed),
        Field(min_length=1),
        AfterValidator(_canary_first),
    ]
    floor_percent: Annotated[int, Field(ge=1, le=99)]
    headroom_percent: Annotated[int, Field(ge=100, le=1000)]
    drain_seconds: Annotated[int, Field(ge=1, le=3600)]
    soak_seconds: Seconds
    canary_weight_percent: Annotated[
        tuple[Percent, ...],
        BeforeValidator(listed),
        Field(min_length=1),
        AfterValidator(_growing),
    ]
    budget_seconds: Long
    progress_seconds: Long
    on_failure: Literal["rollback", "stop"]
    drain_overrun: Literal["wait", "cut", "abort"]
    windows: Windows
    hooks: Hooks
    notify: Notify
