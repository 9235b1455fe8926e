"""Render a role's template the way the template module does, without a host.

Contract of ``render(role, template, host=..., **overrides)``:
- it is Ansible's own Templar with its filters and lookups, undefined variables are errors, and
  blocks are trimmed as ``ansible.builtin.template`` trims them;
- variables are, weakest first: the role's ``defaults/main.yml``, the lab's ``fleet.yml``, what an
  inventory gives every host (``inventory_hostname``, ``ansible_host``, ``group_names``, ``groups``,
  ``hostvars``), the role's ``vars/main.yml``, and the overrides;
- the inventory is ``FLEET``: the lab's twelve hosts with addresses 10.77.<tier>.<number>;
- it returns the text; nothing is written and no task runs, so ``validate:`` does not either: tests
  that want it use ``checked_by``.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

REPOSITORY = Path(__file__).resolve().parents[2]
TIERS = {"bastion": 1, "lb": 2, "app": 3, "mysql": 3, "redis": 3}
FLEET = {
    f"{role}-{number}": {
        "inventory_hostname": f"{role}-{number}",
        "ansible_host": f"10.77.{tier}.{number}",
        "group_names": [role, f"zone_eu_central_1{'abc'[number - 1]}"],
    }
    for tier, (role, count) in enumerate(TIERS.items(), start=1)
    for number in range(1, count + 1)
}
GROUPS = {
    "all": sorted(FLEET),
    **{role: sorted(name for name in FLEET if name.startswith(f"{role}-")) for role in TIERS},
}

Render = Callable[..., str]


def _load(loader: DataLoader, path: Path) -> dict[str, object]:
    loaded = loader.load_from_file(str(path), trusted_as_template=True) if path.exists() else {}
    return dict(loaded or {})


def render_template(role: str, template: str, *, host: str, **overrides: object) -> str:
    """The text of ``roles/<role>/templates/<template>`` on ``host``; see the module's contract."""
    loader = DataLoader()
    folder = REPOSITORY / "roles" / role
    variables: dict[str, object] = {
        **_load(loader, folder / "defaults/main.yml"),
        **_load(loader, REPOSITORY / "inventory/lab/group_vars/all/fleet.yml"),
        **FLEET[host],
        "groups": GROUPS,
        "hostvars": FLEET,
        "ansible_managed": "Managed by Ansible",
        "role_path": str(folder),
        **_load(loader, folder / "vars/main.yml"),
        **overrides,
    }
    source = (folder / "templates" / template).read_text()
    templar = Templar(loader=loader, variables=variables)
    text = templar.template(
        trust_as_template(source), overrides={"trim_blocks": True, "lstrip_blocks": False}
    )
    return str(text) + ("\n" if source.endswith("\n") and not str(text).endswith("\n") else "")


@pytest.fixture
def render() -> Render:
    return render_template


@pytest.fixture
def checked_by(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program's own check on a text: ``checked_by(text, "haproxy", "-c", "-f", "%s")``.

    Skips with the reason where the program is not installed.
    """

    def check(text: str, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed here")
        file = tmp_path / "checked.conf"
        file.write_text(text)
        return subprocess.run(
            [program, *(argument.replace("%s", str(file)) for argument in arguments)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    return check
