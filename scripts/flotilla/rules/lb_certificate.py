"""How long the certificates last that a load balancer serves, by its own word."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flotilla.rules.status_finding import Finding, Severity

# Authorities' clients renew a month before the end; whoever is later than this has failed to.
WARN_DAYS = 21.0
FAULT_DAYS = 7.0
DAY = 86_400.0
# The service looks every few seconds; an SSM that does not answer takes as long again.
SILENT_SECONDS = 60.0
LOOK = "fab lb.certificate"
PAGE = "certificate-runs-out"


@dataclass(frozen=True, slots=True)
class Certificate:
    """One that is in use: its file, its serial number, when it ends (seconds since the epoch).

    ``issuer`` and ``names`` as HAProxy says them.
    """

    file: str
    serial: str
    ends_at: float
    # A service of before did not tell them.
    issuer: str = field(default="", compare=False)
    names: str = field(default="", compare=False)


def files(text: str) -> list[str]:
    """The files of ``show ssl cert``. One that is being changed stands there twice."""
    return sorted({line.lstrip("*") for line in text.splitlines() if line.startswith(("/", "*/"))})


def certificate(text: str) -> Certificate | None:
    """What ``show ssl cert <file>`` says; None for one that is not used or has no certificate."""
    pairs = (line.partition(": ") for line in text.splitlines())
    found = {key: value.strip() for key, colon, value in pairs if colon}
    try:
        ends = float(ssl.cert_time_to_seconds(found["notAfter"]))
        if found["Status"] == "Unused":
            return None
        return Certificate(
            found["Filename"].lstrip("*"),
            found["Serial"],
            ends,
            issuer=found.get("Issuer", ""),
            names=found.get("Subject Alternative Name", ""),
        )
    except (KeyError, ValueError):
        return None


def days_left(found: Iterable[Certificate], now: float) -> float | None:
    """Until the first one ends; None for none."""
    return min(((one.ends_at - now) / DAY for one in found), default=None)


def findings(served: Mapping[str, Sequence[Certificate]], now: float) -> list[Finding]:
    """``served`` is by load balancer. One sentence for each certificate, whoever serves it."""
    who: dict[Certificate, list[str]] = {}
    for name, certificates in served.items():
        for one in certificates:
            who.setdefault(one, []).append(name)
    found = [_ending(one, names, now) for one, names in who.items()]
    return [*filter(None, found), *_differing(served)]


def _ending(one: Certificate, names: Sequence[str], now: float) -> Finding | None:
    days = (one.ends_at - now) / DAY
    if days > WARN_DAYS:
        return None
    on = " and ".join(names)
    if days <= 0:
        what = f"the certificate of {on} ended {-days:.0f} days ago: clients refuse to connect"
    else:
        what = f"the certificate of {on} ends in {days:.0f} days"
    severity = Severity.DOWN if days <= FAULT_DAYS else Severity.RISK
    return Finding(severity, "certificate", f"{what} ({one.file})", LOOK, PAGE)


def _differing(served: Mapping[str, Sequence[Certificate]]) -> list[Finding]:
    """After half a renewal the old one comes back with the address."""
    serials: dict[str, set[str]] = {}
    for certificates in served.values():
        for one in certificates:
            serials.setdefault(one.file, set()).add(one.serial)
    return [
        Finding(
            Severity.RISK,
            "certificate",
            f"load balancers serve different certificates of {file}",
            LOOK,
            PAGE,
        )
        for file, known in serials.items()
        if len(known) > 1
    ]


@dataclass(frozen=True, slots=True)
class Renewal:
    """What the service that orders certificates said last: ``trouble`` is why the stored one is
    not served, ``failed`` why the last order brought nothing, each "" for nothing of it.
    """

    age_seconds: float
    trouble: str
    failed: str


def renewals(said: Mapping[str, Renewal | None]) -> list[Finding]:
    """``said`` is by load balancer, None for one that says nothing: its unit is told of."""
    there = {name: one for name, one in said.items() if one}
    found = []
    for name, one in there.items():
        logs = f"fab fleet.logs {name} --unit flotilla-certificate"
        what = one.trouble
        if one.age_seconds > SILENT_SECONDS:
            what = f"it looked for the last time {one.age_seconds:.0f} s ago"
        if what:
            text = f"{name} does not follow the stored certificate: {what}"
            found.append(Finding(Severity.RISK, name, text, logs, PAGE))
    found += [
        Finding(Severity.RISK, "certificate", f"no new certificate: {why}", LOOK, PAGE)
        for why in sorted({one.failed for one in there.values() if one.failed})
    ]
    return found
