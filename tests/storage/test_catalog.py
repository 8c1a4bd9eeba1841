"""The catalog: what it remembers, how it finds it, and how its schema grows."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import (
    CaseNotFoundError,
    CaseRecord,
    Catalog,
    CatalogError,
    Geometry,
    LabelHistory,
    LabelSetNotFoundError,
    Ledger,
    ProblemRecord,
    Prompt,
    StudentRecord,
)
from storage.database import REVISIONS, Database, upgrade
from storage.tables import Base

EYE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
BOX = Prompt(case="a", class_id=1, kind="box", slice=3, box_xyxy_px=(1.0, 2.0, 3.5, 4.0))


def record_of(case: str, **changes: object) -> CaseRecord:
    record = CaseRecord(
        id=case, patient="p", shape_czyx=(1, 2, 3, 4), dtype="int16", geometry=Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=EYE)
    )
    return replace(record, **changes)  # type: ignore[arg-type]  # replace checks the names


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/catalog.sqlite"


@pytest.fixture
def catalog(url: str) -> Catalog:
    catalog = Catalog(url)
    for case in "abc":
        catalog.add_case(record_of(case))
    return catalog


def test_a_record_comes_back_as_it_was(catalog: Catalog) -> None:
    record = record_of(
        "x",
        geometry=Geometry(spacing_zyx_mm=(0.1, 1 / 3, 2.0), affine=EYE, nifti={"sform_code": 1, "pixdim": [1.0, 0.1]}, spacing_known=False),
        attributes={"sex": "F", "age_years": 61, "dose": 1.5},
        modality="CT",
        part="test",
        fingerprint="abc",
    )
    catalog.add_case(record)
    catalog.add_case(record)
    assert catalog.find_case("x") == record


def test_parts_are_set_together_or_not_at_all(catalog: Catalog) -> None:
    catalog.set_part({"a": "test", "b": "calibration"})
    assert [record.part for record in catalog.cases()] == ["test", "calibration", "archive"]
    with pytest.raises(CaseNotFoundError, match="1 of 2 cases are not in the catalog, such as nobody"):
        catalog.set_part({"c": "test", "nobody": "test"})
    assert [record.part for record in catalog.cases()] == ["test", "calibration", "archive"]


def test_the_same_prompt_twice_is_one_row(catalog: Catalog) -> None:
    other = replace(BOX, slice=4)
    assert catalog.add_prompts([BOX, BOX, other]) == 2
    assert catalog.add_prompts([other, BOX]) == 0
    assert catalog.prompts("a") == [BOX, other]


def test_prompts_are_found_by_case_class_and_source(catalog: Catalog) -> None:
    scribble = Prompt(case="b", class_id=2, kind="scribble", axis="y", slice=0, points_xy_px=((1.0, 2.0), (3.0, 4.0)), source="import")
    catalog.add_prompts([BOX, scribble])
    assert catalog.prompts("b", class_id=1) == []
    assert catalog.prompts_by_case(["a", "b", "c"]) == {"a": [BOX], "b": [scribble], "c": []}
    assert catalog.delete_prompts(source="import") == 1
    assert catalog.prompts("b") == []


def test_prompts_of_unknown_cases_are_refused_as_a_whole(catalog: Catalog) -> None:
    with pytest.raises(CaseNotFoundError, match="Ingest their images first"):
        catalog.add_prompts([BOX, replace(BOX, case="nobody")])
    assert catalog.prompts("a") == []


def test_what_a_file_no_longer_says_goes_unless_another_one_says_it(catalog: Catalog) -> None:
    first, second, third, fourth = (replace(BOX, slice=n) for n in range(4))
    elsewhere = replace(first, source="other")
    catalog.replace_prompts([first, second, third], file="f", source="weak")
    catalog.replace_prompts([elsewhere], file="f", source="other")
    catalog.replace_prompts([second], file="g", source="weak")
    catalog.add_prompts([third])
    assert catalog.replace_prompts([fourth], file="f", source="weak") == (1, 1)
    assert set(catalog.prompts("a")) == {second, third, fourth, elsewhere}


def test_a_replacement_that_is_refused_takes_nothing_back(catalog: Catalog) -> None:
    catalog.replace_prompts([BOX], file="f", source="weak")
    with pytest.raises(CaseNotFoundError):
        catalog.replace_prompts([replace(BOX, case="nobody")], file="f", source="weak")
    assert catalog.prompts("a") == [BOX]


numbers = st.floats(-1e6, 1e6)
prompts = st.builds(
    Prompt,
    case=st.just("a"),
    class_id=st.integers(1, 254),
    kind=st.sampled_from(["box", "point", "scribble", "mask", "box3d"]),
    axis=st.sampled_from(["z", "y", "x"]),
    slice=st.none() | st.integers(0, 999),
    box_xyxy_px=st.none() | st.tuples(numbers, numbers, numbers, numbers),
    points_xy_px=st.lists(st.tuples(numbers, numbers), max_size=4).map(tuple),
    positive=st.booleans(),
    mask_rle=st.text("0123abc<>\\`", max_size=9),
    mask_size_yx=st.none() | st.tuples(st.integers(1, 99), st.integers(1, 99)),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(added=st.lists(prompts, max_size=5))
def test_every_prompt_survives_the_round_trip(catalog: Catalog, added: list[Prompt]) -> None:
    catalog.delete_prompts(source="weak")
    assert catalog.add_prompts(added) == len(set(added))
    assert set(catalog.prompts("a")) == set(added)


def test_scores_are_overwritten_by_metric_and_keep_not_a_number(catalog: Catalog) -> None:
    history = LabelHistory(label_set="gold", classes=(), made_by="test")
    catalog.add_label_set("a", history, {"dice": 0.5, "nsd": math.nan})
    catalog.add_label_set("a", history, {"dice": 0.7})
    found = catalog.scores("gold")
    assert found["a"]["dice"] == pytest.approx(0.7)
    assert math.isnan(found["a"]["nsd"])


def test_scores_that_are_measured_later_join_those_of_finished_labels(catalog: Catalog) -> None:
    catalog.add_label_set("a", LabelHistory(label_set="teacher/r1", classes=(), made_by="t"), {"stability/1": 0.9, "prior/1": 0.5})
    catalog.add_scores("a", "teacher/r1", {"prior/1": 0.1, "oof_dice/1": math.nan})
    found = catalog.scores("teacher/r1")["a"]
    assert (found["stability/1"], found["prior/1"]) == (0.9, 0.1)
    assert math.isnan(found["oof_dice/1"])


def test_scores_are_read_of_all_cases_or_of_some(catalog: Catalog) -> None:
    for case in "abc":
        catalog.add_label_set(case, LabelHistory(label_set="teacher/r1", classes=(), made_by="t"), {"stability/1": 0.9})
    assert set(catalog.scores("teacher/r1")) == {"a", "b", "c"}
    assert set(catalog.scores("teacher/r1", ["a", "c", "nobody"])) == {"a", "c"}
    assert catalog.scores("teacher/r1", []) == {}


def test_scores_of_labels_that_are_not_there_are_refused(catalog: Catalog) -> None:
    with pytest.raises(LabelSetNotFoundError, match=r"case a has no finished label set 'teacher/r1'"):
        catalog.add_scores("a", "teacher/r1", {"prior/1": 0.1})
    assert catalog.scores("teacher/r1") == {}


def test_retracting_a_label_set_takes_its_scores(catalog: Catalog) -> None:
    catalog.add_label_set("a", LabelHistory(label_set="gold", classes=(), made_by="tests"), {"dice": 1.0})
    assert catalog.count_label_sets() == {"gold": 1}
    catalog.retract_label_set("a", "gold")
    assert (catalog.label_sets("a"), catalog.scores("gold")) == ([], {})


def finish(url: str, *stages: str) -> Ledger:
    ledger = Ledger(url)
    for stage in stages:
        ledger.plan(stage, {"a": "print", "b": "print"})
        for case in "ab":
            ledger.claim(stage, case)
            ledger.done(stage, case)
    return ledger


@pytest.mark.parametrize(
    ("label_set", "stage"),
    [
        ("gold", "gold"),
        ("mine", "gold/mine"),
        ("teacher/r1", "label:teacher/r1"),
        ("pseudo/r1", "refine:pseudo/r1"),
        ("mean/r2", "mean:mean/r2"),
        ("folds/r2", "answer:folds/r2"),
        ("pseudo/r2", "agree:pseudo/r2"),
    ],
)
def test_labels_that_are_retracted_are_made_again(catalog: Catalog, url: str, label_set: str, stage: str) -> None:
    ledger = finish(url, stage, "label:other", "ingest")
    catalog.retract_label_set("a", label_set)
    assert ledger.plan(stage, {"a": "print", "b": "print"}) == ["a"]
    assert ledger.plan("label:other", {"a": "print"}) == []
    ledger.claim(stage, "a")
    catalog.retract_label_set("a", label_set)
    ledger.done(stage, "a")


def test_all_labels_of_a_case_with_new_pixels_are_made_again(catalog: Catalog, url: str) -> None:
    stages = ("gold", "gold/mine", "label:teacher/r1", "refine:pseudo/r1", "answer:folds/r2", "mean:mean/r2", "agree:pseudo/r2")
    ledger = finish(url, *stages, "ingest")
    catalog.retract_case("a")
    assert all(ledger.plan(stage, {"a": "print", "b": "print"}) == ["a"] for stage in stages)
    assert ledger.plan("ingest", {"a": "print"}) == []


def test_students_and_problems_are_kept_once(catalog: Catalog) -> None:
    student = StudentRecord(name="s", kind="compact", path="students/s", label_set="pseudo/r1", metrics={"dice": 0.8})
    problems = [
        ProblemRecord(source="a.json", row="7", reason="unknown-case", message="row 7 names a case that is not here"),
        ProblemRecord(source="b.nii.gz", row="", reason="zero-bytes", message="the file is empty"),
    ]
    for _ in range(2):
        catalog.record_student(student)
        catalog.record_problems([*problems, problems[0]])
    assert catalog.students() == [student]
    assert catalog.problems() == problems


def student(weights: str = "w1", **changes: object) -> StudentRecord:
    known: dict[str, object] = {"name": "s", "kind": "compact", "path": "students/s", "label_set": "pseudo/r1", "fingerprint": "f"}
    return StudentRecord(**{**known, "weights": weights, **changes})  # type: ignore[arg-type]


def test_a_student_trained_again_counts_one_on_and_the_one_before_is_remembered(catalog: Catalog) -> None:
    catalog.record_student(student(metrics={"agreement": 0.7}))
    catalog.add_student_metrics("s", {"dice": 0.6})
    catalog.record_student(student("w2", metrics={"agreement": 0.8}))
    assert [(each.revision, each.weights, each.metrics) for each in catalog.student_versions("s")] == [
        (1, "w1", {"agreement": 0.7, "dice": 0.6}),
        (2, "w2", {"agreement": 0.8}),
    ]
    assert [each.revision for each in catalog.students()] == [2]


def test_the_same_training_recorded_again_keeps_its_scores(catalog: Catalog) -> None:
    catalog.record_student(student(metrics={"agreement": 0.7}))
    catalog.add_student_metrics("s", {"dice": 0.6})
    catalog.record_student(student(metrics={"agreement": 0.7}))
    (kept,) = catalog.student_versions("s")
    assert kept == student(metrics={"agreement": 0.7, "dice": 0.6})


def test_scores_of_a_student_that_nobody_recorded_make_none(catalog: Catalog) -> None:
    catalog.add_student_metrics("s", {"dice": 0.6})
    assert catalog.students() == []


def test_one_student_is_promoted_at_a_time_and_a_new_training_of_it_is_not(catalog: Catalog) -> None:
    catalog.record_student(student())
    catalog.record_student(student(name="t"))
    assert catalog.promote_student("s", 1)
    assert catalog.promote_student("t", 1)
    assert [each.is_promoted for each in catalog.students()] == [False, True]
    catalog.record_student(student("w2", name="t"))
    assert [(each.promoted, each.is_promoted) for each in catalog.students()] == [(0, False), (1, False)]
    assert not catalog.promote_student("t", 1), "that training is gone"
    assert not catalog.promote_student("u", 1)


def test_what_a_label_set_was_made_of_is_known_without_its_file_and_goes_with_it(catalog: Catalog) -> None:
    for case, parameters in (("a", {"made_of": "first"}), ("b", {})):
        catalog.add_label_set(case, LabelHistory(label_set="pseudo/r1", classes=(), made_by="t", parameters=parameters), {})
    assert catalog.made_of("pseudo/r1") == {"a": "first", "b": ""}
    again = LabelHistory(label_set="pseudo/r1", classes=(), made_by="t", parameters={"made_of": "second"})
    catalog.add_label_set("a", again, {})
    catalog.record_made_of("pseudo/r1", {"a": "what was read before it was written anew"})
    assert catalog.made_of("pseudo/r1")["a"] == "second"
    catalog.retract_label_set("a", "pseudo/r1")
    assert catalog.made_of("pseudo/r1") == {"b": ""}


def test_threads_write_at_once_without_losing_a_row(catalog: Catalog) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: catalog.add_case(record_of(f"case-{number}")), range(100)))
    assert catalog.count_cases() == 103


def test_pages_and_filters_of_a_large_catalog_read_an_index_and_not_the_table(catalog: Catalog, url: str) -> None:
    for condition, index in (("part = 'test'", "ix_cases_part_id"), ("modality = 'CT'", "ix_cases_modality_id")):
        query = f"EXPLAIN QUERY PLAN SELECT * FROM cases WHERE ready AND {condition} AND id > 'm' ORDER BY id LIMIT 100"
        with Database(url).reading() as connection:
            plan = " ".join(str(row) for row in connection.execute(sa.text(query)))
        assert index in plan
        assert "TEMP B-TREE" not in plan


@pytest.mark.slow
def test_a_million_cases_are_paged_found_and_counted(catalog: Catalog, url: str) -> None:
    columns = "patient, part, modality, dtype, size_c, size_z, size_y, size_x, geometry, attributes, fingerprint, ready, channels"
    query = f"INSERT INTO cases SELECT printf('case-%07d', value), {columns} FROM numbers, cases WHERE cases.id = 'a'"
    series = "WITH RECURSIVE numbers(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM numbers WHERE value < 1000000) "
    with Database(url).writing() as connection:
        connection.execute(sa.text(query.replace("SELECT printf", series + "SELECT printf", 1)))
    assert len(catalog.cases(part="archive", after="case-0900000", limit=1000)) == 1000
    assert catalog.find_case("case-0500000") is not None
    assert len(catalog.similar_ids("case-0500000x")) > 100
    assert catalog.count_cases() == 1_000_003


class TestSchema:
    @pytest.fixture
    def database(self, url: str) -> Iterator[sa.Engine]:
        engine = sa.create_engine(url)
        yield engine
        engine.dispose()

    def test_the_migrations_lead_to_the_tables_of_the_code(self, url: str) -> None:
        with Database(url).reading() as connection:
            assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []

    def test_every_revision_is_known_to_the_code(self) -> None:
        import storage

        folder = Path(storage.__file__).parent / "migrations" / "versions"
        assert sorted(path.name[:4] for path in folder.glob("[0-9]*.py")) == list(REVISIONS)

    def test_an_old_catalog_is_upgraded_and_keeps_its_rows(self, url: str, database: sa.Engine) -> None:
        with database.begin() as connection:
            upgrade(connection, "0001")
            assert "students" not in sa.inspect(connection).get_table_names()
            connection.execute(
                sa.text("INSERT INTO cases VALUES ('old', 'p', 'test', 'CT', 'int16', 1, 2, 3, 4, :geometry, '{}', 'print', 1)"),
                {"geometry": '{"spacing_zyx_mm": [1, 1, 1], "affine": [[1,0,0,0],[0,1,0,0],[0,0,1,0],[0,0,0,1]]}'},
            )
        catalog = Catalog(url)
        assert catalog.find_case("old") == record_of("old", part="test", modality="CT", fingerprint="print")
        assert catalog.students() == []

    def test_what_labels_from_before_were_made_of_is_not_known_until_it_is_recorded(self, url: str, database: sa.Engine) -> None:
        with database.begin() as connection:
            upgrade(connection, "0004")
            connection.execute(
                sa.text("INSERT INTO cases VALUES ('old', 'p', 'test', 'CT', 'int16', 1, 2, 3, 4, :geometry, '{}', 'print', 1)"),
                {"geometry": '{"spacing_zyx_mm": [1, 1, 1], "affine": [[1,0,0,0],[0,1,0,0],[0,0,1,0],[0,0,0,1]]}'},
            )
            connection.execute(sa.text("INSERT INTO label_sets VALUES ('old', 'pseudo/r1', 't', '', 1, 'print')"))
        catalog = Catalog(url)
        assert catalog.made_of("pseudo/r1") == {"old": None}
        catalog.record_made_of("pseudo/r1", {"old": "print of the teacher's"})
        assert catalog.made_of("pseudo/r1") == {"old": "print of the teacher's"}

    def test_students_from_before_are_first_trainings_that_nobody_promoted(self, url: str, database: sa.Engine) -> None:
        with database.begin() as connection:
            upgrade(connection, "0005")
            connection.execute(sa.text("INSERT INTO students VALUES ('s', 'compact', 'students/s', 'pseudo/r1', 1, 0, 'f', '{}')"))
        catalog = Catalog(url)
        assert catalog.students() == [student("")]
        catalog.record_student(student("w1"))
        assert [(each.revision, each.weights) for each in catalog.student_versions("s")] == [(1, "w1")]

    def test_a_newer_catalog_is_refused_with_the_remedy(self, url: str, database: sa.Engine) -> None:
        Catalog(url)
        with database.begin() as connection:
            connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(CatalogError, match=r"has schema 9999, but this version .* only up to 0007.*upgrade this one"):
            Catalog(url)

    def test_many_that_open_a_new_catalog_at_once_all_get_it(self, url: str) -> None:
        with ThreadPoolExecutor(6) as pool:
            assert [catalog.count_cases() for catalog in pool.map(Catalog, [url] * 6)] == [0] * 6

    def test_a_catalog_that_cannot_be_opened_names_the_place(self, tmp_path: Path) -> None:
        with pytest.raises(CatalogError, match=r"missing/c\.sqlite cannot be opened.*Check that its folder exists"):
            Catalog(f"sqlite:///{tmp_path}/missing/c.sqlite")
