"""A rotation as a game: killed after any write, gone on with by anybody, and no client refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.provision.world import data
from flotilla.rules.secrets import (
    NEXT,
    NOT_ROTATED,
    PREVIOUS,
    REFUSED,
    ROTATED,
    Held,
    Step,
    accepted,
    age_days,
    ahead,
    also_accepted,
    gathered,
    name_of,
    objection,
    strangers,
    writes,
    written,
)


class World:
    """SSM, servers that were last told what to accept, and clients with what they were given."""

    def __init__(self, servers: int, clients: int) -> None:
        self.held = Held("old")
        self.servers = [("old",)] * servers
        self.clients = ["old"] * clients
        self.made = 0

    def check(self) -> None:
        assert objection(self.held) is None
        for value in (*self.clients, self.held.current):
            assert all(value in server for server in self.servers), (value, self.servers)

    def tell(self, numbers) -> None:
        for number in numbers:
            self.servers[number] = accepted(self.held)
            self.check()

    def give(self, numbers) -> None:
        for number in numbers:
            self.clients[number] = self.held.current
            self.check()

    def run(self, patience: int) -> bool:
        """The command; dead after ``patience`` acts. Whether it came to its end."""
        for step in ahead(self.held):
            acts = []
            if step in {Step.ACCEPT, Step.REFUSE}:
                acts += [lambda n=n: self.tell([n]) for n in range(len(self.servers))]
            if step is Step.MOVE:
                acts += [lambda n=n: self.give([n]) for n in range(len(self.clients))]
            new = f"new-{self.made + 1}"
            acts += [lambda w=w: self._write(w) for w in writes(step, self.held, new)]
            for act in acts:
                if patience == 0:
                    return False
                patience -= 1
                act()
        return True

    def _write(self, write) -> None:
        self.made += write.suffix == NEXT and write.value is not None
        self.held = written(self.held, write)
        self.check()


@given(
    st.lists(st.integers(0, 14), max_size=8),
    st.lists(st.tuples(st.booleans(), st.integers(0, 2)), max_size=8),
)
def test_killed_anywhere_it_is_gone_on_with_and_no_client_is_refused(kills, others):
    world = World(servers=3, clients=3)
    for patience in kills:
        if world.run(patience):
            break
        # Somebody configures a host meanwhile, or a new one joins.
        for is_server, number in others:
            (world.tell if is_server else world.give)([number])
    else:
        assert world.run(1000)
    assert not world.held.is_rotating
    assert world.servers == [(world.held.current,)] * 3
    assert world.clients == [world.held.current] * 3
    assert world.held.current == "new-1", "a second command goes on with the first one's value"


def test_the_old_value_is_known_until_it_is_refused():
    held, seen = Held("old"), []
    for step in Step:
        for write in writes(step, held, "new"):
            held = written(held, write)
            seen.append((held.current, held.next, held.previous, held.refused))
    assert seen == [
        ("old", "new", None, None),
        ("old", "new", "old", None),
        ("new", "new", "old", None),
        ("new", None, "old", None),
        ("new", None, "old", "old"),
        ("new", None, None, "old"),
        ("new", None, None, None),
    ]


@pytest.mark.parametrize(
    ("held", "word"),
    [
        (Held("other", "new", "old"), NEXT),
        (Held("new", "newer", None, "old"), REFUSED),
        (Held("new", None, "old", "older"), "differ"),
        (Held("old", None, "old"), "again"),
        (Held("old", None, None, "old"), "again"),
    ],
)
def test_what_no_rotation_leaves_is_told(held, word):
    assert word in (objection(held) or "")


@given(*(st.none() | st.sampled_from("abc") for _ in range(3)))
def test_servers_accept_what_clients_use_and_never_more_than_two(following, previous, refused):
    held = Held("a", following, previous, refused)
    if objection(held) is None:
        assert "a" in accepted(held)
        assert len(accepted(held)) <= 2
        assert refused not in accepted(held)


def test_parameters_are_gathered_by_secret():
    found = {"redis/app": "new", f"redis/app{PREVIOUS}": "old", "mysql/app": "pw"}
    assert gathered(found)["redis/app"].previous == "old"
    assert set(gathered(found)) == {"redis/app", "mysql/app"}
    assert also_accepted(found) == {"redis/app": ["old"]}


def test_strangers_are_named_by_server():
    seen = {"redis-1": ["10.0.0.4", "10.9.9.9"], "redis-2": ["10.0.0.4"]}
    assert strangers(seen, ["10.0.0.4"]) == {"redis-1": ["10.9.9.9"]}


def test_an_age_is_never_below_nothing():
    assert age_days(1000.0, 900.0) == 0
    assert age_days(0.0, 86400.0 * 3 + 5) == 3


def test_a_value_shows_in_no_repr():
    assert "old" not in repr(Held("old"))
    assert all("password" not in repr(Held("password", "password")) for _ in ROTATED)


def test_every_secret_that_is_made_is_rotated_or_it_is_said_why_not():
    made = {name_of(role, name) for role, names in data("secrets.yml").items() for name in names}
    assert made == {*ROTATED, *NOT_ROTATED}
    for name, secret in ROTATED.items():
        assert name_of(secret.role, secret.parameter) == name
