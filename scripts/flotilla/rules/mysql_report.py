"""What a change of primary is reported as: for people at night, for programs, and for later.

A report says who decided and on what evidence, what each step took, how long nobody took writes,
and whether an acknowledged write can have been lost, with the reason why that is known. Nothing
here talks to a server: GTID sets were compared by servers, and are only counted here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Loss:
    """``count`` acknowledged writes are lost, None where that is not known; ``proof`` says why."""

    count: int | None
    proof: str
    gtids: str = ""


@dataclass(frozen=True, slots=True)
class Surplus:
    """What only the old primary has: never acknowledged, or given up in so many words."""

    host: str
    gtids: str
    saved_to: str = ""
    rows: Mapping[str, Mapping[str, int]] | None = None  # {table: {insert|update|delete: rows}}


@dataclass(frozen=True, slots=True)
class Report:
    """One change of primary. Times are ISO 8601 in UTC, ``seconds`` is step to seconds, in order.

    ``kind`` is "failover" or "switchover", ``by`` who decided (a watcher's host, an operator).
    ``verdict`` and ``evidence`` are the words of the rule that found the primary dead; ``proofs``
    are why the old primary can acknowledge nothing; ``fate`` is what became of it so far.
    ``write_gap_seconds`` is by the servers' clocks: from the last write that reached the replica,
    or the last heartbeat of an idle primary, to the first on the new primary.
    """

    kind: str
    term: int
    at: str
    by: str
    old: str
    new: str
    verdict: str
    evidence: tuple[str, ...]
    proofs: tuple[str, ...]
    seconds: Mapping[str, float]
    loss: Loss
    write_gap_seconds: float | None = None
    fate: str = ""
    surplus: Surplus | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON types only; ``from_dict`` reads it back."""
        return asdict(self) | {"evidence": list(self.evidence), "proofs": list(self.proofs)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """What ``as_dict`` made. Raises KeyError or TypeError for anything else."""
        surplus = values.get("surplus")
        return cls(
            **{
                **values,
                "evidence": tuple(values["evidence"]),
                "proofs": tuple(values["proofs"]),
                "loss": Loss(**values["loss"]),
                "surplus": Surplus(**surplus) if surplus else None,
            }
        )

    def returned(self, surplus: Surplus | None, fate: str) -> Report:
        """The same, once the old primary is back and it is known what only it has.

        Whatever a client was told OK for is on it, so that bounds a loss that was not known.
        """
        found = self.loss
        if found.count is None and surplus:
            proof = f"at most the {count(surplus.gtids)} that only {self.old} has"
            found = Loss(None, f"{proof}: {found.proof}", surplus.gtids)
        elif found.count is None:
            found = Loss(0, f"{self.old} came back and has nothing that others lack")
        return replace(self, loss=found, surplus=surplus or self.surplus, fate=fate)


def loss(
    *, ackers: int, wait_for: int, revoked: Sequence[str], missing: str, accepted: str = ""
) -> Loss:
    """What can have been lost, from what was seen before anybody was promoted.

    ``ackers`` hosts could acknowledge and a commit waited for ``wait_for`` of them; ``revoked``
    are those that had stopped acknowledging before positions were read. ``missing`` is what they
    held and the new primary does not, as a GTID set; ``accepted`` is what an operator gave up.
    """
    if missing:
        return Loss(
            count(missing), "replicas held them and the new primary does not hold them", missing
        )
    needed = ackers - wait_for + 1
    names = ", ".join(sorted(revoked)) or "none"
    if len(revoked) >= needed:
        return Loss(
            0,
            f"{len(revoked)} of {ackers} hosts that could acknowledge ({names}) had stopped before"
            f" positions were read, {needed} suffice as a commit waits for {wait_for}, and the new"
            " primary has all that they received",
        )
    gave_up = f"; {accepted} was accepted" if accepted else ""
    return Loss(
        None,
        f"only {len(revoked)} of {ackers} hosts that could acknowledge ({names}) could be asked,"
        f" {needed} are needed{gave_up}: it is known when the others are back",
    )


def count(gtids: str) -> int:
    """How many transactions a GTID set holds: ``uuid:1-3:7`` is 4, ``uuid:tag:1`` is 1."""
    return sum(size for part in gtids.split(",") for size in _sizes(part))


def _sizes(part: str) -> Iterator[int]:
    for piece in part.split(":")[1:]:
        first, _, last = piece.strip().partition("-")
        if first.isdigit():  # a tag begins with a letter or an underscore
            yield int(last or first) - int(first) + 1


def text(report: Report) -> str:
    """The report as people read it."""
    return "\n".join(_lines(report))


def line(report: Report) -> str:
    """The report in one line, for a list of them."""
    lost = "?" if report.loss.count is None else str(report.loss.count)
    gap = "-" if report.write_gap_seconds is None else f"{report.write_gap_seconds:.2f} s"
    return (
        f"{report.at[:19].replace('T', ' ')}  term {report.term:<4} {report.kind:10}"
        f"  {report.old} -> {report.new}  gap {gap}, lost {lost}, by {report.by}: {report.verdict}"
    )


def _lines(report: Report) -> Iterator[str]:
    yield f"Term {report.term}: {report.kind} from {report.old} to {report.new}, {report.at}"
    yield f"  decided by {report.by}: {report.verdict}"
    yield from (f"    {sentence}" for sentence in report.evidence)
    if report.proofs:
        yield f"  {report.old} can acknowledge nothing:"
        yield from (f"    {sentence}" for sentence in report.proofs)
    yield f"  steps, {_to_writes(report.seconds):.2f} s until writes went on:"
    yield from (f"    {seconds:7.2f} s  {title}" for title, seconds in report.seconds.items())
    if report.write_gap_seconds is not None:
        yield f"  no writes for {report.write_gap_seconds:.2f} s by the servers' clocks"
    lost = "not known yet" if report.loss.count is None else str(report.loss.count)
    yield f"  acknowledged writes lost: {lost} ({report.loss.proof})"
    if report.loss.gtids:
        yield f"    {report.loss.gtids}"
    if report.surplus:
        yield from _surplus(report.surplus)
    if report.fate:
        yield f"  {report.fate}"


def _to_writes(seconds: Mapping[str, float]) -> float:
    """Up to where the new primary is opened; the old one is seen to afterwards."""
    titles = list(seconds)
    opened = next((n for n, title in enumerate(titles) if title.startswith("grant")), len(titles))
    return sum(list(seconds.values())[: opened + 1])


def _surplus(surplus: Surplus) -> Iterator[str]:
    number, where = count(surplus.gtids), surplus.saved_to or "not saved yet"
    yield f"  only {surplus.host} has {number} transactions ({surplus.gtids}): {where}"
    for table, kinds in sorted((surplus.rows or {}).items()):
        changes = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
        yield f"    {table}: {changes}"
