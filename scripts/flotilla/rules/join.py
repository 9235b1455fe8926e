"""What a host that starts by itself is given: pure, for the playbook that publishes it.

The other end is ``roles/join/files/join.py``, which reads these documents.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

MARK = re.compile(r"%%([a-z_]+(?:/[a-z_]+)?)%%")
OWN = frozenset({"name", "address"})


def bundle(
    files: Sequence[Mapping[str, Any]],
    contents: Sequence[str],
    *,
    vpc_id: str,
    parameters: Mapping[str, str],
    enable: Sequence[str],
    start: Sequence[str],
) -> dict[str, Any]:
    """The document of a tier. ``files`` have ``path``, and ``group``, ``mode``, ``check`` (a
    command, %s the file), ``unit`` (reloaded when it changed), ``quoted`` where they differ.

    Raises ValueError for a mark in a text that no host could fill in.
    """
    known = OWN | set(parameters)
    for file, text in zip(files, contents, strict=True):
        if unknown := set(MARK.findall(text)) - known:
            raise ValueError(f"{file['path']} has marks nobody fills in: {sorted(unknown)}")
    return {
        "vpc_id": vpc_id,
        "parameters": dict(parameters),
        "enable": list(enable),
        "start": list(start),
        "files": [
            {
                "path": file["path"],
                "owner": "root",
                "group": file.get("group", "root"),
                "mode": file.get("mode", "0644"),
                "check": list(file.get("check", ())),
                "unit": file.get("unit", ""),
                "quoted": bool(file.get("quoted")),
                "content": text,
            }
            for file, text in zip(files, contents, strict=True)
        ],
    }


def body(document: Mapping[str, Any]) -> bytes:
    """The bytes that are kept: equal documents are equal bytes."""
    return json.dumps(document, sort_keys=True, indent=1).encode() + b"\n"


def key(role: str, name: str) -> str:
    """Where a document is kept in the bucket of releases."""
    return f"join/{role}/{name}.json"
