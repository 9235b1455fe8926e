"""The operator's tasks: `fab --list` shows them. One module a noun."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

from invoke.collection import Collection

# Invoke puts this directory itself first on the path, where `lab` would be the tasks and not the
# package they call.
_here = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _here]
for _source in (_here.parent / "scripts", _here.parent):
    if str(_source) not in sys.path:
        sys.path.insert(0, str(_source))

from fabfile import _commandline  # noqa: E402  needs the path above

_commandline.open_streams()
_commandline.install()

# Every module here is a noun, and its tasks the verbs: adding a module is all it takes.
namespace = Collection()
for _module in sorted(
    module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")
):
    namespace.add_collection(
        Collection.from_module(importlib.import_module(f"fabfile.{_module}")), name=_module
    )
