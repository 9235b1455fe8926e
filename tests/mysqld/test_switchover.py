"""A planned move that ends half-way, on three real servers under load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from mysqld.checks import nothing_is_lost, writable, writes_go_on
from mysqld.trio import Trio
from mysqld.writers import Writers

from flotilla.mysql.switchover import Move
from flotilla.wait import until


def ctrl_c() -> None:
    raise KeyboardInterrupt


def full() -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["line up", "pause", "catch up"])
@pytest.mark.parametrize(("end", "kind"), [(ctrl_c, KeyboardInterrupt), (full, OSError)])
def test_a_move_that_is_broken_off_before_the_record_leaves_the_primary_open(
    trio: Trio, step: str, end: Callable[[], Any], kind: type[BaseException]
) -> None:
    @contextmanager
    def broken_off(title: str) -> Iterator[None]:
        yield
        if title.startswith(step):
            end()

    old = trio.primary.name
    with Writers(trio) as clients, trio.cluster() as cluster:
        until(lambda: len(clients.acked) > 20, seconds=20)
        move = Move(trio.settings, cluster)
        with pytest.raises(kind):
            move.apply(move.plan(), broken_off)
        assert (trio.primary.name, trio.record.term) == (old, 1)
        assert writable(trio) == [old]
        found = cluster.look(trio.record)
        address = trio.primary.address
        assert {m.replication.host for m in found.members if m.replication} == {address}
        writes_go_on(clients)
        nothing_is_lost(trio, clients)
