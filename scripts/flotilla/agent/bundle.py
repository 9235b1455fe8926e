"""Pack a module of this package, with all it imports of it, into one file Python can run from."""

from __future__ import annotations

import importlib
import zipfile
from io import BytesIO
from modulefinder import ModuleFinder
from pathlib import Path

from flotilla.options import Parser, finish

# Zip knows no earlier date; a fixed one makes equal contents equal files.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def bundle(module: str, carry: tuple[str, ...] = ()) -> bytes:
    """A zip of ``module`` and its imports from this package; for PYTHONPATH and ``python -m``.

    ``carry`` names other pure Python packages to put in whole; the rest must be on the other end.
    The same sources give the same bytes.
    """
    package = Path(__file__).parents[1]
    found = ModuleFinder(path=[str(package.parent)])
    found.run_script(str(package.parent / Path(*module.split(".")).with_suffix(".py")))
    paths = (getattr(module, "__file__", None) for module in found.modules.values())
    ours = {Path(path) for path in paths if path}
    ours |= {parent / "__init__.py" for file in ours for parent in _packages(file, package)}
    files = {file.relative_to(package.parent).as_posix(): file for file in ours}
    for name in carry:
        folder = Path(importlib.import_module(name).__path__[0])
        files |= {p.relative_to(folder.parent).as_posix(): p for p in folder.rglob("*.py")}
    target = BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for inside, file in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(inside, _EPOCH), file.read_bytes())
    return target.getvalue()


def write(module: str, path: Path) -> None:
    """Write the zip of ``module``, unless the file already holds the same bytes."""
    content = bundle(module)
    if not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def main(module: str, description: str | None) -> int:
    """The script that packs ``module``: writes ``--output``; returns the exit code."""
    parser = Parser(description=description)
    parser.add_argument("--output", type=Path, required=True, help="where to write the zip file")
    path = parser.parse_args().output

    def act() -> int:
        write(module, path)
        return 0

    return finish(act)


def _packages(file: Path, package: Path) -> list[Path]:
    inside = [parent for parent in file.parents if parent.is_relative_to(package)]
    return [parent for parent in inside if (parent / "__init__.py").is_file()]
