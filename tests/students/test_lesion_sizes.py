"""Lesions found, by their size in gold."""

import runpy
from pathlib import Path

from students.lesion_sizes import lesions_by_size

scored = runpy.run_path(str(Path(__file__).with_name("scored.py")))  # tests are no package
ORGAN, comparison = scored["ORGAN"], scored["comparison"]


def test_small_lesions_that_are_missed_stand_beside_large_ones_that_are_found() -> None:
    counts = {"a-1": {0: (4, 1), 2: (1, 1)}, "a-2": {0: (2, 2)}, "b-1": {2: (2, 2)}, "c-1": {}}
    student = comparison(dict.fromkeys(counts, 0.8))
    student = student.model_copy(
        update={"scores": tuple(score.model_copy(update={"lesions_by_decade": counts[score.case]}) for score in student.scores)}
    )
    small, large = lesions_by_size([student], [ORGAN], "px")
    assert (small.size, small.lesions, small.found) == ("1 to 10 px", 6, 3)
    assert small.sensitivity.mean == (1 / 4 + 1) / 2, "cases of one patient are averaged first"
    assert small.sensitivity.patients == 1
    assert (large.size, large.lesions, large.found, large.sensitivity.patients) == ("100 to 1,000 px", 3, 3, 2)
    assert small.teacher is None


def test_classes_that_are_no_lesions_have_no_sizes() -> None:
    assert lesions_by_size([comparison({"a-1": 0.8})], [ORGAN]) == ()
