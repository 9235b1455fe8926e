"""Pack a module of this package, with all it imports of it, into one file Python can run from."""

from __future__ import annotations

import zipfile
from io import BytesIO
from modulefinder import ModuleFinder
from pathlib import Path

# Zip knows no earlier date; a fixed one makes equal contents equal files.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def bundle(module: str) -> bytes:
    """A zip of ``module`` and its imports from this package; for PYTHONPATH and ``python -m``.

    The same sources give the same bytes. Packages on the other end (PyMySQL) are not in it.
    """
    package = Path(__file__).parents[1]
    found = ModuleFinder(path=[str(package.parent)], excludes=["pymysql"])
    found.run_script(str(package.parent / Path(*module.split(".")).with_suffix(".py")))
    files = {Path(m.__file__) for m in found.modules.values() if m.__file__}
    files |= {parent / "__init__.py" for file in files for parent in _packages(file, package)}
    target = BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(files):
            name = file.relative_to(package.parent).as_posix()
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), file.read_bytes())
    return target.getvalue()


def _packages(file: Path, package: Path) -> list[Path]:
    inside = [parent for parent in file.parents if parent.is_relative_to(package)]
    return [parent for parent in inside if (parent / "__init__.py").is_file()]
