"""Patients to be held out by name, of whom none can be: that is told, and who is held out instead."""

import logging

import pytest

from students.held_out import tell_of_other_patients
from students.spec import StudentSpec


@pytest.mark.parametrize(
    ("named", "watched", "said"),
    [
        pytest.param(("a", "b"), {"c", "d"}, "2 others, drawn by seed 7, are held out instead", id="others are"),
        pytest.param(("a", "b"), set(), "nobody is held out instead", id="nobody is"),
        pytest.param(("a", "b"), {"b"}, "", id="some of them are"),
        pytest.param((), {"c"}, "", id="nobody was named"),
    ],
)
def test_other_patients_than_those_named_are_told_of(
    named: tuple[str, ...], watched: set[str], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        tell_of_other_patients(StudentSpec(name="s-r2", seed=7, held_out=named), watched)
    assert bool(caplog.records) == bool(said)
    assert said in caplog.text
