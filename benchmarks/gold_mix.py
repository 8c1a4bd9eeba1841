"""What are a few gold cases worth alone, and what beside pseudo-labels?

    python benchmarks/gold_mix.py ARCHIVE --json FILE [--counts 1,3,5,10] [--seeds 1,2,3] [--steps 400] [--width 8] [--arms gold,mixed,...]

ARCHIVE is that of a finished run with gold of archive and test cases; it is copied, and the original left alone. Every arm trains the same net for the same number
of steps, in float32, without anybody held out, and answers for the test cases. Gold patients are drawn by the seed, and those of more include the fewer.

- ``pseudo``: the accepted pseudo-labels alone; ``all``: gold of every archive case instead.
- ``gold``: gold of so many patients alone.
- ``mixed``: the same gold beside the pseudo-labels of all others, as ``--learning`` says (JSON of ``students.learning.Learning``). With ``{"gold": {"correct": true}}``
  the student of that gold and a corrector, which is trained too, correct these pseudo-labels first.

``--arms`` may also name variants ``mixed:NAME`` with ``--variant NAME=JSON``. Prints a Markdown table: mean Dice over test patients and seeds with its 95 % interval
over patients (their Dice averaged over seeds first), the deviation between seeds, and the paired difference to gold alone of as many patients.
Runs that FILE holds already are not repeated.
"""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from distill.refine import accepted_cases
from storage import Archive
from students import load_student
from students.agreement import write_agreed
from students.compact import train
from students.correction import write_corrected
from students.gold import gold_cases, split_off_gold
from students.learning import Learning
from students.spec import StudentSpec

PSEUDO, TEACHER = "pseudo/r1", "teacher/r1"


def kinds(archive: Archive, arm: str, count: int, seed: int) -> dict[str, Any]:
    """Return what an arm learns from, as `students.compact.train` is told."""
    if arm == "all":
        return {"cases": (), "gold": cases_with_gold(archive, "archive")}
    believed = set(accepted_cases(archive, PSEUDO))
    labeled = [record.id for record in archive.cases(part="archive", with_labels=PSEUDO)]
    if arm == "pseudo":
        return {"cases": [case for case in labeled if case in believed]}
    gold = gold_cases(archive, patients=count, seed=seed)
    if arm == "gold":
        return {"cases": (), "gold": gold}
    return {"cases": [case for case in labeled if case in believed], "gold": gold, "unlabeled": labeled}


def performed(archive: Archive, arm: str, count: int, spec: StudentSpec, folder: Path) -> Run:
    """Train one student and score it; the student of gold alone is trained once, for its own row and as a witness."""
    classes = archive[archive.cases(part="archive", with_labels=PSEUDO)[0].id].labels(PSEUDO).history.classes
    told = kinds(archive, arm, count, spec.seed) | {"label_set": PSEUDO}
    began, least = time.monotonic(), spec.learning.gold.agreement
    if spec.learning.gold.correct and told["cases"] and told.get("gold"):
        told |= corrected(archive, told, count, spec, folder)
    if least is not None and told["cases"] and told.get("gold"):
        alone = spec.model_copy(update={"learning": Learning()})
        witness = train(archive, classes=classes, spec=alone, workdir=folder / f"gold-{count}", **(told | {"cases": (), "unlabeled": ()}))
        cases = split_off_gold([archive[case].record for case in told["cases"]], told["gold"])
        into = f"agreed/{count}-{spec.seed}"
        agreed = write_agreed(
            archive, load_student(witness.path), [record.id for record in cases], label_set=PSEUDO, into=into, least=least
        )
        told |= {"label_set": into, "cases": agreed.kept}
    workdir = folder / (f"gold-{count}" if arm == "gold" else f"{arm.replace(':', '-')}-{count}")
    done = train(archive, classes=classes, spec=spec, workdir=workdir, **told)
    trained = time.monotonic() - began
    return {
        "arm": arm,
        "count": count,
        "seed": spec.seed,
        "asked": asked(spec),
        "training": len(done.card.training_cases),
        "gold": list(done.card.gold_cases),
        "parameters": done.card.parameters,
        "train_seconds": round(trained, 1),
        "dice": scored(archive, done.path, cases_with_gold(archive, "test")),
    }


def corrected(archive: Archive, told: dict[str, Any], count: int, spec: StudentSpec, folder: Path) -> dict[str, Any]:
    """Return what is learnt from instead, after two students of the gold have corrected the pseudo-labels."""
    classes = archive[told["gold"][0]].labels(PSEUDO).history.classes
    alone = spec.model_copy(update={"learning": Learning()})
    ways = {f"gold-{count}": alone, f"corrector-{count}": alone.model_copy(update={"hints": TEACHER})}
    judges = [
        load_student(train(archive, classes=classes, spec=how, workdir=folder / name, **(told | {"cases": (), "unlabeled": ()})).path)
        for name, how in ways.items()
    ]
    cases = [record.id for record in split_off_gold([archive[case].record for case in told["cases"]], told["gold"])]
    into = f"corrected/{count}-{spec.seed}"
    done = write_corrected(archive, judges, cases, label_set=PSEUDO, into=into)
    found = [quality.dice(archive[case].labels(into).read() == 1, archive[case].labels("gold").read() == 1) for case in done.cases]
    print(f"  corrected labels of {len(done.cases)} cases: Dice {np.nanmean(found):.4f}", flush=True)
    return {"label_set": into, "cases": done.cases}


def asked(spec: StudentSpec) -> str:
    """Return a short hash of all that a run depends on beside the archive."""
    return hashlib.blake2b(spec.model_dump_json().encode(), digest_size=6).hexdigest()


def table(archive: Archive, runs: list[Run]) -> list[str]:
    """Return the rows of a Markdown table, one per arm and number of gold patients."""
    patient = {record.id: record.patient for record in archive.cases(part="test")}
    lines = ["| arm | gold patients | Dice | s.d. between seeds | minus gold alone, paired |", "| --- | --- | --- | --- | --- |"]
    groups = {
        (run["count"], run["arm"]): [other for other in runs if (other["count"], other["arm"]) == (run["count"], run["arm"])]
        for run in runs
    }
    for (count, arm), own in sorted(groups.items()):
        means = over_seeds(own)
        interval = quality.patient_interval(list(means.values()), [patient[case] for case in means])
        lines.append(
            f"| {arm} | {count or '-'} | {interval.mean:.4f} [{interval.low:.4f}, {interval.high:.4f}] | {between_seeds(own)} "
            f"| {difference(own, groups.get((count, 'gold'), []), patient) if arm != 'gold' else ''} |"
        )
    return lines


def difference(own: list[Run], other: list[Run], patient: dict[str, str]) -> str:
    """Return the mean paired difference over the seeds that both have, with its interval over patients."""
    seeds = {run["seed"] for run in own} & {run["seed"] for run in other}
    if not seeds:
        return ""
    mine, theirs = (over_seeds([run for run in runs if run["seed"] in seeds]) for runs in (own, other))
    found = paired(mine, theirs, patient)
    return f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def plans(told: argparse.Namespace) -> Iterator[tuple[str, int, StudentSpec]]:
    """Yield arm, number of gold patients and student of every run that is asked for."""
    variants = {"mixed": told.learning} | {f"mixed:{name}": text for name, text in (each.split("=", 1) for each in told.variant)}
    for seed in map(int, told.seeds.split(",")):
        spec = student_spec(told, "student", seed).model_copy(update={"mixed_precision": told.half})
        for arm in told.arms.split(","):
            learning = Learning.model_validate_json(variants.get(arm, "{}"))
            for count in [0] if arm in {"pseudo", "all"} else map(int, told.counts.split(",")):
                yield arm, count, spec.model_copy(update={"learning": learning})


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    add_options(parser, seeds="1,2,3", steps=400, width=8)
    add_net_options(parser)
    parser.add_argument("--counts", default="1,3,5,10")
    parser.add_argument("--arms", default="pseudo,all,gold,mixed")
    parser.add_argument("--learning", default="{}", help="of the arm mixed")
    parser.add_argument("--variant", action="append", default=[], help="NAME=JSON of the arm mixed:NAME")
    parser.add_argument("--half", action="store_true", help="bfloat16: faster, and runs do not repeat to the last bit")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = told.work or Path(folder)
        archive, kept = copied(told.archive, work), Kept(told.json)
        torch.set_num_threads(1)
        for arm, count, spec in plans(told):
            if not kept.has(arm=arm, count=count, asked=asked(spec)):
                run = performed(archive, arm, count, spec, work / f"seed-{spec.seed}")
                kept.add(run)
                dice, seconds = np.mean(list(run["dice"].values())), run["train_seconds"]
                print(f"{arm} {count} seed {spec.seed}: {dice:.4f}, {seconds:.0f} s, {run['training']} pseudo-labels", flush=True)
        print("\n".join(table(archive, kept.runs)))


if __name__ == "__main__":
    main()
