"""Shell for a host's own apt: what it would upgrade of what is installed, and to have it done.

``flotilla.rules.packages`` reads what it says. ``packages`` are words of shell, as ``installed``
makes them; ``options`` are more of apt's own.
"""

from __future__ import annotations

_APT = "apt-get -q -o DPkg::Lock::Timeout=120"


def installed(names: str) -> str:
    """The packages of these names (patterns, as dpkg-query takes them) that are installed."""
    return (
        f"$(dpkg-query -W -f '${{db:Status-Abbrev}} ${{Package}}\\n' {names} | sed -n 's/^ii *//p')"
    )


def planned(packages: str, *, options: str = "", fresh: bool = True) -> str:
    """Statements that print a line for each package that would be upgraded; to follow ``set -e``.

    ``fresh``: by what the mirrors have now.
    """
    update = f"{_APT} -qq update >/dev/null; " if fresh else ""
    # grep fails where nothing would be upgraded, which is an answer.
    return (
        f"{update}plan=$({_APT} -s install --only-upgrade {options} {packages});"
        " printf '%s\\n' \"$plan\" | grep '^Inst ' || true"
    )


def upgrade(packages: str, *, options: str = "") -> str:
    """The command that upgrades them; configuration that was changed here stays."""
    return (
        f"DEBIAN_FRONTEND=noninteractive {_APT} -y -o Dpkg::Options::=--force-confold"
        f" install --only-upgrade {options} {packages}"
    )
