"""Three scans of which a teacher drew a class, and how tests refine them and call the commands."""

import numpy as np
from typer.testing import CliRunner

from flows import stages
from flows.cli import app
from flows.recipe import Recipe
from flows.results import TEACHER_SET
from storage import (
    Archive,
    ClassInfo,
    LabelHistory,
)

IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
CLASSES = (ClassInfo(id=1, name="organ"), ClassInfo(id=2, name="lesion"))
SHAPE = (4, 12, 14)


def draw(archive: Archive, case: str, print_: str) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:3, 3:9, 4:10] = 1
    history = LabelHistory(label_set=TEACHER_SET, classes=CLASSES, made_by="test", fingerprint=print_)
    probability = np.stack([mask, 0 * mask]) * 255
    archive[case].write_labels(history, mask, probability_kzyx=probability, scores={"pairwise_dice/1": 0.95})


def refine(recipe: Recipe) -> None:
    stages.refine(recipe, stages.Shard(name="1/1", cases=("one", "two", "three"), offset=0, total=3))


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output
