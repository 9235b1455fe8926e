"""The operator's tasks: `fab --list` shows them. One module a noun."""

from __future__ import annotations

import importlib
import pkgutil

from invoke.collection import Collection

# Every module here is a noun, and its tasks the verbs: adding a module is all it takes.
namespace = Collection()
for _module in sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")):
    namespace.add_collection(Collection.from_module(importlib.import_module(f"fabfile.{_module}")), name=_module)
