"""What benchmarks share that train many students on a copy of a finished archive: their options, runs that are kept, and scores."""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from drawn import copy_catalog

from distill.quality import Interval, dice_per_class, paired_interval
from storage import Archive
from students import load_student
from students.spec import StudentSpec

Run = dict[str, Any]
"""What was asked and what came of it; ``dice`` is by test case."""


class Kept:
    """Runs in a file, which has each as soon as it is done."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.runs: list[Run] = json.loads(file.read_text()) if file.exists() else []

    def has(self, **asked: object) -> bool:
        """Tell whether there is a run that was asked this."""
        return any(all(run[key] == value for key, value in asked.items()) for run in self.runs)

    def add(self, run: Run) -> None:
        """Keep a run."""
        self.runs.append(run)
        self._file.write_text(json.dumps(self.runs, indent=1))


def add_options(parser: argparse.ArgumentParser, *, seeds: str, steps: int, width: int) -> None:
    """Add the options that say which students are trained, and where runs and copies are kept."""
    parser.add_argument("--json", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--seeds", default=seeds)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--width", type=int, default=width)
    parser.add_argument("--work", type=Path, help="folder where students and the copy of the archive stay for the next call")


def add_net_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how the students compute."""
    parser.add_argument("--patch", help="voxels, as z,y,x; planned from the cases without it")
    parser.add_argument("--device", default="cpu")


def student_spec(told: argparse.Namespace, name: str, seed: int) -> StudentSpec:
    """Return a student of so many steps as the options have it, without anybody held out."""
    return StudentSpec(
        name=name,
        budget_seconds=None,
        steps=told.steps,
        seed=seed,
        width=told.width,
        patch_zyx=tuple(map(int, told.patch.split(","))) if told.patch else None,
        validation_fraction=0.0,
        device=told.device,
    )


def copied(archive: Path, folder: Path) -> Archive:
    """Copy an archive and its catalog, and open the copy; one that is there is taken as it is."""
    place = folder / archive.name
    if not place.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(archive, place)
        copy_catalog(str(archive), str(place))
    return Archive.open(str(place))


def cases_with_gold(archive: Archive, part: str) -> list[str]:
    """Return the cases of a part that have experts' labels."""
    return [record.id for record in archive.cases(part=part, with_labels="gold")]


def scored(archive: Archive, path: Path, cases: Sequence[str], device: str = "auto") -> dict[str, float]:
    """Return the mean Dice over classes of each case, as a student answers for it."""
    student, found = load_student(path, device=device), {}
    for case in cases:
        answer, gold = student.predict_case(archive[case]).labels, archive[case].labels("gold").read()
        found[case] = float(np.nanmean(list(dice_per_class(answer, gold, [info.id for info in student.card.classes]).values())))
    return found


def over_seeds(runs: Sequence[Run], key: str = "dice") -> dict[str, float]:
    """Return each case's Dice, averaged over seeds."""
    return {case: float(np.mean([run[key][case] for run in runs])) for case in runs[0][key]}


def paired(own: Mapping[str, float], other: Mapping[str, float], patient: Mapping[str, str]) -> Interval:
    """Return the mean difference over the cases of ``own``, with its interval over patients."""
    return paired_interval(list(own.values()), [other[case] for case in own], [patient[case] for case in own])


def between_seeds(runs: Sequence[Run]) -> str:
    """Return the deviation of the mean Dice between seeds, in words."""
    means = [float(np.mean(list(run["dice"].values()))) for run in runs]
    return f"{np.std(means, ddof=1):.4f}" if len(means) > 1 else "one seed"
