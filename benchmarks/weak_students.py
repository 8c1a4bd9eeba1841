"""How near does a student from weak prompts come to full supervision, and which stage loses the rest?

    python benchmarks/weak_students.py RECIPE --json FILE [--archive A] [--seeds 1,2,3] [--steps 400] [--width 16] [--sets NAME,...]

RECIPE is that of a finished run with gold of archive and test cases; its archive (or ``--archive``) is copied, and the original left alone. The same net is trained for the
same number of steps, without anybody held out, on the archive cases' labels of each stage, and answers for the test cases:

- ``gold``: experts' labels of every archive case, which is full supervision
- ``oracle/gold-boxes``: what the teacher draws in a gold box around each piece on each slice: all that is lost is the teacher's
- ``teacher/r1``: what it draws with the recipe's weak prompts: the prompts' part is lost too
- ``pseudo/r1``: what refinement believes of that, accepted cases alone: the student that a run ships
- ``baseline/ellipse``: ellipses in the boxes, which need no teacher
- and label sets that ``--sets`` names, ``pseudo/r2`` of a further round for example

Prints a Markdown table: Dice of the labels themselves (archive cases, against gold, in hindsight; what is ignored counts on the side of the threshold that it is on), Dice of the
student on test patients and seeds, its ratio to full supervision, and the paired difference to the teacher with gold boxes on the same test cases, each with its 95 %
interval over patients. Runs that FILE holds already are not repeated.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from many_students import (
    Kept,
    Run,
    add_net_options,
    add_options,
    between_seeds,
    cases_with_gold,
    copied,
    over_seeds,
    paired,
    scored,
    student_spec,
)

from distill import quality
from distill.oracle import LABEL_SET as ORACLE
from distill.oracle import draw_in_gold_boxes
from distill.refine import accepted_cases
from flows.plans import class_infos, label_plan
from flows.recipe_file import load_recipe
from storage import IGNORE, Archive, ClassInfo, Labels
from students.baselines import LABEL_SET as ELLIPSES
from students.baselines import write_ellipse_labels
from students.compact import train
from students.spec import StudentSpec

GOLD = "gold"
SETS = (GOLD, ORACLE, "teacher/r1", "pseudo/r1", ELLIPSES)


def taught(archive: Archive, label_set: str) -> list[str]:
    """Return the archive cases that a stage's labels are learnt from: of pseudo-labels, those that were accepted."""
    cases = [record.id for record in archive.cases(part="archive", with_labels=label_set)]
    believed = set(accepted_cases(archive, label_set)) if label_set.startswith("pseudo/") else set(cases)
    return [case for case in cases if case in believed]


def whole(labels: Labels, class_id: int) -> np.ndarray:
    """Return the mask of a class with what is ignored on the side of the threshold that it is on."""
    ids = labels.read()
    if labels.probability is None or not (ids == IGNORE).any():
        return ids == class_id
    row = [info.id for info in labels.history.classes].index(class_id)
    cut = 255 * float(labels.history.parameters.get(f"threshold/{class_id}", 0.5))  # type: ignore[arg-type]
    return np.where(ids == IGNORE, np.asarray(labels.probability[row]) >= cut, ids == class_id)


def against_gold(archive: Archive, label_set: str, cases: list[str], classes: list[int]) -> dict[str, float]:
    """Return the mean Dice over classes of a label set with gold, by case."""
    found = {}
    for case in cases:
        stored = archive[case]
        gold = stored.labels(GOLD).read()
        found[case] = float(np.nanmean([quality.dice(whole(stored.labels(label_set), each), gold == each) for each in classes]))
    return found


def ratio(own: dict[str, float], full: dict[str, float], patient: dict[str, str]) -> str:
    """Return mean Dice over that of full supervision, with the interval of drawing patients anew."""
    names = sorted({patient[case] for case in own})
    by = {name: [case for case in own if patient[case] == name] for name in names}
    means = np.array([[np.mean([scores[case] for case in by[name]]) for name in names] for scores in (own, full)])
    drawn = np.random.default_rng(0).integers(0, len(names), (2000, len(names)))
    ratios = means[0][drawn].mean(1) / means[1][drawn].mean(1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return f"{means[0].mean() / means[1].mean():.1%} [{low:.1%}, {high:.1%}]"


def table(archive: Archive, runs: list[Run], sets: list[str], classes: list[int]) -> list[str]:
    """Return the rows of a Markdown table, one per label set."""
    patient = {record.id: record.patient for record in archive.cases()}
    tests = cases_with_gold(archive, "test")
    oracle = against_gold(archive, ORACLE, tests, classes)
    own_runs = {name: [run for run in runs if run["labels"] == name] for name in sets}
    scores = {name: over_seeds(own_runs[name]) for name in sets}
    lines = [
        f"Teacher with gold boxes on the test cases themselves: Dice {np.mean(list(oracle.values())):.3f}",
        "| learnt from | cases | labels' Dice | student's Dice | between seeds | of full supervision | minus teacher with gold boxes |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in sets:
        cases = taught(archive, name)
        labels = 1.0 if name == GOLD else float(np.mean(list(against_gold(archive, name, cases, classes).values())))
        own = quality.patient_interval(list(scores[name].values()), [patient[case] for case in scores[name]])
        minus = paired(scores[name], oracle, patient)
        lines.append(
            f"| {name} | {len(cases)} | {labels:.3f} | {own.mean:.3f} [{own.low:.3f}, {own.high:.3f}] | {between_seeds(own_runs[name])} "
            f"| {ratio(scores[name], scores[GOLD], patient)} | {minus.mean:+.3f} [{minus.low:+.3f}, {minus.high:+.3f}] |"
        )
    return lines


def performed(archive: Archive, name: str, spec: StudentSpec, classes: tuple[ClassInfo, ...], work: Path) -> Run:
    """Train a student of a stage's labels, and score it."""
    began = time.monotonic()
    done = train(archive, label_set=name, classes=classes, spec=spec, workdir=work / "students", cases=taught(archive, name))
    seconds, dice = round(time.monotonic() - began), scored(archive, done.path, cases_with_gold(archive, "test"))
    print(f"{name} seed {spec.seed}: {np.mean(list(dice.values())):.4f}, {seconds} s", flush=True)
    return {"labels": name, "seed": spec.seed, "steps": spec.steps, "width": spec.width, "seconds": seconds, "dice": dice}


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    add_options(parser, seeds="1,2,3", steps=400, width=16)
    add_net_options(parser)
    parser.add_argument("--archive", type=Path, help="instead of the recipe's")
    parser.add_argument("--sets", default="", help="more label sets to learn from")
    told = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe(told.recipe)
    sets = [*SETS, *filter(None, told.sets.split(","))]
    with tempfile.TemporaryDirectory() as folder:
        work = told.work or Path(folder)
        archive, kept = copied(told.archive or Path(recipe.archive), work), Kept(told.json)
        learners = cases_with_gold(archive, "archive")
        draw_in_gold_boxes(archive, label_plan(recipe), [*learners, *cases_with_gold(archive, "test")])
        write_ellipse_labels(archive, learners, class_infos(recipe), sources=recipe.prompts.source)
        for seed in map(int, told.seeds.split(",")):
            for name in sets:
                if not kept.has(labels=name, seed=seed, steps=told.steps, width=told.width):
                    kept.add(
                        performed(archive, name, student_spec(told, f"{name.replace('/', '-')}-{seed}", seed), class_infos(recipe), work)
                    )
        mine = [run for run in kept.runs if (run["steps"], run["width"]) == (told.steps, told.width)]
        print("\n".join(table(archive, mine, sets, list(recipe.classes))))


if __name__ == "__main__":
    main()
