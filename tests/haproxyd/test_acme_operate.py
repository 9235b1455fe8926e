"""``fab lb.certificate`` on both load balancers, their services and a real authority."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from haproxyd.pair import FIRST, Pair, services
from mysqld.conftest import settings

from flotilla.errors import HostFailed, Refused
from flotilla.lb import certificate as operate
from flotilla.settings import Acme, Settings
from flotilla.wait import until

__all__ = ["settings"]


class Hands:
    """What SSH would carry, to the sockets and files of HAProxy here."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair

    def run(self, host: str, command: str, *, stdin: str = "", **_: Any) -> SimpleNamespace:
        edge = self._pair.edges[host]
        if command.startswith("socat "):
            return SimpleNamespace(stdout=edge.runtime()._ask(stdin))
        assert command == f"cat {operate.REPORT}"
        try:
            return SimpleNamespace(stdout=(edge.folder / "report.json").read_text())
        except OSError as error:
            raise HostFailed(f"{host}: {error}") from error


@pytest.fixture
def fleet(pair: Pair, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The fleet of both load balancers."""

    @contextmanager
    def reached(_: Settings) -> Iterator[tuple[Any, Any]]:
        hosts = [SimpleNamespace(name=name) for name in pair.edges]
        yield Hands(pair), SimpleNamespace(by_role=lambda _: hosts)

    monkeypatch.setattr(operate, "reached", reached)
    acme = Acme(directory="https://ca.example/dir", email="ops@shop.example", ca_pem=None)
    lb = settings.lb.model_copy(update={"acme": acme})
    changed = settings.model_copy(update={"lb": lb})
    return changed.placed(settings.root, settings.digest)


def test_it_is_shown_and_ordered_and_written_down(pair: Pair, fleet: Settings) -> None:
    plans: list[str] = []
    with services(pair):
        until(lambda: set(pair.served().values()).isdisjoint({f"{FIRST:X}", ""}), seconds=60)
        before = set(pair.served().values())
        done = operate.order(fleet, confirmed=plans.append, said=lambda _: None)
        assert done["changed"]
        assert done["hosts"] == ["lb-1", "lb-2"]
        assert set(pair.served().values()) == {done["new"].lstrip("0")}.difference(before)
        found = json.loads(json.dumps(operate.seen(fleet)))
    assert "lb-1 and lb-2 serve it" in plans[0]
    assert found["problems"] == []
    for member in found["members"]:
        (one,) = member["certificates"]
        assert one["serial"] == done["new"]
        assert "Pebble" in one["issuer"]
        assert one["names"] == "DNS:shop.example"
        assert one["days_left"] > 80
        assert member["order"].startswith("the one there is ends in")
    (journal,) = (fleet.scratch / "lb").glob("*-certificate.jsonl")
    assert '"result": "done"' in journal.read_text()


def test_without_a_yes_nothing_is_ordered(pair: Pair, fleet: Settings) -> None:
    def no(_: str) -> None:
        raise Refused("not confirmed")

    with services(pair, orders=False), pytest.raises(Refused, match="not confirmed"):
        operate.order(fleet, confirmed=no, said=lambda _: None)
    assert pair.store.read().request.id == ""


def test_where_nobody_takes_it_up_it_is_taken_back(
    pair: Pair, fleet: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operate, "TAKEN_SECONDS", 2.0)
    with (
        services(pair, orders=False),
        pytest.raises(HostFailed, match="no load balancer began to order"),
    ):
        operate.order(fleet, confirmed=lambda _: None, said=lambda _: None)
    assert pair.store.read().request.id == ""


def test_what_the_authority_said_is_the_end_of_it(pair: Pair, fleet: Settings) -> None:
    pair.authority.process.kill()
    with services(pair):
        until(lambda: "Connection" in pair.store.read().attempts.why, seconds=60)
        with pytest.raises(HostFailed, match=r"no new certificate: https://127.0.0.1.*Connection"):
            operate.order(fleet, confirmed=lambda _: None, said=lambda _: None)
        until(lambda: pair.report("lb-1")["failed"], seconds=10)
        found = operate.seen(fleet)
    assert any("the last order brought nothing: https://" in one for one in found["problems"])
    assert set(pair.served().values()) == {f"{FIRST:X}"}
    assert found["next"] == operate.LOGS


def test_where_nobody_orders_the_next_step_is_named(pair: Pair, settings: Settings) -> None:
    with pytest.raises(Refused, match=r"fleet.lb.acme is null") as refused:
        operate.order(settings, confirmed=lambda _: None, said=lambda _: None)
    assert "fab fleet.configure --limit lb" in refused.value.next
