"""The rows of the report's table of groups: what the filter removes of each, and how good what it keeps is."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from distill.audit_masks import OWN, Mask
from distill.audit_records import Average, Group, GroupRow, Kind, PartRow
from distill.quality import patient_interval
from distill.subgroups import Removal, compare, share_removed, third

WITNESSES = ("oof_dice", "teacher_agreement", "rca_dice", "plane_agreement", "slice_consistency")
"""Agreements that may stand in for Dice where there is no gold, the most independent of the drawing first."""


def witness(masks: Sequence[Mask]) -> str:
    """Return the agreement that stands in for Dice: the most independent one that at least half of the masks have, and that tells any from another.

    Neighbouring slices, say, agree perfectly where each case is a single one.
    """
    for name in WITNESSES:
        values = [mask.scores[name] for mask in masks if name in mask.scores]
        if 2 * len(values) >= max(len(masks), 1) and len(set(values)) > 1:
            return name
    return OWN


def _average(values: Sequence[float], masks: Sequence[Mask]) -> Average | None:
    """Return the mean over patients; None of nothing."""
    if not masks:
        return None
    found = patient_interval(values, [mask.patient for mask in masks])
    return Average(mean=found.mean, low=found.low, high=found.high, masks=len(masks), patients=found.patients)


def group_rows(population: Sequence[Mask], measured: Sequence[Mask], kind: Kind) -> tuple[GroupRow, ...]:
    """Return a row for all masks, and one for each value of each attribute that has more than one."""
    name = witness(measured)
    banded, measured = _with_sizes(population, measured)
    attributes = sorted({attribute for mask in banded for attribute in mask.groups})
    rows = [_group_row("all", "", banded, [], measured, kind, name)]
    for attribute in attributes:
        values = sorted({mask.groups.get(attribute, "") for mask in banded})
        own = [
            _group_row(attribute, value, *_parted(banded, attribute, value), _of(measured, attribute, value), kind, name)
            for value in (values if len(values) > 1 else ())
        ]
        rows += _tested_once(own) if len(own) == 2 else own
    return tuple(rows)


def part_row(masks: Sequence[Mask], part: Group, about: str, kind: Kind) -> PartRow:
    """Return what became of the masks of one part, and their quality as far as it is known there."""
    figure = _figures(masks, kind, witness(masks))
    known = [mask for mask in masks if mask.case in figure]
    kept = [mask for mask in known if mask.kept]
    learnt = {mask.case: mask.ignored_share for mask in masks if mask.kept}
    told = [mask.judged for mask in masks if mask.kept and np.isfinite(mask.judged)] if kind == "Dice with gold" else []
    return PartRow(
        part=part,
        about=about,
        removed=share_removed(_removals(masks)),
        kept_quality=_average([figure[mask.case] for mask in kept], kept),
        whole_quality=_average([figure[mask.case] for mask in known], known),
        judged=float(np.mean(told)) if told else None,
        ignored=float(np.mean(list(learnt.values()))) if learnt else None,
    )


def _figures(masks: Sequence[Mask], kind: Kind, name: str) -> dict[str, float]:
    """Return case -> Dice, or the agreement that stands in for it, of the masks that it is known of."""
    if kind == "Dice with gold":
        return {mask.case: mask.dice for mask in masks if not np.isnan(mask.dice)}
    return {mask.case: mask.scores[name] for mask in masks if name in mask.scores}


def _removals(masks: Sequence[Mask]) -> list[Removal]:
    return [Removal(patient=mask.patient, removed=not mask.kept) for mask in masks]


def _of(masks: Sequence[Mask], attribute: str, value: str) -> list[Mask]:
    return [mask for mask in masks if mask.groups.get(attribute, "") == value]


def _parted(masks: Sequence[Mask], attribute: str, value: str) -> tuple[list[Mask], list[Mask]]:
    """Return the masks of a group, and the rest."""
    return _of(masks, attribute, value), [mask for mask in masks if mask.groups.get(attribute, "") != value]


def _tested_once(pair: Sequence[GroupRow]) -> list[GroupRow]:
    """Leave the test of two groups against each other with the one that more is removed of: it is one test, and not two."""
    tested = max(pair, key=lambda row: row.removed.share or 0.0)
    return [row if row is tested else row.model_copy(update={"p": None, "test": "none"}) for row in pair]


def _with_sizes(population: Sequence[Mask], measured: Sequence[Mask]) -> tuple[list[Mask], list[Mask]]:
    """Add the size of the drawn object, in thirds, to the attributes: small objects are the first that a filter loses."""
    volumes = [mask.volume_mm3 for mask in population]
    if len(set(volumes)) < 3:
        return list(population), list(measured)
    low, high = np.quantile(volumes, [1 / 3, 2 / 3])
    cuts = (float(low), float(high))

    def sized(mask: Mask) -> Mask:
        return replace(mask, groups={**mask.groups, "size of the drawn object": third(mask.volume_mm3, cuts)})

    return [sized(mask) for mask in population], [sized(mask) for mask in measured]


def _group_row(
    attribute: str, value: str, inside: Sequence[Mask], rest: Sequence[Mask], measured: Sequence[Mask], kind: Kind, name: str
) -> GroupRow:
    found = compare(_removals(inside), _removals(rest))
    figure = _figures(measured, kind, name)
    known = [mask for mask in measured if mask.case in figure]
    kept = [mask for mask in known if mask.kept]
    return GroupRow(
        attribute=attribute,
        value=value,
        patients=len({mask.patient for mask in inside}),
        removed=share_removed(_removals(inside)),
        p=found.p,
        p_adjusted=None,
        test=found.test,
        flagged=False,
        kept_quality=_average([figure[mask.case] for mask in kept], kept),
        whole_quality=_average([figure[mask.case] for mask in known], known),
        note=found.note if rest else "",
    )
