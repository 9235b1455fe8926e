"""A deploy is killed at everything it does; resume finishes it and abort takes it back."""

from __future__ import annotations

from pathlib import Path

import pytest
from deploy_model import Killed, Model


def killed_at(folder: Path, moment: int, *, bad: bool) -> Model:
    """A fleet whose deploy was killed before the ``moment``-th thing it would have done."""
    folder.mkdir()
    model = Model(folder)
    if bad:
        model.hosts["app-3"].broken.add("2")
    model.dies_at = moment
    with pytest.raises(Killed):
        model.deploy()
    return model


def moments(folder: Path, *, bad: bool) -> list[str]:
    """Everything a whole deploy does; the order within a batch differs from run to run."""
    folder.mkdir()
    model = Model(folder)
    if bad:
        model.hosts["app-3"].broken.add("2")
    outcome = model.deploy()
    assert outcome.result == ("rolled back" if bad else "done")
    assert model.faults("1" if bad else "2") == []
    return model.done_things


@pytest.mark.parametrize("back", [False, True], ids=["resume", "abort"])
@pytest.mark.parametrize("bad", [False, True], ids=["good", "bad"])
def test_whatever_a_deploy_was_killed_at_it_is_finished_or_taken_back(
    tmp_path: Path, back: bool, bad: bool
) -> None:
    things = moments(tmp_path / "whole", bad=bad)
    assert len(things) > 100
    # A run whose threads took turns otherwise may be a few things shorter than the first one.
    for moment in range(1, len(things) - 10, 3 if bad else 1):
        model = killed_at(tmp_path / str(moment), moment, bad=bad)
        at = f"killed before {moment}: {model.done_things[-1]} was the last thing done"
        outcome = model.recover(back=back)
        wanted = "1" if back or bad else "2"
        assert outcome.result == ("done" if wanted == "2" else "rolled back"), at
        assert model.faults(wanted) == [], at
