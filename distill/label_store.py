"""Write what a teacher has said about a case: class ids, probabilities, doubt, scores, and how they came about."""

import numpy as np
from scipy import ndimage

from distill.casework import CaseWork, ClassWork
from distill.embedding_cache import cache_inputs
from distill.label_plan import ENGINE, LabelPlan
from distill.prompts.axes import AXES
from distill.prompts.choice import ABSENT
from distill.propagation import told
from distill.quality import dice
from distill.unasked import shown, unasked_slices
from distill.uncertainty import LN2, binary_entropy
from distill.unknown import DISBELIEVED, UNASKED
from storage import Archive, LabelHistory

_CROSS = ndimage.generate_binary_structure(3, 1) & np.array([False, True, False])[:, None, None]
"""Neighbours above, below, left and right on the same slice."""


def store_labels(archive: Archive, plan: LabelPlan, work: CaseWork, *, teacher: str, inputs: str) -> None:
    """Write the label set of one case.

    Args:
        archive: where to.
        plan: says label set and classes.
        work: answered.
        teacher: fingerprint of the weights.
        inputs: fingerprint of everything the labels depend on.
    """
    shape_zyx, targets = work.record.shape_czyx[1:], work.targets
    stack = np.zeros((len(plan.classes), *shape_zyx), np.float32)
    for n, info in enumerate(plan.classes):
        if info.id in targets:
            stack[n] = targets[info.id].in_case("probability")
    best = stack.argmax(axis=0)
    ids = np.where(stack.max(axis=0) > 0.5, np.array([c.id for c in plan.classes], np.uint8)[best], 0).astype(np.uint8)
    doubt = binary_entropy(stack).max(axis=0) / LN2
    archive[work.record.id].write_labels(
        _history(plan, work, teacher, inputs),
        ids,
        probability_kzyx=np.rint(255 * stack).astype(np.uint8),
        uncertainty_zyx=np.rint(255 * doubt).astype(np.uint8),
        maps={name: _by_class(_said(name, work, plan)) for name in ("mutual_information", "vote")} | _unknown(work, plan),
        scores=measure(work),
    )


def _unknown(work: CaseWork, plan: LabelPlan) -> dict[str, np.ndarray]:
    """Return the map ``unknown`` (``distill.unknown``); none where everything is known."""
    unknown = np.zeros((len(plan.classes), *work.record.shape_czyx[1:]), np.uint8)
    for about, info in zip(unknown, plan.classes, strict=True):
        if info.id in work.targets:
            target = work.targets[info.id]
            turned = np.moveaxis(about, target.axis, 0)
            turned[sorted(unasked_slices(work, target, plan.unasked_mm, propagate=plan.ask.propagate))] = UNASKED
            turned[sorted(target.unknown)] = DISBELIEVED
    return {"unknown": _by_class(unknown)} if unknown.any() else {}


def _said(name: str, work: CaseWork, plan: LabelPlan) -> np.ndarray:
    """Return a map of every class of the plan, ``(k, z, y, x)`` uint8; 0 of those that were not asked about."""
    said = np.zeros((len(plan.classes), *work.record.shape_czyx[1:]), np.uint8)
    for n, info in enumerate(plan.classes):
        if info.id in work.targets:
            said[n] = work.targets[info.id].in_case(name)
    return said


def _by_class(map_kzyx: np.ndarray) -> np.ndarray:
    """Return a map as it is stored: without its first axis where there is one class."""
    return map_kzyx[0] if len(map_kzyx) == 1 else map_kzyx


def _history(plan: LabelPlan, work: CaseWork, teacher: str, inputs: str) -> LabelHistory:
    return LabelHistory(
        label_set=plan.label_set,
        classes=plan.classes,
        made_by=f"distill.engine/{ENGINE}",
        teacher=teacher,
        prompt_source=", ".join(work.sources) or "weak",
        parameters={
            **plan.ask.history(),
            **{f"{name}/{key}": text for key, target in work.targets.items() for name, text in told(target).items()},
            **{
                f"unasked/{key}": text
                for key, target in work.targets.items()
                if (text := shown(unasked_slices(work, target, plan.unasked_mm, propagate=plan.ask.propagate)))
            },
            **{f"axis/{key}": AXES[target.axis] for key, target in work.targets.items() if target.axis},
            **{f"pieces/{key}": most for key, target in work.targets.items() if (most := target.most_pieces) > 1},
            **work.window.history(),
            **cache_inputs(plan.embedding_cache),
        },
        fingerprint=inputs,
    )


def measure(work: CaseWork) -> dict[str, float]:
    """Return the scores of one labelled case, per class as ``name/class``: agreement, stability, predicted IoU, doubt, slice consistency, volume.

    Slice scores are averaged with the slice's area as weight, as a case is as good as its voxels. ``slice_consistency`` is the
    mean Dice of neighbouring slices' masks. Volume is in mm3. The others are explained in ``doubt_scores``.
    """
    voxel_mm3 = float(np.prod(work.record.geometry.spacing_zyx_mm))
    scores: dict[str, float] = {f"{ABSENT}/{class_id}": confidence for class_id, confidence in work.said_absent.items()}
    for class_id, target in work.targets.items():
        masks = target.probability > 0.5
        found = slice_scores(target) | doubt_scores(target, masks)
        found["slice_consistency"] = _slice_consistency(target, masks)
        found["volume_mm3"] = float(masks.sum()) * voxel_mm3
        if target.plane_agreement is not None:
            found["plane_agreement"] = target.plane_agreement
        if target.round_trips:
            found["round_trip_dice"] = min(target.round_trips.values())
        scores |= {f"{name}/{class_id}": value for name, value in found.items()}
    return scores


def slice_scores(target: ClassWork) -> dict[str, float]:
    """Return what ensembles say about single slices, averaged over those that were asked; 0 where none was."""
    zs = sorted(target.summaries)
    each = [target.summaries[z] for z in zs]
    weights = np.array([summary.area_px for summary in each], float) + 1e-6
    values = {
        "pairwise_dice": [summary.pairwise_dice for summary in each],
        "stability": [summary.stability for summary in each],
        "predicted_iou": [target.iou[z] for z in zs],
    }
    candidates = [summary.multimask_dice for summary in each if summary.multimask_dice is not None]
    if candidates and len(candidates) == len(each):
        values["multimask_dice"] = candidates
    return {name: float(np.average(found, weights=weights)) if zs else 0.0 for name, found in values.items()} | {
        "slices_asked": float(len(zs))
    }


def _slice_consistency(target: ClassWork, masks: np.ndarray) -> float:
    pairs = [dice(masks[z], masks[z + 1]) for z in sorted(target.summaries) if z + 1 in target.summaries]
    return float(np.nanmean(pairs)) if np.isfinite(pairs).any() else 1.0


def doubt_scores(target: ClassWork, masks: np.ndarray) -> dict[str, float]:
    """Return how doubtful the mask of one class is.

    ``mean_probability`` is averaged over the mask; ``entropy`` (nats) and ``mutual_information`` (nats) over the mask and the rim of one pixel
    around it on each slice, as most doubt lies there and a mean over the whole picture would tell its size. An empty mask is as doubtful
    as can be: probability 0, both others ln 2.

    Args:
        target: answered.
        masks: ``(z, y, x)`` bool.
    """
    where = ndimage.find_objects(masks.astype(np.uint8))
    if not where or where[0] is None:
        return {"mean_probability": 0.0, "entropy": LN2, "mutual_information": LN2}
    z, y, x = where[0]
    region = (z, slice(max(0, y.start - 1), y.stop + 1), slice(max(0, x.start - 1), x.stop + 1))
    mask, probability = masks[region], target.probability[region]
    rimmed = ndimage.binary_dilation(mask, _CROSS)
    return {
        "mean_probability": float(probability[mask].mean()),
        "entropy": float(binary_entropy(probability[rimmed]).mean()),
        "mutual_information": float(target.mutual_information[region][rimmed].mean()) * LN2 / 255,
    }
