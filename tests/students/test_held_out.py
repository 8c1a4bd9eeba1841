"""Patients to be held out by name, of whom none can be: that is told, and who is held out instead."""

import logging

import pytest

from storage import CaseRecord, Geometry
from students.held_out import tell_of_other_patients
from students.spec import StudentSpec
from students.splits import split_by_name, split_by_patient


@pytest.mark.parametrize(
    ("named", "watched", "said"),
    [
        pytest.param(("a", "b"), {"c", "d"}, "2 drawn by seed 7 are held out instead", id="others are"),
        pytest.param(("a", "b"), set(), "nobody is held out instead", id="nobody is"),
        pytest.param(("a", "b"), {"b"}, "", id="some of them are"),
        pytest.param((), {"c"}, "", id="nobody was named"),
    ],
)
def test_other_patients_than_those_named_are_told_of(
    named: tuple[str, ...], watched: set[str], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        tell_of_other_patients(StudentSpec(name="s-r2", seed=7, held_out=named), watched, watched & set(named))
    assert bool(caplog.records) == bool(said)
    assert said in caplog.text


def test_where_all_believed_patients_were_to_be_held_out_that_is_told_though_some_of_them_are(caplog: pytest.LogCaptureFixture) -> None:
    affine = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    whole = {"shape_czyx": (1, 1, 8, 8), "dtype": "uint8", "geometry": Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=affine)}
    records = [CaseRecord(id=f"c{n}", patient=f"p{n}", **whole) for n in range(5)]  # type: ignore[arg-type]
    named = tuple(record.patient for record in records)
    (_, held_out), (_, by_name) = split_by_patient(records, 0.2, 0), split_by_name(records, named)
    watched = {record.patient for record in records if record.id in held_out}
    with caplog.at_level(logging.WARNING):
        tell_of_other_patients(StudentSpec(name="s-r2", seed=0, held_out=named), watched, by_name)
    assert "1 drawn by seed 0 is held out instead" in caplog.text
