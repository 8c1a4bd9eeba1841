"""What a report depends on, and what of a labelling run reaches the summary."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
import torch

from flows import arms, judging, stages, teaching
from flows.errors import StageError
from flows.recipe import Recipe
from flows.recipe_file import load_recipe
from flows.results import TEACHER_SET
from storage import Archive, CaseRecord, ClassInfo, Geometry, LabelHistory, Part, Prompt
from storage.database import Database
from storage.tables import UnitRow

WriteRecipe = Callable[[str], Path]
CLASSES = (ClassInfo(id=1, name="organ"),)
PARTS: dict[str, Part] = {"learnt": "archive", "tested": "test"}


@pytest.fixture
def recipe(write_recipe: WriteRecipe) -> Recipe:
    found = load_recipe(write_recipe("archive: ./a.zarr\nclasses: {1: {name: organ}}\nuncertainty: {boxes: 1}\n"))
    found.student_folder.mkdir(parents=True)
    (found.student_folder / "student.json").write_text("{}", encoding="utf-8")
    return found


@pytest.fixture
def archive(recipe: Recipe) -> Archive:
    """Two tiny cases with gold and teacher labels."""
    made = Archive.create(recipe.archive)
    geometry = Geometry(spacing_zyx_mm=(1, 1, 1), affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)))
    for name, part in PARTS.items():
        record = CaseRecord(id=name, patient=name, shape_czyx=(1, 2, 3, 4), dtype="int16", geometry=geometry, part=part)
        made.add_case(record, np.zeros((1, 2, 3, 4), np.int16))
        write(made, name, "gold", "old")
        write(made, name, TEACHER_SET, "old")
    return made


def write(archive: Archive, case: str, label_set: str, fingerprint: str) -> None:
    history = LabelHistory(label_set=label_set, classes=CLASSES, made_by="test", fingerprint=fingerprint)
    archive[case].write_labels(history, np.zeros((2, 3, 4), np.uint8))


def box(case: str, class_id: int = 1) -> Prompt:
    return Prompt(case=case, class_id=class_id, kind="box", slice=0, box_xyxy_px=(0.0, 0.0, 2.0, 2.0))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda archive: write(archive, "tested", TEACHER_SET, "new"), id="the teacher drew a test case anew"),
        pytest.param(lambda archive: write(archive, "tested", "gold", "new"), id="an expert changed a test case"),
        pytest.param(lambda archive: write(archive, "learnt", "gold", "new"), id="an expert changed a case that arms learn from"),
        pytest.param(lambda archive: archive.catalog.add_prompts([box("tested")]), id="a test case has a new prompt"),
        pytest.param(lambda archive: archive.catalog.add_prompts([box("learnt")]), id="an archive case has a new prompt"),
    ],
)
def test_a_report_is_out_of_date_when_what_it_compares_has_changed(
    change: Callable[[Archive], object], archive: Archive, recipe: Recipe
) -> None:
    before = judging.evaluation_fingerprint(archive, recipe)
    assert judging.evaluation_fingerprint(archive, recipe) == before
    change(archive)
    assert judging.evaluation_fingerprint(archive, recipe) != before


def test_a_student_without_its_card_is_trained_again(archive: Archive, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    card = recipe.student_folder / "student.json"

    def train(*_: object) -> str:
        trained.append(card.write_text("{}", encoding="utf-8"))
        return ""

    history = LabelHistory(label_set="pseudo/r1", classes=CLASSES, made_by="test", fingerprint="a")
    archive["learnt"].write_labels(history, np.zeros((2, 3, 4), np.uint8), scores={"accepted": 1.0})
    monkeypatch.setattr(teaching, "_train", train)
    assert (teaching.train(recipe).done, teaching.train(recipe).skipped, len(trained)) == (1, 1, 1)
    card.unlink()
    assert (teaching.train(recipe).done, len(trained)) == (1, 2)


def test_cases_that_another_process_holds_are_left_for_the_next_run(
    archive: Archive, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distill import engine

    summary = engine.LabelSummary(
        label_set=TEACHER_SET, done=1, skipped=0, without_prompts=(), quarantined=(), unfinished=2, slices=4, seconds=1.0
    )
    monkeypatch.setattr(engine, "label_archive", lambda *_, **__: summary)
    result = stages.label(recipe, stages.Shard(name="1/1", cases=tuple(PARTS), offset=0, total=2))
    assert (result.done, result.failed) == (1, 2)


def test_a_report_waits_for_the_student_that_another_run_trains(archive: Archive, recipe: Recipe) -> None:
    (recipe.student_folder / "student.json").unlink()
    archive.ledger.plan("train", {recipe.student.name: "a"})
    archive.ledger.claim("train", recipe.student.name)
    result = judging.evaluate(recipe)
    assert (result.stage, result.skipped, result.failed) == ("evaluate", 0, 1)
    assert result.note.startswith(f"waits for train: another run is (process {os.getpid()} on ")
    archive.ledger.release("train", recipe.student.name)
    with pytest.raises(StageError, match="no student"):
        judging.evaluate(recipe)


def test_a_case_that_another_run_refines_is_left(archive: Archive, recipe: Recipe) -> None:
    history = LabelHistory(label_set=TEACHER_SET, classes=CLASSES, made_by="test", fingerprint="drawn")
    archive["tested"].write_labels(history, np.zeros((2, 3, 4), np.uint8), probability_kzyx=np.zeros((1, 2, 3, 4), np.uint8))
    archive.ledger.plan("refine:pseudo/r1", {"learnt": "a"})
    archive.ledger.claim("refine:pseudo/r1", "learnt")
    with Database(archive.catalog.url).writing() as connection:
        connection.execute(sa.update(UnitRow).values(host="elsewhere"))
    result = stages.refine(recipe, stages.Shard(name="1/1", cases=tuple(PARTS), offset=0, total=2))
    assert (result.done, result.skipped, result.failed) == (1, 0, 1)


def test_the_teacher_is_timed_on_the_recipes_classes_and_in_all_its_planes(
    archive: Archive, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    asked: list[tuple[str, list[int]]] = []
    archive.catalog.add_prompts([box("tested"), box("tested", class_id=2)])
    monkeypatch.setattr(arms, "load_teacher", lambda *_, **__: SimpleNamespace(sam=None, device="cpu"))
    monkeypatch.setattr(arms, "measure_cost", lambda _name, _models, ask, **__: ask())
    monkeypatch.setattr(arms, "run_wavefront", lambda _teacher, works, _ask: asked.append(("axial", list(works[0].classes))))
    monkeypatch.setattr(arms, "ask_other_planes", lambda _teacher, works, _ask: asked.append(("others", list(works[0].classes))))
    arms.teacher_cost(archive, recipe, [archive["tested"].record])
    assert asked == [("axial", [1]), ("others", [1])]


def test_the_teacher_is_loaded_and_timed_with_its_own_gpu_as_the_current_one(
    archive: Archive, write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import contextmanager
    from types import SimpleNamespace

    current: list[str] = []
    seen: list[tuple[str, list[str]]] = []

    @contextmanager
    def enter(device: str) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    def load(*_: object, **__: object) -> SimpleNamespace:
        seen.append(("loaded", list(current)))
        return SimpleNamespace(sam=None, device="cuda:1")

    archive.catalog.add_prompts([box("tested")])
    text = "archive: ./a.zarr\nclasses: {1: {name: organ}}\nuncertainty: {planes: axial}\nteacher: {device: 'cuda:1'}\n"
    monkeypatch.setattr(torch.cuda, "device", enter)
    monkeypatch.setattr(arms, "resolve_devices", lambda _: ("cuda:1",))
    monkeypatch.setattr(arms, "load_teacher", load)
    monkeypatch.setattr(arms, "measure_cost", lambda _name, _models, ask, **__: ask())
    monkeypatch.setattr(arms, "run_wavefront", lambda *_: seen.append(("asked", list(current))))
    arms.teacher_cost(archive, load_recipe(write_recipe(text)), [archive["tested"].record])
    assert seen == [("loaded", ["cuda:1"]), ("asked", ["cuda:1"])]


def test_the_teacher_is_timed_on_the_pictures_that_the_recipe_asks_for(
    archive: Archive, write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    shown: list[float] = []
    archive.catalog.add_prompts([box("tested")])
    text = (
        "archive: ./a.zarr\nclasses: {1: {name: organ}}\nuncertainty: {boxes: 1, planes: axial}\nintensity: {other: {windows: [[7, 9]]}}\n"
    )
    monkeypatch.setattr(arms, "load_teacher", lambda *_, **__: SimpleNamespace(sam=None, device="cpu"))
    monkeypatch.setattr(arms, "measure_cost", lambda _name, _models, ask, **__: ask())
    monkeypatch.setattr(arms, "run_wavefront", lambda _teacher, works, _ask: shown.append(works[0].window.low))
    arms.teacher_cost(archive, load_recipe(write_recipe(text)), [archive["tested"].record])
    assert shown == [7.0]


def test_a_report_waits_for_a_student_whose_training_was_given_up_and_says_over_what(archive: Archive, recipe: Recipe) -> None:
    (recipe.student_folder / "student.json").unlink()
    archive.ledger.plan("train", {recipe.student.name: "a"})
    for _ in range(3):
        archive.ledger.claim("train", recipe.student.name)
        archive.ledger.fail("train", recipe.student.name, MemoryError("too large"))
    result = judging.evaluate(recipe)
    assert (result.failed, result.note) == (1, "waits for train: given up after 3 attempts: MemoryError: too large")


@pytest.mark.parametrize(
    ("class_id", "said"),
    [
        pytest.param(None, "has a prompt, so the teacher has drawn nothing. Name a file of them", id="no prompts"),
        pytest.param(7, "are about class 7, but the recipe is about 1, so the teacher has drawn nothing", id="prompts about another class"),
        pytest.param(1, "Run 'samdistill label RECIPE' first", id="not labelled"),
    ],
)
def test_where_nothing_is_drawn_refine_says_why(class_id: int | None, said: str, archive: Archive, recipe: Recipe) -> None:
    for name in PARTS:
        archive[name].delete_labels(TEACHER_SET)
    if class_id is not None:
        archive.catalog.add_prompts([box("learnt", class_id)])
    with pytest.raises(StageError, match=said):
        stages.shards_to_refine(recipe, 8)
