"""Whom MySQL refused is told once, by whom where the server still knows, whatever is read when."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules.refusals import WHY, Known, Refused, grown, looked, told

APP = Refused(3159, "guestbook", "10.77.3.1")
STRANGER = Refused(1045, "root", "10.77.9.9")


def test_a_line_says_who_and_how_often():
    assert told({Refused(3159): 3, Refused(1045): 1}, {APP: 2, STRANGER: 1}) == [
        {"refused": "access denied", "account": "root", "from": "10.77.9.9", "times": 1},
        {"refused": "connection without TLS", "account": None, "from": None, "times": 1},
        {
            "refused": "connection without TLS",
            "account": "guestbook",
            "from": "10.77.3.1",
            "times": 2,
        },
    ]


def test_counters_that_a_restart_set_back_count_from_nothing_on():
    assert grown({APP: 7}, {APP: 2}) == {APP: 2}
    assert grown({APP: 7}, {APP: 7}) == {}


@given(
    st.lists(
        st.tuples(
            st.sampled_from([APP, STRANGER, Refused(3159, "other", "10.77.3.2")]),
            st.booleans(),  # whether the server keeps this account
            st.sampled_from(["", "look", "between", "restart"]),  # what happens after it
        ),
        max_size=40,
    )
)
def test_every_refusal_is_told_once_also_one_between_two_reads_of_a_look(events: Any) -> None:
    server = Server()
    server.look()
    for one, is_kept, then in events:
        if then == "between":
            server.look((one, is_kept))
            continue
        server.refuse(one, is_kept)
        if then:
            server.look()
        if then == "restart":
            server.restart()
            server.look()
    server.look()
    assert server.said == server.refused


def test_the_first_one_after_a_restart_is_told_with_its_account() -> None:
    """As many as before it: a server that looks as it did then was another one in between."""
    server = Server()
    server.look()
    server.refuse(APP, True)
    server.look()
    server.restart()
    server.look()
    server.refuse(APP, True)
    assert [line["account"] for line in server.look()] == ["guestbook"]


class Server:
    """Its counters, what it refused by number, and what was said of that."""

    def __init__(self) -> None:
        self.refused, self.said = dict.fromkeys(WHY, 0), dict.fromkeys(WHY, 0)
        self._known: Known | None = None
        self.restart()

    def restart(self) -> None:
        self._all, self._kept = {Refused(number): 0 for number in WHY}, {}

    def refuse(self, one: Refused, is_kept: bool) -> None:
        self.refused[one.number] += 1
        self._all[Refused(one.number)] += 1
        if is_kept:
            self._kept[one] = self._kept.get(one, 0) + 1

    def look(self, between: Any = None) -> list[dict[str, Any]]:
        now = dict(self._all)
        if between:
            self.refuse(*between)
        lines, self._known = looked(self._known, now, lambda: dict(self._kept))
        for line in lines:
            number = next(n for n, why in WHY.items() if why == line["refused"])
            self.said[number] += line["times"]
        return lines
