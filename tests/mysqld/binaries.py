"""The programs of the newest MySQL image, unpacked once into the cache.

They run with the C library of the image itself, so any Linux will do: nothing is installed, and no
container, chroot or lab is needed. Root is, because only root may read the images' disks.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.layout import layout

_LOADER = Path("lib64/ld-linux-x86-64.so.2")
_LIBRARIES = Path("usr/lib/x86_64-linux-gnu")
_PRIVATE = Path("usr/lib/mysql/private")
_PROGRAMS = ("usr/sbin/mysqld", "usr/bin/mysqlbinlog", "usr/bin/mysql")
_FOLDERS = ("usr/lib/mysql", "usr/share/mysql")


class NoImageError(Exception):
    """There is nothing to run; the message says why."""


@dataclass(frozen=True, slots=True)
class Binaries:
    """The unpacked programs of one image; ``id`` changes with the image."""

    id: str
    root: Path

    def argv(self, program: str, *arguments: str) -> list[str]:
        """A command line that runs one of them, by its path in the image."""
        return [*with_libraries(self.root, [self.root]), str(self.root / program), *arguments]

    @property
    def share(self) -> Path:
        """Messages and character sets."""
        return self.root / "usr/share/mysql"

    @property
    def plugins(self) -> Path:
        """Plugins, the semi-sync ones among them."""
        return self.root / "usr/lib/mysql/plugin"


def binaries() -> Binaries:
    """The newest tested image's programs. Raises NoImageError where there is none to be had."""
    where = layout()
    unpacked = where.cache / "mysqld"
    try:
        image = newest(where.amis)
        target = unpacked / image
        if not target.is_dir():
            _unpack(disks_of(where.storage, image), target)
    except (NoImageError, OSError) as error:
        kept = sorted(unpacked.glob("ami-*[0-9a-f]"), key=lambda p: p.stat().st_mtime)
        if not kept:
            raise NoImageError(f"no MySQL image to take mysqld from: {error}") from error
        target = kept[-1]
    return Binaries(target.name, target)


def newest(amis: Path, role: str = "mysql") -> str:
    """The id of the newest tested image that was baked for a role. Raises NoImageError.

    Lab tests make images too, of any disk with the tags of any role: those have no name of a bake.
    """
    known = [
        (image["creation_date"], image["id"])
        for image in _records(amis)
        if image["tags"].get("Role") == role
        and image["tags"].get("Status") == "tested"
        and image["name"] == _name_of_bake(image["tags"])
    ]
    if not known:
        raise NoImageError(f"{amis} holds no tested image of role {role} (fab images.bake)")
    return str(max(known)[1])


def _records(amis: Path) -> Iterator[dict[str, Any]]:
    for path in amis.glob("*.json"):
        # One may be deregistered while we look.
        with suppress(FileNotFoundError):
            yield json.loads(path.read_text())


def _name_of_bake(tags: dict[str, str]) -> str:
    """What a bake with these tags calls its image; a copy of it has another name."""
    when, _, _ = tags.get("BuildId", "").partition("-")
    return f"{tags.get('Fleet')}-{tags.get('Role')}-{when}"


def disks_of(storage: Path, image: str) -> list[Path]:
    """The image's layers, the topmost first."""
    images = json.loads((storage / "overlay-images/images.json").read_text())
    layers = json.loads((storage / "overlay-layers/layers.json").read_text())
    parent = {layer["id"]: layer.get("parent") for layer in layers}
    named = (i["layer"] for i in images if any(f"/{image}:" in n for n in i.get("names") or []))
    layer = next(named, None)
    if layer is None:
        raise NoImageError(f"{storage} has no disk of {image}")
    disks = []
    while layer:
        disks.append(storage / "overlay" / layer / "diff")
        layer = parent.get(layer)
    return disks


def _unpack(disks: list[Path], target: Path) -> None:
    building = target.with_name(f"{target.name}.{os.getpid()}.part")
    for folder in _FOLDERS:
        # A lower layer has nothing of the server: it came with this image.
        shutil.copytree(disks[0] / folder, building / folder, symlinks=True)
    for program in _PROGRAMS:
        _copy(disks[0] / program, building / program)
    _copy(first(disks, _LIBRARIES / _LOADER.name), building / _LOADER)
    wanted = [building / p for p in _PROGRAMS]
    wanted += sorted((building / "usr/lib/mysql/plugin").glob("*.so"))
    for program in wanted:
        for name in _needed(program, disks):
            if not (building / _LIBRARIES / name).exists():
                _copy(first(disks, _LIBRARIES / name), building / _LIBRARIES / name)
    try:
        building.rename(target)
    except OSError:
        # Somebody else was quicker.
        shutil.rmtree(building)


def _needed(program: Path, disks: list[Path]) -> Iterator[str]:
    loader = with_libraries(disks[0], disks, first(disks, _LIBRARIES / _LOADER.name))
    listed = subprocess.run(
        [*loader, "--list", str(program)], capture_output=True, text=True, check=False
    )
    for line in listed.stdout.splitlines():
        name, arrow, path = line.strip().partition(" => ")
        if arrow and path.startswith("/") and _LIBRARIES.as_posix() in path:
            yield Path(name).name


def with_libraries(root: Path, disks: list[Path], loader: Path | None = None) -> list[str]:
    """The loader, told where to find libraries."""
    paths = ":".join(str(disk / part) for disk in disks for part in (_LIBRARIES, _PRIVATE))
    return [str(loader or root / _LOADER), "--library-path", paths]


def first(disks: list[Path], path: Path) -> Path:
    """Where a file is on the topmost disk that has it, links followed within that disk."""
    for disk in disks:
        if (disk / path).exists():
            return (disk / path).resolve()
    raise NoImageError(f"the image has no {path}")


def _copy(source: Path, target: Path) -> Any:
    target.parent.mkdir(parents=True, exist_ok=True)
    return shutil.copy2(source, target)
