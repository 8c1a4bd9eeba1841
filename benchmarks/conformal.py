"""Do the guarantees hold? Stated levels against what happens, over random splits of real patients into calibration and test.

    SAMDISTILL_TEST_DATA=... python benchmarks/conformal.py [--cache FOLDER] [--splits 200] [--archive ARCHIVE] [--json]

Labels 100 hippocampi and the 260 left ventricles of 15 patients with the bundled teacher (one loose box and its mirror image, axial), and
measures each drawing against gold once; ``--cache`` keeps the archives for the next time. Then, 200 times: half of the patients (or 10 of
15) set a threshold, the others are what it is judged on. A guarantee holds if the mean over splits is at most the level and two
standard errors; splits of one pool are independent draws of it. Error bars of the predicted Dice are nominal, and proven at twice the
level. Where there are too few patients, the refusal is printed. The last rows of each collection move the test patients' drawings
sideways, and break: exchangeability is an assumption, and nothing can check it.
The exit code is 1 if a guarantee does not hold, or if all of them hold even so, since the benchmark would then see nothing.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distill.calibration import cut_in_words
from distill.cleaning import ClassRule
from distill.conformal import Guarantee, needed_patients
from distill.engine import LabelPlan, label_archive
from distill.evidence import Evidence, GoldCase, evidence_of, gold_cases
from distill.questions import AskSettings
from distill.reliability import fit_quality, fit_temperature, predict_quality
from distill.rings import RING_COVERAGE, Ring, ring
from distill.risk_control import doubtful_counts, mask_guarantee, missed_guarantee, voxel_guarantee
from storage import Archive, ClassInfo
from storage.ingest import import_labels, import_prompts, ingest

TEACHER = "teacher/r1"
SHIFT_PX = 4
"""How far the drawings of test patients are moved; the agreement of the members does not see it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """One collection, measured."""

    name: str
    found: list[Evidence]
    moved: list[Evidence]
    """The same cases, drawn beside the object."""
    calibration: int
    """Patients of each split that set thresholds."""
    cut: str

    @property
    def patients(self) -> list[str]:
        """Their names."""
        return sorted({each.patient for each in self.found})


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One guarantee at one level."""

    corpus: str
    what: str
    level: float
    patients: int
    needed: int
    splits: int
    refused: int
    """Splits in which no threshold held the level; nothing is accepted then, and nothing lost."""
    mean: float
    error: float
    """Standard error of that mean over splits."""
    kept: float
    """What it costs: mean share accepted, or mean width of the ring."""
    holds: bool


def make_archive(folder: Path, data: Path, name: str) -> Archive:
    """Ingest and label one collection, or what is missing of it."""
    archive = Archive.open_or_create(str(folder / f"{name}.zarr"))
    classes = (ClassInfo(id=1, name=name),)
    patients = "^(SC-.+?)-IM" if name == "cardiac" else None
    ingest(archive, data / name / "images", modality="MR", patient_from=patients)
    import_prompts(archive, data / name / "weak_prompts.json", names={each.name: each.id for each in classes})
    import_labels(archive, data / name / "gold", classes=classes, mapping={1: 1, 2: 1} if name == "hippocampus" else {1: 1})
    label_archive(archive, LabelPlan(classes=classes, label_set=TEACHER, ask=AskSettings(boxes=1, flips=True, planes="axial")))
    return archive


def measure(name: str, archive: Archive) -> Corpus:
    """Measure every drawing with gold as it is, and moved sideways."""
    cases = gold_cases(archive, 1, source=TEACHER, part=None)
    rule = ClassRule(smooth_mm=1.0 if any(case.levels.shape[0] > 1 for case in cases) else 0.0)
    found, moved = ([evidence_of(each, rule) for each in some] for some in (cases, [_beside(case) for case in cases]))
    patients = len({case.patient for case in cases})
    return Corpus(name=name, found=found, moved=moved, calibration=patients // 2 if patients > 20 else 10, cut=cut_in_words(rule))


def _beside(case: GoldCase) -> GoldCase:
    return replace(case, levels=np.roll(case.levels, SHIFT_PX, axis=2))


def mask_of(some: Sequence[Evidence], level: float) -> Guarantee:
    """Set the least agreement of accepted masks."""
    scores, dices = [each.scores["pairwise_dice"] for each in some], [each.dice for each in some]
    return mask_guarantee(scores, dices, _patients(some), level=level)


def voxel_of(some: Sequence[Evidence], level: float) -> Guarantee:
    """Set the band of voxels that are not believed."""
    return voxel_guarantee([each.counts for each in some], _patients(some), level=level)


def missed_of(some: Sequence[Evidence], level: float) -> Guarantee:
    """Set the threshold that finds the object."""
    return missed_guarantee([each.counts for each in some], _patients(some), level=level)


def ring_of(some: Sequence[Evidence], level: float) -> Ring:
    """Set both distances."""
    return ring([each.outer_mm for each in some], [each.inner_mm for each in some], _patients(some), level=level)


def _patients(some: Sequence[Evidence]) -> list[str]:
    return [each.patient for each in some]


def mask_risk(made: Guarantee, test: Sequence[Evidence]) -> tuple[float, float]:
    """Return the mean over patients of the Dice lost in accepted masks, and the share accepted."""
    accepted = [made.threshold is not None and each.scores["pairwise_dice"] >= made.threshold for each in test]
    losses = [(1 - np.nan_to_num(each.dice, nan=1.0)) * take for each, take in zip(test, accepted, strict=True)]
    return _over_patients(losses, test), float(np.mean(accepted))


def voxel_risk(made: Guarantee, test: Sequence[Evidence]) -> tuple[float, float]:
    """Return the mean over patients of the share of wrong voxels outside the band, and the share outside."""
    if made.threshold is None:
        return 0.0, 0.0
    level = np.arange(256) / 255
    outside = np.abs(level - 0.5) >= made.threshold - 1e-9
    counts = [doubtful_counts(each.counts) for each in test]
    drawn = level[outside] >= 0.5
    wrong = [float((each[0, outside] * drawn + each[1, outside] * ~drawn).sum() / max(each[:, outside].sum(), 1)) for each in counts]
    return _over_patients(wrong, test), float(np.mean([each[:, outside].sum() / each.sum() for each in counts]))


def missed_risk(made: Guarantee, test: Sequence[Evidence]) -> tuple[float, float]:
    """Return the mean over patients of the share of the object that is missed, and the share of the box that is taken."""
    if made.threshold is None:
        return 0.0, 1.0
    taken = np.arange(256) / 255 >= made.threshold - 1e-9
    objects = [each.counts.counts[1].sum() + each.counts.missed for each in test]
    shares = [1 - each.counts.counts[1, taken].sum() / size if size else 0.0 for each, size in zip(test, objects, strict=True)]
    return _over_patients(shares, test), float(np.mean([each.counts.counts[:, taken].sum() / each.counts.voxels for each in test]))


def ring_risk(made: Ring, test: Sequence[Evidence]) -> tuple[float, float]:
    """Return the share of patients with a mask for which either side fails, and the width of the ring."""
    if made.outer.threshold is None or made.inner.threshold is None:
        return 0.0, float("nan")
    outer, inner = made.outer.threshold, made.inner.threshold
    failed = {each.patient for each in test if each.outer_mm > outer or each.inner_mm > inner}
    return len(failed) / len(set(_patients(test))), outer + inner


def quality_risk(some: Sequence[Evidence], level: float) -> Any:
    """Fit the predicted Dice and its error bars."""
    return fit_quality([each.scores for each in some], [each.dice for each in some], _patients(some), level=level)


def quality_missed(made: Any, test: Sequence[Evidence]) -> tuple[float, float]:
    """Return the mean over patients of the share of masks outside the error bars, and the width of these."""
    told = [predict_quality(made, {f"{name}/1": value for name, value in each.scores.items()}, 1) for each in test]
    bars = [(0.0, 1.0) if each is None else (each.low, each.high) for each in told]
    outside = [not low <= each.dice <= high for (low, high), each in zip(bars, test, strict=True)]
    return _over_patients(outside, test), float(np.mean([high - low for low, high in bars]))


def _over_patients(values: Sequence[float], test: Sequence[Evidence]) -> float:
    groups: dict[str, list[float]] = {}
    for value, each in zip(values, test, strict=True):
        groups.setdefault(each.patient, []).append(value)
    return float(np.mean([np.mean(group) for group in groups.values()]))


Make = Callable[[Sequence[Evidence], float], Any]
Judge = Callable[[Any, Sequence[Evidence]], tuple[float, float]]
CONTROLS: dict[str, tuple[Make, Judge, tuple[float, float]]] = {
    "ring: either side fails": (ring_of, ring_risk, (0.10, 0.20)),
    "voxel: wrong share": (voxel_of, voxel_risk, (0.03, 0.05)),
    "mask: Dice lost in accepted": (mask_of, mask_risk, (0.10, 0.15)),
    "object: share missed": (missed_of, missed_risk, (0.10, 0.20)),
    "error bars (nominal): outside": (quality_risk, quality_missed, (0.10, 0.20)),
}


def needed_for(what: str, level: float) -> int:
    """Return how many patients a control takes; a ring has two sides that share its level."""
    return needed_patients(level / 2 if CONTROLS[what][0] is ring_of else level)


def run_splits(corpus: Corpus, what: str, level: float, splits: int, *, moved: bool = False) -> Row | None:
    """Split, set, judge, and again; None where there are too few patients for the level."""
    make, judge, _ = CONTROLS[what]
    needed = needed_for(what, level)
    if corpus.calibration < needed:
        return None
    rng, names = np.random.default_rng(0), corpus.patients
    risks, kept, refused = [], [], 0
    for _ in range(splits):
        chosen = frozenset(rng.permutation(names)[: corpus.calibration])
        made = make([each for each in corpus.found if each.patient in chosen], level)
        risk, share = judge(made, [each for each in (corpus.moved if moved else corpus.found) if each.patient not in chosen])
        risks.append(risk)
        kept.append(share)
        refused += not getattr(made, "feasible", True)
    mean, error = float(np.mean(risks)), float(np.std(risks, ddof=1) / np.sqrt(splits))
    return Row(
        corpus=corpus.name + (", moved" if moved else ""),
        what=what,
        level=level,
        patients=corpus.calibration,
        needed=needed,
        splits=splits,
        refused=refused,
        mean=mean,
        error=error,
        kept=float(np.nanmean(kept)) if not np.isnan(kept).all() else float("nan"),
        holds=mean <= (2 * level if make is quality_risk else level) + 2 * error,  # what jackknife+ proves
    )


def refusals(corpus: Corpus) -> list[str]:
    """Return what each control says to 8 patients at a level of 0.10."""
    few = [each for each in corpus.found if each.patient in corpus.patients[:8]]
    makes = (ring_of, voxel_of, mask_of, missed_of)
    return list(dict.fromkeys(make(few, 0.10).statement for make in makes))


def show(row: Row) -> None:
    """Print one row."""
    print(
        f"| {row.corpus} | {row.what} | {row.patients} ({row.needed}) | {row.level:.2f} | {row.mean:.3f} | {row.error:.4f} "
        f"| {row.kept:.2f} | {row.refused} | {'holds' if row.holds else 'BROKEN'} |"
    )


def study(corpus: Corpus, splits: int) -> tuple[list[Row], list[Row]]:
    """Run every control, print as it goes, and return the rows on what is exchangeable and on what is not."""
    asked = [(what, level) for what, (_, _, levels) in CONTROLS.items() for level in levels]
    for what, level in asked:
        if corpus.calibration < needed_for(what, level):
            print(
                f"| {corpus.name} | {what} | {corpus.calibration} ({needed_for(what, level)}) | {level:.2f} | | | | all | too few patients |"
            )
    honest = [run_splits(corpus, what, level, splits) for what, level in asked]
    shifted = [run_splits(corpus, what, max(levels), splits, moved=True) for what, (_, _, levels) in CONTROLS.items()]
    for row in (*honest, *shifted):
        if row is not None:
            show(row)
    return [row for row in honest if row is not None], [row for row in shifted if row is not None]


def describe(corpus: Corpus) -> None:
    """Print what is calibrated, and the temperature and predicted Dice of the whole collection."""
    dices = [each.dice for each in corpus.found]
    print(f"\n{corpus.name}: {len(corpus.found)} cases of {len(corpus.patients)} patients; {corpus.cut}; mean Dice {np.nanmean(dices):.3f}")
    heat = fit_temperature([each.counts for each in corpus.found], _patients(corpus.found))
    told = fit_quality([each.scores for each in corpus.found], dices, _patients(corpus.found))
    print(
        f"temperature {heat.temperature:.2f}: ECE {heat.before.ece:.3f} -> {heat.after.ece:.3f}, ACE {heat.before.ace:.3f} -> {heat.after.ace:.3f}, "
        f"Brier {heat.before.brier:.3f} -> {heat.after.brier:.3f} (patients left out)"
    )
    by = " and ".join(told.scores) or "no score"
    print(f"Dice predicted by {by}: mean error {told.error:.3f} on patients left out, {told.error_of_mean:.3f} for always the mean")
    print(f"8 patients at a level of 0.10: {' '.join(refusals(corpus))}")


def main() -> None:
    """Make or open the archives, measure, split, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", help=f"an archive with gold and {TEACHER} of class 1, instead of those made here")
    parser.add_argument("--cache", type=Path, help="folder that keeps the archives; by default they are made anew")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.archive:
            corpora = [partial(measure, Path(options.archive).parent.name, Archive.open(options.archive, mode="r"))]
        elif not (data := os.environ.get("SAMDISTILL_TEST_DATA")):
            parser.error("set SAMDISTILL_TEST_DATA to the folder of test data, or name an --archive")
        else:
            cache = options.cache or Path(folder)
            corpora = [partial(_made, cache, Path(data), name) for name in ("hippocampus", "cardiac")]
        honest, shifted = _all([each() for each in corpora], options.splits)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in (*honest, *shifted)], indent=1), encoding="utf-8")
    broken = [row for row in honest if not row.holds]
    print(f"{len(honest) - len(broken)} of {len(honest)} hold; moved sideways, {sum(row.holds for row in shifted)} of {len(shifted)} do.")
    sys.exit(bool(broken) or all(row.holds for row in shifted))


def _made(cache: Path, data: Path, name: str) -> Corpus:
    return measure(name, make_archive(cache, data, name))


def _all(corpora: Sequence[Corpus], splits: int) -> tuple[list[Row], list[Row]]:
    for corpus in corpora:
        describe(corpus)
    print(f"\nring coverage {RING_COVERAGE:.0%}; kept: share accepted, or width in mm or px (ring), or width of the bars; {splits} splits")
    print("| data | bounded | patients (needed) | level | mean | s.e. | kept | refused | |\n" + "| --- " * 9 + "|")
    both = [study(corpus, splits) for corpus in corpora]
    return [row for honest, _ in both for row in honest], [row for _, shifted in both for row in shifted]


if __name__ == "__main__":
    main()
