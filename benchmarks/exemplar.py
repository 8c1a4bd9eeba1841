"""How much of what gold boxes give does the source ``exemplar`` reach with five gold cases and no prompt at all?

    SAMDISTILL_TEST_DATA=... python benchmarks/exemplar.py [--data cardiac] [--draws 3] [--every 1]

One row per choice of exemplars: the product's own, and so many drawn at random from the calibration part. The same teacher is asked in the same
way with the box of the gold mask on every slice (an oracle) and with the proposed boxes; only cases of patients whose gold nobody has used are
scored. Beside them the ellipse in the proposed box. Intervals are 95 %, by resampling patients.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from sources import COLLECTIONS, build, ellipses

from distill.engine import label_archive
from distill.label_plan import LabelPlan
from distill.prompts.exemplar_options import ExemplarOptions
from distill.prompts.hints import box_of
from distill.propose import PromptPlan, propose_prompts
from distill.quality import dice, patient_interval
from distill.wavefront import AskSettings
from storage import Archive, Prompt

LEAST_SHARE = 0.8
COUNT = 5
ONCE = AskSettings(boxes=1, flips=False, planes="axial")


def gold_boxes(archive: Archive) -> None:
    """Leave the box of the gold mask on every slice of every case as a weak prompt."""
    prompts = []
    for record in archive.cases():
        gold = archive[record.id].labels("gold").read()
        for class_id in np.unique(gold[(gold > 0) & (gold < 255)]).tolist():
            for z, mask in enumerate(gold == class_id):
                box = box_of(mask)
                if box is not None:
                    x0, y0, x1, y1 = (float(side) for side in box)
                    prompts.append(Prompt(case=record.id, class_id=class_id, kind="box", slice=z, box_xyxy_px=(x0, y0, x1, y1)))
    archive.catalog.add_prompts(prompts)


def scores(archive: Archive, label_set: str) -> dict[str, float]:
    """Return the Dice of each case whose gold was not to be used; a case without an answer has 0."""
    found = {}
    for record in archive.cases(part="archive"):
        case = archive[record.id]
        gold = case.labels("gold").read() > 0
        drawn = case.labels(label_set).read() > 0 if label_set in case.label_sets() else np.zeros_like(gold)
        found[record.id] = 1.0 if np.isnan(value := dice(drawn, gold)) else value
    return found


def told(found: dict[str, float], archive: Archive) -> str:
    """Return mean and interval."""
    patients = {record.id: record.patient for record in archive.cases()}
    interval = patient_interval(list(found.values()), [patients[case] for case in found])
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def choices(archive: Archive, draws: int) -> Iterator[tuple[str, ExemplarOptions]]:
    """Yield the product's choice of exemplars, and random ones."""
    yield "as the product chooses", ExemplarOptions(count=COUNT)
    cases = [record.id for record in archive.cases(part="calibration")]
    for seed in range(draws):
        drawn = np.random.default_rng(seed).choice(cases, COUNT, replace=False).tolist()
        yield f"drawn at random, seed {seed}", ExemplarOptions(cases=tuple(sorted(drawn)))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cardiac", choices=["cardiac", "hippocampus"])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--every", type=int, default=1, help="only every so many-th case that is scored")
    arguments = parser.parse_args()
    collection = COLLECTIONS[arguments.data]
    with tempfile.TemporaryDirectory() as folder:
        archive = build(Path(folder), Path(os.environ["SAMDISTILL_TEST_DATA"]), collection, 0, arguments.every)
        gold_boxes(archive)
        plan = LabelPlan(classes=collection.classes, teacher="bundled", device="cpu", ask=ONCE, label_set="teacher/gold-boxes")
        label_archive(archive, plan)
        oracle = scores(archive, "teacher/gold-boxes")
        print(
            f"{len(oracle)} cases of {len({r.patient for r in archive.cases(part='archive')})} patients; teacher with gold boxes {told(oracle, archive)}\n"
        )
        print("| exemplars | teacher, Dice | ellipse in the proposed box | share of what gold boxes give |\n| --- | --- | --- | --- |")
        for n, (name, options) in enumerate(choices(archive, arguments.draws)):
            own = replace(plan, sources=("exemplar",), label_set=f"teacher/exemplar-{n}")
            propose_prompts(archive, PromptPlan(sources=own.sources, options={"exemplar": options}, label=own))
            label_archive(archive, own)
            found = scores(archive, own.label_set)
            share = np.mean(list(found.values())) / np.mean(list(oracle.values()))
            verdict = "" if n else (" (holds)" if share >= LEAST_SHARE else f" (below {LEAST_SHARE:.2f})")
            print(f"| {name} | {told(found, archive)} | {ellipse(archive):.3f} | {share:.3f}{verdict} |", flush=True)


def ellipse(archive: Archive) -> float:
    """Return the mean Dice of ellipses that fill the proposed boxes."""
    found = []
    for record in archive.cases(part="archive"):
        prompts = [prompt for prompt in archive.catalog.prompts(record.id) if prompt.source == "proposed/exemplar"]
        gold = archive[record.id].labels("gold").read() > 0
        found.append(np.nan_to_num(dice(ellipses(prompts, gold.shape), gold), nan=1.0))
    return float(np.mean(found))


if __name__ == "__main__":
    main()
