"""A recipe in an empty folder, and stages that only count."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flows import judging, stages, teaching
from flows.recipe import Recipe
from flows.results import StageResult

SMALLEST = "archive: ./archive.zarr\nclasses: {1: {name: organ}}\n"


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[[str], Path]:
    """Write a recipe and return its path."""

    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


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
    from storage import Archive

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
