"""A recipe in an empty folder, an archive to learn from, and stages that only count."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flows import judging, stages, teaching
from flows.recipe import Recipe
from flows.results import PSEUDO_SET, TEACHER_SET, StageResult
from storage import Archive, CaseRecord, ClassInfo, Geometry, LabelHistory, Part, Prompt

SMALLEST = "archive: ./archive.zarr\nclasses: {1: {name: organ}}\n"


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[[str], Path]:
    """Write a recipe and return its path."""

    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def add(archive: Archive, name: str, part: Part, seed: int) -> None:
    """A noisy volume with a bright block, expert labels, a box, and labels of a teacher that draws it a little too large."""
    shape, rng = (6, 20, 18), np.random.default_rng(seed)
    gold = np.zeros(shape, np.uint8)
    y, x = rng.integers(3, 8, 2)
    gold[1:5, y : y + 9, x : x + 8] = 1
    geometry = Geometry(spacing_zyx_mm=(1, 1, 1), affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)))
    record = CaseRecord(
        id=name, patient=f"p-{name}", shape_czyx=(1, *shape), dtype="float32", geometry=geometry, part=part, fingerprint=name
    )
    case = archive.add_case(record, (gold * 2 + rng.normal(3, 0.3, shape)).astype(np.float32)[None])
    drawn = np.maximum(gold, np.roll(gold, 1, 2))
    for label_set, ids in (("gold", gold), (TEACHER_SET, drawn), (PSEUDO_SET, drawn)):
        history = LabelHistory(label_set=label_set, classes=(ClassInfo(id=1, name="organ"),), made_by="test", fingerprint=name)
        case.write_labels(history, ids, probability_kzyx=drawn[None] * np.uint8(230), scores={"accepted": 1.0})
    archive.catalog.add_prompts([Prompt(case=name, class_id=1, kind="box", slice=2, box_xyxy_px=(float(x), float(y), x + 8.0, y + 9.0))])


@pytest.fixture
def make_labelled() -> Callable[[str, int], Archive]:
    """Make an archive of so many cases to learn from, one to test on and one to set thresholds with."""

    def make(url: str, count: int) -> Archive:
        made = Archive.create(url)
        for n in range(count):
            add(made, f"learnt{n}", "archive", n)
        add(made, "tested", "test", 8)
        add(made, "set", "calibration", 9)
        return made

    return make


class StandIns:
    """Stages that do nothing but remember that they were asked, in which order."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.quarantined = 0

    def result(self, stage: str) -> StageResult:
        self.asked.append(stage)
        return StageResult(stage=stage, done=2, quarantined=self.quarantined if stage == "label" else 0)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> StandIns:
    """Replace the work of every stage; archive, ledger and flows stay real."""
    seen = StandIns()
    shard = stages.Shard(name="1/1", cases=("a", "b"), offset=0, total=2)

    def ingest(recipe: Recipe) -> StageResult:
        Archive.open_or_create(recipe.archive)
        return seen.result("ingest")

    def train(recipe: Recipe) -> StageResult:
        recipe.student_folder.mkdir(parents=True, exist_ok=True)
        (recipe.student_folder / "student.json").write_text("{}", encoding="utf-8")
        return seen.result("train")

    monkeypatch.setattr(stages, "ingest", ingest)
    monkeypatch.setattr(stages, "shards_to_label", lambda recipe, size: [shard])
    monkeypatch.setattr(stages, "shards_to_refine", lambda recipe, size: [shard])
    monkeypatch.setattr(stages, "label", lambda recipe, shard: seen.result("label"))
    monkeypatch.setattr(stages, "doubt", lambda recipe: StageResult(stage="doubt"))
    monkeypatch.setattr(stages, "calibrate", lambda recipe: seen.result("calibrate"))
    monkeypatch.setattr(stages, "refine", lambda recipe, shard: seen.result("refine"))
    monkeypatch.setattr(stages, "report_filter", lambda recipe: StageResult(stage="filter"))
    monkeypatch.setattr(teaching, "train", train)
    monkeypatch.setattr(judging, "evaluate", lambda recipe: seen.result("evaluate"))
    return seen
