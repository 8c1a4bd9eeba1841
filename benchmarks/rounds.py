"""Do further rounds make better labels and better students, at the same training time?

    python benchmarks/rounds.py RECIPE --json FILE [--seeds 0,1] [--steps 300] [--width 8] [--arms once,long,student,...] [--planes axial]

RECIPE is that of a finished run whose archive has gold of archive and test cases; the archive is copied, and the original left alone. Every
student has the same net and, but for ``long``, the same number of steps, in float32; nothing here is timed.

- ``once``: the student of the first round. ``long``: the same labels, four times the steps: what two rounds cost in training.
- ``student``, ``teacher``, ``both``, ``mean``: a second round that is labelled so (``rounds.relabel``), the most changed 5 % left out.
- ``student-all``, ``teacher-all``, ``both-all``, ``mean-all``: the same with nobody left out.

Prints a Markdown table: Dice of the labels learnt from against gold, in hindsight (voxels left open taken as the labels cut them, and as left out), of how many
cases, and of the student on test patients, with the paired difference to ``once``, patients as witnesses and seeds averaged. Runs that FILE holds already are not repeated.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
from many_students import Kept, Run, add_options, cases_with_gold, copied, over_seeds, paired, scored

from distill import quality
from flows import rounds, teaching
from flows.plans import class_infos
from flows.recipe import Recipe
from flows.recipe_file import load_recipe
from flows.round_folds import fold_plan
from flows.round_guard import judged_by
from storage import IGNORE, Archive
from students.compact import train
from students.relabel import Relabel
from students.spec import StudentSpec

WAYS = get_args(Relabel)
SHARE = 0.05
TIMES = 4
"""Two folds, and a student for each of two rounds."""


def opened(recipe: Recipe, folder: Path, arm: str) -> tuple[Archive, Recipe]:
    """Copy the archive, and return it with the recipe as an arm has it."""
    own = Path(recipe.archive)
    drawn = folder / "teacher" / own.name  # what the teacher drew for its own arm it need not draw again
    archive = copied(drawn if arm == "both" and drawn.exists() else own, folder / arm)
    who = arm if arm in WAYS else "teacher"
    asked = recipe.rounds.model_copy(update={"most": 2, "relabel": who, "drop": SHARE})
    moved = recipe.model_copy(update={"archive": str(folder / arm / own.name), "results": folder / "results" / arm, "rounds": asked})
    return archive, moved


def spec_of(told: argparse.Namespace, seed: int, name: str, steps: int) -> StudentSpec:
    """Return what every student is asked."""
    return StudentSpec(name=name, seed=seed, steps=steps, budget_seconds=None, width=told.width, threads=1, mixed_precision=False)


def relabelled(told: argparse.Namespace, recipe: Recipe, folder: Path, who: str, seed: int) -> tuple[Archive, Recipe]:
    """Have a second round labelled, by students of so many steps."""
    archive, moved = opened(recipe, folder, who)
    now = moved.in_round(2)
    plan = fold_plan(archive, now)
    spec = spec_of(told, seed, f"witness{seed}", told.steps).model_copy(update={"validation_fraction": 0.0})
    rounds.labelled(archive, now, replace(plan, spec=spec, workdir=folder / "witnesses"))
    return archive, now


def label_dice(archive: Archive, label_set: str, cases: list[str]) -> tuple[float, float]:
    """Return the mean Dice of labels with gold over cases and classes: with open voxels as cut at one half, and left out."""
    whole, left_out = list[float](), list[float]()
    for case in cases:
        labels, gold = archive[case].labels(label_set), archive[case].labels("gold").read()
        ids, order = labels.read(), [info.id for info in labels.history.classes]
        stored = labels.probability
        if stored is not None:
            probability = np.asarray(stored[...])
            cut = np.where(probability.max(axis=0) > 127, np.asarray(order, np.uint8)[probability.argmax(axis=0)], 0)
            whole += quality.dice_per_class(np.where(ids == IGNORE, cut, ids).astype(np.uint8), gold, order).values()
        left_out += quality.dice_per_class(ids, gold, order).values()
    return float(np.nanmean(whole)), float(np.nanmean(left_out))


def run(told: argparse.Namespace, recipe: Recipe, folder: Path, arm: str, seed: int) -> Run:
    """Label, train and score one arm."""
    who, _, everybody = arm.partition("-")
    second = who in WAYS
    archive, now = (
        relabelled(told, recipe, folder / f"seed{seed}", who, seed) if second else opened(recipe, folder / f"seed{seed}", "first")
    )
    believed = teaching.believed_cases(archive, now.round)
    dropped = set(teaching.dropped_cases(archive, now, believed)) if second and not everybody else set()
    cases = [record.id for record in believed if record.id not in dropped]
    student = train(
        archive,
        label_set=now.round.pseudo_set,
        classes=class_infos(recipe),
        spec=spec_of(told, seed, arm, told.steps * (TIMES if arm == "long" else 1)),
        workdir=folder / f"seed{seed}" / "students",
        cases=cases,
    )
    whole, left_out = label_dice(archive, now.round.pseudo_set, cases)
    return {
        "arm": arm,
        "seed": seed,
        "cases": len(cases),
        "labels": whole,
        "labels_left_out": left_out,
        "agreement": student.card.agreement,
        "dice": scored(archive, student.path, cases_with_gold(archive, "test"), "cpu"),
        "guard": scored(archive, student.path, judged_by(archive, recipe)[1], "cpu"),
    }


def main() -> None:
    """Run what FILE does not hold yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    add_options(parser, seeds="0", steps=300, width=8)
    parser.add_argument("--arms", default="once,long,student,student-all,teacher,teacher-all,both,both-all,mean,mean-all")
    parser.add_argument(
        "--planes", choices=("axial", "three"), help="how the teacher is asked in the second round; as the recipe says without it"
    )
    told = parser.parse_args()
    recipe = load_recipe(told.recipe)
    if told.planes:
        recipe = recipe.model_copy(update={"uncertainty": recipe.uncertainty.model_copy(update={"planes": told.planes})})
    kept = Kept(told.json)
    with tempfile.TemporaryDirectory() as temporary:
        for seed in map(int, told.seeds.split(",")):
            for arm in told.arms.split(","):
                if not kept.has(arm=arm, seed=seed):
                    kept.add(run(told, recipe, told.work or Path(temporary), arm, seed))
    patients = {record.id: record.patient for record in Archive.open(recipe.archive).cases()}
    print("\n".join(table(kept.runs, patients)))


def averaged(runs: list[Run], arm: str, key: str) -> dict[str, float]:
    """Return Dice by case of an arm, its seeds averaged."""
    return over_seeds([each for each in runs if each["arm"] == arm], key)


def table(runs: list[Run], patients: dict[str, str]) -> list[str]:
    """Return the rows of the Markdown table."""
    lines = [
        "| arm | seeds | cases | labels, all voxels | labels, open ones left out | student, test | against once | guard: against once |",
        "| --- " * 8 + "|",
    ]
    for arm in dict.fromkeys(each["arm"] for each in runs):
        own = [each for each in runs if each["arm"] == arm]
        cells = [arm, str(len(own)), f"{np.mean([each['cases'] for each in own]):.0f}"]
        cells += [f"{np.mean([each[key] for each in own]):.3f}" for key in ("labels", "labels_left_out")]
        cells.append(f"{np.mean(list(averaged(runs, arm, 'dice').values())):.3f}")
        for key in ("dice", "guard"):
            now, once = averaged(runs, arm, key), averaged([each for each in runs if each["seed"] in {o["seed"] for o in own}], "once", key)
            found = paired(now, once, patients)
            cells.append(f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
