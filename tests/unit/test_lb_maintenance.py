"""The maintenance page: on both load balancers or on none, and what is said of it."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import world

from flotilla.errors import HostFailed, Refused, Unreachable
from flotilla.lb.maintenance import Telling, read
from flotilla.rules import lb_maintenance as rules
from flotilla.rules.lb_maintenance import MAP, Kept, Notice
from flotilla.rules.status import findings

ANN = Notice("ann@desk", 1800000000.0, "new disks")
BOB = Notice("bob@desk", 1800000001.0)
NOTICES = st.builds(
    Notice, by=st.text(max_size=20), at=st.floats(0, 4e9), reason=st.text(max_size=200)
)


@given(NOTICES)
def test_any_reason_is_one_word_for_haproxy_and_comes_back_as_it_was(notice: Notice) -> None:
    word = rules.word(notice)
    assert word.isascii()
    assert not set(word) & set(" ;\\\n\"'<#")
    assert rules.stored(rules.line(notice)) == notice
    assert rules.running(f"0x55a on {word}\n\n") == notice
    assert len(rules.commands(None, notice)[0]) < 16_000


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n"])
def test_no_line_is_no_maintenance(text: str) -> None:
    assert rules.stored(text) is None


def test_what_somebody_wrote_by_hand_is_maintenance_too() -> None:
    assert rules.stored("on because\n") == Notice("somebody", 0.0, "because")
    assert rules.running("0x55a on 1\n") == Notice("somebody", 0.0, "1")


def test_a_process_that_knows_no_such_map_does_not_say_no() -> None:
    with pytest.raises(ValueError, match="Unknown map"):
        rules.running("Unknown map identifier. Please use #<id> or <file>.\n")


def test_only_what_differs_is_told() -> None:
    assert rules.commands(None, None) == ()
    assert rules.commands(ANN, None) == (f"del map {MAP} on",)
    assert rules.commands(None, BOB)[0].startswith(f"add map {MAP} on ")
    assert rules.commands(ANN, BOB)[0].startswith(f"set map {MAP} on ")


@given(
    st.dictionaries(
        st.sampled_from(["lb-1", "lb-2"]),
        st.builds(
            Kept, running=st.sampled_from([None, ANN, BOB]), stored=st.sampled_from([None, ANN])
        ),
    )
)
def test_whatever_is_not_the_same_everywhere_and_for_good_is_told(views: dict[str, Kept]) -> None:
    found = rules.problems(views)
    states = {bool(one) for kept in views.values() for one in (kept.running, kept.stored)}
    assert bool(found) is (states - {False} != set())
    if len({bool(kept.running) for kept in views.values()}) == 2:
        assert any("would go with the address" in problem for problem in found)


def test_the_problem_says_who_and_why() -> None:
    views = {"lb-1": Kept(ANN, ANN), "lb-2": Kept(ANN, ANN)}
    assert rules.problems(views) == [
        "clients get the maintenance page, by ann@desk: new disks",
    ]


def test_whoever_clients_are_on_is_told_last() -> None:
    assert rules.order(["lb-1", "lb-2", "lb-3"], "lb-1") == ["lb-2", "lb-3", "lb-1"]


@dataclass
class Fleet:
    """Load balancers behind a runner: a file and a process each."""

    files: dict[str, str] = field(default_factory=lambda: {"lb-1": "", "lb-2": ""})
    maps: dict[str, str] = field(default_factory=lambda: {"lb-1": "", "lb-2": ""})
    # Whoever stops answering, after that many commands.
    dies: dict[str, int] = field(default_factory=dict)
    ignores: set[str] = field(default_factory=set)
    calls: list[tuple[str, str]] = field(default_factory=list)

    def run(self, host: str, command: str, *, stdin: str = "", **_: Any) -> SimpleNamespace:
        self._alive(host)
        if command.startswith("cat "):
            return SimpleNamespace(stdout=self.files[host])
        words = shlex.split(stdin)
        if words[0] == "show":
            entry = self.maps[host]
            return SimpleNamespace(stdout=f"0x1 on {entry}\n\n" if entry else "\n")
        self.calls.append((host, words[0]))
        if host not in self.ignores:
            self.maps[host] = "" if words[0] == "del" else words[4]
        return SimpleNamespace(stdout="\n")

    def put(self, host: str, content: bytes, path: str) -> None:
        self._alive(host)
        assert path == MAP
        self.files[host] = content.decode()

    def _alive(self, host: str) -> None:
        if host in self.dies:
            self.dies[host] -= 1
            if self.dies[host] < 0:
                raise Unreachable(f"{host} does not answer")

    @property
    def kept(self) -> dict[str, Kept]:
        return {
            name: Kept(rules.running(f"0x1 on {m}\n") if m else None, rules.stored(f))
            for (name, m), f in zip(self.maps.items(), self.files.values(), strict=True)
        }

    def tell(self, wanted: Notice | None) -> None:
        before = {name: read(self, name) for name in ("lb-2", "lb-1")}  # type: ignore[arg-type]
        steps = SimpleNamespace(step=nullcontext)
        Telling(self, steps, guard=lambda: None).all(before, wanted)  # type: ignore[arg-type]


def test_both_are_told_and_have_it_for_good() -> None:
    fleet = Fleet()
    for wanted in (ANN, BOB, None):
        fleet.tell(wanted)
        assert fleet.kept == {name: Kept(wanted, wanted) for name in fleet.files}
    assert [call for _, call in fleet.calls] == ["add", "add", "set", "set", "del", "del"]


@pytest.mark.parametrize("before", [None, ANN])
@pytest.mark.parametrize("answers", range(2, 7))
def test_where_one_cannot_be_told_the_other_one_is_as_it_was(
    before: Notice | None, answers: int
) -> None:
    fleet = Fleet()
    fleet.tell(before)
    fleet.dies = {"lb-1": answers}
    with pytest.raises(HostFailed, match="lb-1 could not be told"):
        fleet.tell(BOB)
    assert fleet.kept["lb-2"] == Kept(before, before)


def test_one_that_does_not_do_what_it_was_told_is_found_out() -> None:
    fleet = Fleet(ignores={"lb-1"})
    with pytest.raises(HostFailed, match="does not say what it was told"):
        fleet.tell(ANN)
    assert fleet.kept == {name: Kept(None, None) for name in fleet.files}


def test_an_older_configuration_is_refused_with_the_command_that_mends_it() -> None:
    runner = SimpleNamespace(run=lambda *_, **__: SimpleNamespace(stdout="Unknown map identifier."))
    with pytest.raises(Refused, match="is older than the maintenance page"):
        read(runner, "lb-1")  # type: ignore[arg-type]


def test_the_board_says_that_clients_get_the_page() -> None:
    fleet = world()
    on = world(balancers=tuple(_with(one) for one in fleet.balancers))
    (found,) = findings(on)
    assert found.what == "clients get the maintenance page, by ann@desk: new disks"
    assert found.next == "fab lb.maintenance --off"
    assert found.page == "show-a-maintenance-page"


def _with(balancer: Any) -> Any:
    return replace(balancer, maintenance=ANN)
