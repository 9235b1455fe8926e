"""Which image the programs are taken from, while lab tests make images of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mysqld.binaries import NoImageError, newest

BAKED = "20261123071601"
TAGS = {"Fleet": "shop", "Role": "mysql", "Status": "tested", "BuildId": f"{BAKED}-1b9c55"}


def record(folder: Path, number: int, name: str = f"shop-mysql-{BAKED}", **tags: Any) -> str:
    """An image as the lab keeps it; the higher the number, the newer."""
    image = f"ami-{number:017x}"
    kept = {"id": image, "name": name, "creation_date": f"2026-11-23T07:18:{number:02}"}
    known = {key: value for key, value in (TAGS | tags).items() if value}
    (folder / f"{image}.json").write_text(json.dumps(kept | {"tags": known}))
    return image


def test_only_what_was_baked_for_the_role_is_taken(tmp_path: Path) -> None:
    record(tmp_path, 1)
    wanted = record(tmp_path, 2)
    record(tmp_path, 3, Role="redis")
    record(tmp_path, 4, Status="baked")
    # Plain Debian with the tags of a role, as for a fleet whose hosts only have to boot.
    record(tmp_path, 5, "wild-mysql-20261121000000", BuildId=None)
    # Copies, with all tags of the original: of the same disk, and of the bastion's.
    record(tmp_path, 6, f"shop-mysql-{BAKED}-0a1b2c")
    record(tmp_path, 7, f"shop-bastion-{BAKED}-0a1b2c")
    assert newest(tmp_path) == wanted


def test_without_a_baked_image_it_is_said_what_makes_one(tmp_path: Path) -> None:
    record(tmp_path, 1, "wild-mysql-20261121000000", BuildId=None)
    (tmp_path / "ami-gone.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(NoImageError, match=r"fab images\.bake"):
        newest(tmp_path)
