"""Lynis on a host of each role. It comes from Debian to a folder of its own, and leaves with it."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from guests import needs_lab

from flotilla.hosts.ssh import Runner
from flotilla.settings import ROLES

pytestmark = [needs_lab, pytest.mark.drill, pytest.mark.timeout(900)]

LEAST = 85
VERSION = "3.1."
RUN_SECONDS = 600
# The host's own apt and sources, with lists of its own: what an image has of them is days old.
# In Lynis' folder its own profile is found; the host's (role hardening) it finds by itself.
AUDIT = """
set -eu
umask 022
folder=$(mktemp -d /root/lynis.XXXXXXXX)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir -p lists/partial archives/partial
own="-qq -o Dir::State::lists=$folder/lists -o Dir::Cache=$folder -o APT::Sandbox::User=root"
apt-get $own update >&2
apt-get $own download lynis >&2
dpkg-deb -x lynis_*.deb .
cd usr/share/lynis
cp ../../../etc/lynis/default.prf .
sh ../../sbin/lynis audit system --quick --no-colors --plugindir "$folder/etc/lynis/plugins" \
  --logfile "$folder/log" --report-file "$folder/report" >"$folder/said" 2>&1 \
  || [ -s "$folder/report" ] || { tail -n 20 "$folder/said" >&2; exit 1; }
cat "$folder/report"
"""
LEFT = "ls -d /root/lynis.* /var/log/lynis* /run/lynis.pid /usr/sbin/lynis 2>/dev/null"


@pytest.fixture(scope="module")
def audits(runner: Runner, names: dict[str, list[str]]) -> dict[str, Future[str]]:
    """What Lynis says, by role. On all hosts at once: most of its time it waits for commands."""

    def audit(role: str) -> str:
        done = runner.run(names[role][0], "sh -s", sudo=True, stdin=AUDIT, seconds=RUN_SECONDS)
        return done.stdout

    with ThreadPoolExecutor(len(ROLES)) as pool:
        return {role: pool.submit(audit, role) for role in ROLES}


@pytest.mark.parametrize("role", ROLES)
def test_hosts_have_the_points_and_no_warning(
    runner: Runner,
    names: dict[str, list[str]],
    audits: dict[str, Future[str]],
    scores: dict[str, str],
    role: str,
) -> None:
    host, said = names[role][0], audits[role].result()
    report = [line.partition("=")[::2] for line in said.splitlines()]
    found = dict(report)
    warnings = [value for key, value in report if key == "warning[]"]
    index = int(found["hardening_index"])
    # One point each. Those that role hardening sets a kernel of its own takes.
    kernel = sum(key == "details[]" and value.startswith("KRNL-6000|") for key, value in report)
    scores[f"lynis {role}"] = (
        f"{index} of 100, {len(warnings)} warnings; {kernel} points are the shared kernel's"
    )
    assert found["lynis_version"].startswith(VERSION)
    assert warnings == []
    missed = sorted(value for key, value in report if key in {"suggestion[]", "details[]"})
    assert index >= LEAST, missed
    assert runner.run(host, LEFT, sudo=True, check=False).stdout == ""
