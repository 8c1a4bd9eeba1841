"""Write what a teacher has said about a case: class ids, probabilities, doubt, scores, and how they came about."""

import numpy as np

from distill.casework import CaseWork
from distill.embedding_cache import cache_inputs
from distill.label_plan import ENGINE, LabelPlan
from distill.quality import dice
from distill.uncertainty import LN2, binary_entropy
from storage import Archive, LabelHistory


def store_labels(archive: Archive, plan: LabelPlan, work: CaseWork, *, teacher: str, inputs: str) -> None:
    """Write the label set of one case.

    Args:
        archive: where to.
        plan: says label set and classes.
        work: answered.
        teacher: fingerprint of the weights.
        inputs: fingerprint of everything the labels depend on.
    """
    shape_zyx = work.record.shape_czyx[1:]
    stack = np.zeros((len(plan.classes), *shape_zyx), np.float32)
    for n, info in enumerate(plan.classes):
        if info.id in work.classes:
            stack[n] = work.classes[info.id].probability
    best = stack.argmax(axis=0)
    ids = np.where(stack.max(axis=0) > 0.5, np.array([c.id for c in plan.classes], np.uint8)[best], 0).astype(np.uint8)
    doubt = binary_entropy(stack).max(axis=0) / LN2
    archive[work.record.id].write_labels(
        _history(plan, work, teacher, inputs),
        ids,
        probability_kzyx=np.rint(255 * stack).astype(np.uint8),
        uncertainty_zyx=np.rint(255 * doubt).astype(np.uint8),
        scores=measure(work),
    )


def _history(plan: LabelPlan, work: CaseWork, teacher: str, inputs: str) -> LabelHistory:
    ask = plan.ask
    return LabelHistory(
        label_set=plan.label_set,
        classes=plan.classes,
        made_by=f"distill.engine/{ENGINE}",
        teacher=teacher,
        prompt_source="weak",
        parameters={
            "boxes": ask.boxes,
            "jitter": ask.jitter,
            "flips": ask.flips,
            "planes": ask.planes,
            "seed": ask.seed,
            **work.window.history(),
            **cache_inputs(plan.embedding_cache),
        },
        fingerprint=inputs,
    )


def measure(work: CaseWork) -> dict[str, float]:
    """Return the scores of one labelled case, per class as ``name/class``: ensemble agreement, stability, predicted IoU, slice consistency, volume.

    Slice scores are averaged with the slice's area as weight, as a case is as good as its voxels. ``slice_consistency`` is the
    mean Dice of neighbouring slices' masks. Volume is in mm3.
    """
    voxel_mm3 = float(np.prod(work.record.geometry.spacing_zyx_mm))
    scores: dict[str, float] = {}
    for class_id, target in work.classes.items():
        zs = sorted(target.summaries)
        weights = np.array([target.summaries[z].area_px for z in zs], float) + 1e-6
        for name, values in (
            ("pairwise_dice", [target.summaries[z].pairwise_dice for z in zs]),
            ("stability", [target.summaries[z].stability for z in zs]),
            ("predicted_iou", [target.iou[z] for z in zs]),
        ):
            scores[f"{name}/{class_id}"] = float(np.average(values, weights=weights)) if zs else 0.0
        masks = target.probability > 0.5
        pairs = [dice(masks[z], masks[z + 1]) for z in zs if z + 1 in target.summaries]
        scores[f"slice_consistency/{class_id}"] = float(np.nanmean(pairs)) if np.isfinite(pairs).any() else 1.0
        scores[f"volume_mm3/{class_id}"] = float(masks.sum()) * voxel_mm3
        scores[f"slices_asked/{class_id}"] = float(len(zs))
        if target.plane_agreement is not None:
            scores[f"plane_agreement/{class_id}"] = target.plane_agreement
    return scores
