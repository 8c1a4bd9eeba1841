"""The teacher that a plan names, loaded on a device and ready to be asked."""

from distill.embedding_cache import with_cache
from distill.errors import PlanError
from distill.label_plan import LabelPlan
from distill.teachers.base import Teacher
from distill.teachers.checkpoints import load_teacher


def appoint(plan: LabelPlan, device: str = "auto") -> Teacher:
    """Load a plan's teacher.

    Args:
        plan: says checkpoint, profile, precision and embedding cache.
        device: one device, as torch writes it, or ``auto``.

    Raises:
        CheckpointError: if the file cannot be loaded.
        PlanError: if the teacher takes no prompts.
    """
    loaded = load_teacher(
        plan.teacher, profile=plan.profile, base=plan.base, device=device, precision=plan.precision, compiled=plan.compiled
    )
    if not loaded.profile.prompts:
        message = f"teacher {plan.teacher} ({loaded.profile.name}) segments without prompts, one mask per class of its own; labelling asks with prompts. Use a promptable teacher."
        raise PlanError(message)
    return with_cache(loaded, plan.embedding_cache)
