"""Of an organ that the teacher drew in two: what is lost with the smaller part, and won by joining what lies near? Gold is looked at in hindsight only.

    python benchmarks/broken.py ARCHIVE [--class-id 1]

Masks are cut from the probabilities of the teacher's label set at several thresholds and smoothings, once with the largest piece only and once with
what was broken off it (``distill.cleaning``). "Broken" are masks beside which a large piece is taken away where only the largest stays.
"""

import argparse
from dataclasses import replace

import numpy as np

from distill.cleaning import ClassRule, part, smooth_probability
from distill.evidence import GoldCase, cut_mask, gold_cases
from distill.quality import dice
from flows.results import TEACHER_SET
from storage import Archive

RULES = ((0.5, 1.0), (0.45, 1.4), (0.5, 0.0), (0.6, 1.0))
"""Threshold, and smoothing in mm."""


def dropped_share(case: GoldCase, rule: ClassRule) -> float:
    """Return how much is taken away with large pieces, as a share of what stays."""
    smooth = smooth_probability(case.probability, rule, case.spacing_zyx_mm)
    pieces = part(smooth >= rule.threshold, rule, case.spacing_zyx_mm if case.spacing_known else None)
    return float(pieces.dropped.sum() / max(pieces.kept.sum(), 1))


def main() -> None:
    """Print one line per rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive")
    parser.add_argument("--class-id", type=int, default=1)
    given = parser.parse_args()
    cases = gold_cases(Archive.open(given.archive), given.class_id, source=TEACHER_SET, part=None)
    print(f"{len(cases)} masks")
    for threshold, smooth_mm in RULES:
        joining = ClassRule(threshold=threshold, smooth_mm=smooth_mm)
        largest = replace(joining, piece_gap_mm=0)
        before, after = (np.array([dice(cut_mask(case, rule), case.gold) for case in cases]) for rule in (largest, joining))
        broken = sum(dropped_share(case, largest) > 0 for case in cases)
        gains = after - before
        won = gains[gains > 0]
        print(
            f"cut at {threshold:.2f}, smoothed by {smooth_mm} mm: {broken} broken, Dice {np.nanmean(before):.4f} -> {np.nanmean(after):.4f}, "
            f"{len(won)} better{f' by {won.min():.3f} to {won.max():.3f}' if len(won) else ''}, {int((gains < 0).sum())} worse"
        )


if __name__ == "__main__":
    main()
