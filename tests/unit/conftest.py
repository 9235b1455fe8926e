"""What holds for unit tests."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

from botocore import session
from moto.core import responses
from moto.core.botocore_stubber import BotocoreStubber

_turn = threading.RLock()
_process = BotocoreStubber.process_request


def _in_turn(stub: BotocoreStubber, request: Any) -> Any:
    with _turn:
        return _process(stub, request)


# moto keeps its state in plain dictionaries: of two conditional writes to one item both succeeded,
# and to delete a role while another one was deleted was "RuntimeError: dictionary changed size
# during iteration". AWS does neither, and the lab's API takes turns as well: lab/wsgi.py.
BotocoreStubber.process_request = _in_turn  # type: ignore[method-assign]

# Every test has sessions of its own, and each read the descriptions of all services anew; moto
# looked for the methods of its classes at every request. Both stay the same for as long as we run.
session.create_loader = cache(session.create_loader)
responses.method_names_from_class = cache(responses.method_names_from_class)
