"""What holds for unit tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

from moto.dynamodb.models import DynamoDBBackend

_turn = threading.RLock()


def _in_turn(act: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(act)
    def alone(*args: Any, **kwargs: Any) -> Any:
        with _turn:
            return act(*args, **kwargs)

    return alone


# moto looks at a condition and then writes; DynamoDB does both at once. With a lease renewed in one
# thread and taken away in another, both succeeded. The lab's
# API takes turns as well: lab/wsgi.py.
for _name in ("put_item", "update_item", "delete_item", "transact_write_items"):
    setattr(DynamoDBBackend, _name, _in_turn(getattr(DynamoDBBackend, _name)))
