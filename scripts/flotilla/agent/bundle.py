"""Pack a module of this package, with all it imports of it, into one file Python can run from."""

from __future__ import annotations

import base64
import importlib.util
import shlex
import threading
import zipfile
from io import BytesIO
from modulefinder import ModuleFinder
from pathlib import Path

from flotilla.options import Parser, finish

# Zip knows no earlier date; a fixed one makes equal contents equal files.
_EPOCH = (1980, 1, 1, 0, 0, 0)
# ModuleFinder empties the interpreter's cache of importers: two at once end in a KeyError (of 40
# times that a drill began, in one).
_finding = threading.Lock()


def bundle(module: str, carry: tuple[str, ...] = ()) -> bytes:
    """A zip of ``module`` and its imports from this package; for PYTHONPATH and ``python -m``.

    ``carry`` names other pure Python packages to put in whole, if this Python has them (a library
    may need one only with other versions); the rest must be on the other end. The same sources give
    the same bytes.
    """
    package = Path(__file__).parents[1]
    found = ModuleFinder(path=[str(package.parent)])
    with _finding:
        found.run_script(str(package.parent / Path(*module.split(".")).with_suffix(".py")))
    paths = (getattr(module, "__file__", None) for module in found.modules.values())
    ours = {Path(path) for path in paths if path}
    ours |= {parent / "__init__.py" for file in ours for parent in _packages(file, package)}
    files = {file.relative_to(package.parent).as_posix(): file for file in ours}
    for name in carry:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            continue
        folder = Path(spec.submodule_search_locations[0])
        files |= {p.relative_to(folder.parent).as_posix(): p for p in folder.rglob("*.py")}
    target = BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for inside, file in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(inside, _EPOCH), file.read_bytes())
    return target.getvalue()


_LOADER = """\
import base64, os, runpy, sys, tempfile
folder = tempfile.TemporaryDirectory()
path = os.path.join(folder.name, 'program.zip')
open(path, 'wb').write(base64.b64decode(sys.stdin.readline()))
sys.path.insert(0, path)
runpy.run_module('{program}', run_name='__main__')
"""


def loaded(program: str, carry: tuple[str, ...] = ()) -> tuple[str, str]:
    """A shell command that runs ``program`` on a host, and the first line of input it wants.

    Nothing is installed there, and nothing is left behind.
    """
    package = base64.b64encode(bundle(program, carry)).decode()
    return f"exec python3 -c {shlex.quote(_LOADER.format(program=program))}", package


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
