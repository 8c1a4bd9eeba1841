"""Archives that the bundled teacher has drawn, with and without planted wrong objects: the material of the benchmarks about belief."""

import json
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from planting import Planted, plant

from distill.doubts import add_priors, add_qualities, add_reverse
from distill.quality import dice
from distill.refine import RefinePlan, drawn_mask
from flows import opened, stages
from flows.plans import fold_plan, label_plan
from flows.recipe import Recipe
from flows.recipe_file import load_recipe
from flows.results import TEACHER_SET
from flows.rules import refine_plan
from storage import Archive
from students.out_of_fold import judge_out_of_fold, train_folds

RECIPES = Path(__file__).parents[1] / "docs" / "recipes"
PHASES = 20
"""Pictures of one slice in Sunnybrook's cine series; they are numbered slice by slice."""
DATASETS = ("hippocampus", "cardiac")
CLASS = 1


def drawn_archive(dataset: str, folder: Path, reuse: Path | None = None, source: str = "weak") -> tuple[Recipe, Archive]:
    """Return a recipe of docs/recipes and its archive, ingested and labelled in ``folder``.

    Args:
        dataset: its name.
        folder: where archive and results are written; what is there already is used.
        reuse: an archive of the same recipe that is copied instead of being made; it is not changed.
        source: where the prompts come from instead of from people.
    """
    archive = folder / (dataset if source == "weak" else f"{dataset}-{source}") / "archive.zarr"
    if reuse is not None and not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(reuse, archive)
        copy_catalog(str(reuse), str(archive))
    recipe = load_recipe(RECIPES / f"{dataset}.yaml").model_copy(update={"archive": str(archive), "results": archive.parent / "results"})
    recipe = recipe.model_copy(update={"prompts": recipe.prompts.model_copy(update={"source": (source,)})})
    if reuse is None:
        stages.ingest(recipe)
        for shard in stages.shards_to_label(recipe, size=10**6):
            stages.propose(recipe, shard)
            stages.label(recipe, shard)
    return recipe, opened.open_archive(recipe)


def copy_catalog(source: str, target: str) -> None:
    """Copy the catalog of one archive for another, with what is still in its journal: the archive may be open."""
    with closing(sqlite3.connect(f"{source}.catalog.sqlite")) as there, closing(sqlite3.connect(f"{target}.catalog.sqlite")) as here:
        there.backup(here)


def planted_archive(
    recipe: Recipe, folder: Path, *, share: float, seed: int, reach: float, alike: bool = False
) -> tuple[Archive, list[Planted]]:
    """Copy the archive of a recipe, move the prompts of a share of its cases to other objects, and have those cases drawn again."""
    from distill.engine import label_archive

    target = folder / "archive.zarr"
    done = folder / "planted.json"
    if done.exists():
        return Archive.open(str(target)), [Planted(**each) for each in json.loads(done.read_text())]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copytree(recipe.archive, target)
    copy_catalog(recipe.archive, str(target))
    copy = Archive.open(str(target))
    planted = plant(copy, share, seed, reach=reach, alike=alike)
    label_archive(copy, label_plan(recipe), cases=[each.case for each in planted])
    done.write_text(json.dumps([{"case": p.case, "shift_xy_px": p.shift_xy_px, "overlap": p.overlap} for p in planted]))
    return copy, planted


def scored(
    recipe: Recipe, archive: Archive, *, reverse: bool = False, student: float = 0, folder: Path | None = None
) -> dict[str, dict[str, float]]:
    """Run the semantic test that every recipe runs, and others where asked; return case -> score of the recipe's class.

    Args:
        recipe: of the archive.
        archive: drawn by the teacher.
        reverse: reverse classification too.
        student: seconds of training for each of two students that judge the patients they have not seen; 0 is none.
        folder: where these students are written; default the recipe's results.
    """
    plan = refine_plan(recipe, calibrated=False)
    add_priors(archive, plan)
    if reverse:
        add_reverse(archive, plan)
    if student:
        _ask_students(recipe, archive, plan, student, folder or recipe.results)
    add_qualities(archive, plan, ("prior", "student", "reverse"))
    found = archive.catalog.scores(TEACHER_SET)
    return {case: {name.rpartition("/")[0]: value for name, value in each.items()} for case, each in found.items()}


def _ask_students(recipe: Recipe, archive: Archive, cut: RefinePlan, seconds: float, folder: Path) -> None:
    plan = fold_plan(recipe)
    plan = replace(plan, spec=plan.spec.model_copy(update={"budget_seconds": seconds}), workdir=folder)

    def mask_of(case: str, class_id: int) -> np.ndarray | None:
        drawn = drawn_mask(archive[case], cut, class_id)
        return None if drawn is None else drawn[1]

    for case, scores in judge_out_of_fold(archive, plan, train_folds(archive, plan), mask_of):
        archive.catalog.add_scores(case, TEACHER_SET, scores)


def true_dice(recipe: Recipe, archive: Archive) -> dict[str, float]:
    """Return the Dice with gold, in hindsight, of each mask as refinement cuts it before any gold is looked at; 0 for an empty one."""
    return {case: dice(mask, gold) for case, mask, gold in drawn_and_gold(recipe, archive)}


def drawn_and_gold(recipe: Recipe, archive: Archive) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield each case with its mask as refinement cuts it before any gold is looked at, and with gold, ``(z, y, x)`` bool."""
    plan = refine_plan(recipe, calibrated=False)
    for record in archive.cases(with_labels=TEACHER_SET):
        case = archive[record.id]
        drawn = drawn_mask(case, plan, CLASS)
        if drawn is not None:
            yield record.id, drawn[1], case.labels("gold").read() == CLASS


def volume_of(case: str) -> str:
    """Return which volume a case belongs to: in cine MR, the stack of slices at one phase of the heart, of whose 20 each slice has all; else itself."""
    found = re.fullmatch(r"(SC-.+)-IM-\d+-(\d+)", case)
    return case if found is None else f"{found[1]} phase {int(found[2]) % PHASES}"
