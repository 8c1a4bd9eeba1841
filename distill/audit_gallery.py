"""Which masks the filter's report shows as pictures: so many under each heading, whatever the size of the archive."""

from collections.abc import Sequence

import numpy as np

from distill.audit_masks import Mask
from distill.audit_records import Shown

PER_HEADING = 6
"""Under each of the four headings: 24 in all."""


def gallery(masks: Sequence[Mask]) -> tuple[Shown, ...]:
    """Choose the masks to be shown: the best, the median, the worst, and some at random, under each heading; the seed is fixed."""
    kept = [mask for mask in masks if mask.kept]
    ignored = [mask for mask in masks if mask.verdict == "ignore"] or [mask for mask in kept if mask.ignored_share > 0]
    by_ignored = sorted(ignored, key=lambda mask: (mask.ignored_share, mask.case))
    return (
        *_picks("kept", kept),
        *_spread("ignored", by_ignored, ("least ignored", "median", "most ignored")),
        *_picks("review", [mask for mask in masks if mask.verdict == "review"]),
        *_picks("rejected", [mask for mask in masks if mask.verdict == "reject"]),
    )


def _picks(heading: str, masks: Sequence[Mask]) -> list[Shown]:
    ranked = sorted(masks, key=lambda mask: (mask.confidence if np.isnan(mask.dice) else mask.dice, mask.case))
    return _spread(heading, ranked, ("worst", "median", "best"))[::-1] + _at_random(heading, ranked)


def _ends(count: int) -> list[int]:
    return sorted({0, count // 2, count - 1}) if count else []


def _spread(heading: str, ranked: Sequence[Mask], names: tuple[str, str, str]) -> list[Shown]:
    places = _ends(len(ranked))
    words = {0: names[0], len(ranked) - 1: names[2]}
    return [_shown(heading, "only one" if len(ranked) == 1 else words.get(n, names[1]), ranked[n]) for n in places]


def _at_random(heading: str, ranked: Sequence[Mask]) -> list[Shown]:
    left = [mask for n, mask in enumerate(ranked) if n not in _ends(len(ranked))]
    chosen = np.random.default_rng(0).permutation(len(left))[: PER_HEADING - 3]
    return [_shown(heading, "random", left[int(n)]) for n in chosen]


def _shown(heading: str, pick: str, mask: Mask) -> Shown:
    return Shown(
        heading=heading,
        pick=pick,
        case=mask.case,
        part=mask.part,
        class_id=mask.class_id,
        class_name=mask.class_name,
        verdict=mask.verdict,
        reason=mask.reason,
        confidence=mask.confidence,
        dice=None if np.isnan(mask.dice) else mask.dice,
        gold=mask.gold,
        ignored_share=mask.ignored_share,
    )
