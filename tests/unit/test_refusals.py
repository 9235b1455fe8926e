"""Whom MySQL refused is told once, by whom where the server still knows, whatever is read when."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules.refusals import WHY, Refused, grown, settled, told

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
            st.sampled_from(["", "look", "between"]),  # what happens after it
        ),
        max_size=40,
    )
)
def test_every_refusal_is_told_once_also_one_between_two_reads_of_a_look(events: Any) -> None:
    server = Server()
    for one, is_kept, then in events:
        if then == "between":
            server.look((one, is_kept))
            continue
        server.refuse(one, is_kept)
        if then == "look":
            server.look()
    server.look()
    assert server.said == server.refused


class Server:
    """Its counters, what it refused by number, and what was said of that."""

    def __init__(self) -> None:
        self.refused, self.said = dict.fromkeys(WHY, 0), dict.fromkeys(WHY, 0)
        self._all, self._kept, self._known, self._known_kept = {}, {}, {}, {}

    def refuse(self, one: Refused, is_kept: bool) -> None:
        self.refused[one.number] += 1
        self._all[Refused(one.number)] = self._all.get(Refused(one.number), 0) + 1
        if is_kept:
            self._kept[one] = self._kept.get(one, 0) + 1

    def look(self, between: Any = None) -> None:
        now = dict(self._all)
        if between:
            self.refuse(*between)
        more, whose = grown(self._known, now), {}
        if more:
            whose = grown(self._known_kept, self._kept)
            self._known_kept = dict(self._kept)
        for line in told(more, whose):
            number = next(n for n, why in WHY.items() if why == line["refused"])
            self.said[number] += line["times"]
        self._known = settled(now, more, whose)
