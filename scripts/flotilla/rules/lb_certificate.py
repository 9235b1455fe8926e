"""How long the certificates last that a load balancer serves, by its own word."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flotilla.rules.status_finding import Finding, Severity

# Authorities' clients renew a month before the end; whoever is later than this has failed to.
WARN_DAYS = 21.0
FAULT_DAYS = 7.0
DAY = 86_400.0
CONFIGURE = "fab fleet.configure --limit lb"
PAGE = "certificate-runs-out"


@dataclass(frozen=True, slots=True)
class Certificate:
    """One that is in use: its file, its serial number, when it ends (seconds since the epoch)."""

    file: str
    serial: str
    ends_at: float


def files(text: str) -> list[str]:
    """The files of ``show ssl cert``. One that is being changed stands there twice."""
    return sorted({line.lstrip("*") for line in text.splitlines() if line.startswith(("/", "*/"))})


def certificate(text: str) -> Certificate | None:
    """What ``show ssl cert <file>`` says; None for one that is not used or has no certificate."""
    pairs = (line.partition(": ") for line in text.splitlines())
    found = {key: value.strip() for key, colon, value in pairs if colon}
    try:
        ends = float(ssl.cert_time_to_seconds(found["notAfter"]))
        used = found["Status"] != "Unused"
        return Certificate(found["Filename"].lstrip("*"), found["Serial"], ends) if used else None
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
    return Finding(severity, "certificate", f"{what} ({one.file})", CONFIGURE, PAGE)


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
            CONFIGURE,
            PAGE,
        )
        for file, known in serials.items()
        if len(known) > 1
    ]
