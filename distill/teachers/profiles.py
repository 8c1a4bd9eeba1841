"""The protocols of the families, one record each: what a checkpoint's weights were trained to see, as literal values.

A protocol belongs to the weights as much as their numbers do: SAM and MedSAM have tensors of the same names and shapes, and either
gives nonsense under the other's preparation of images. Sources are named at each record; what each word does to a picture is in
``distill.teachers.pictures``.
"""

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches

from distill.errors import CheckpointError
from distill.teachers.base import TeacherProfile

_ANY = 0
"""The image size is the checkpoint's and is filled in by ``profile_for``."""

SAM = TeacherProfile(name="sam", image_size=_ANY)
"""``SamPredictor`` and ``ResizeLongestSide`` of segment-anything 1.0 (Kirillov et al. 2023)."""
CONV = replace(SAM, name="samdistill-conv")
"""This package's own teacher: SAM's protocol at the size its header names."""
MOBILE_SAM = replace(SAM, name="mobile-sam")
"""MobileSAM (Zhang et al. 2023) keeps SAM's predictor. TinySAM's files look the same, but its decoder answers masks 1-3 only."""
EDGE_SAM = replace(SAM, name="edge-sam", prompts=("box", "point"))
"""``edge_sam/predictor.py`` of EdgeSAM (Zhou et al. 2023) is SAM's; ``training/train.py`` prompts with boxes and points and never with masks.

For a box its demo and its evaluation take the single-mask token, for points its demo the most stable of all four tokens: predicted IoU
was not distilled."""
MEDSAM = TeacherProfile(
    name="medsam",
    image_size=_ANY,
    resize="square-cubic",
    normalise="min-max",
    padding="none",
    restore="probabilities",
    prompts=("box",),
)
"""``MedSAM_Inference.py`` (Ma et al. 2024)."""
LITE_MEDSAM = TeacherProfile(
    name="lite-medsam",
    image_size=_ANY,
    resize="longest-side-area",
    normalise="min-max",
    boxes="truncated",
    restore="cropped",
    prompts=("box",),
)
"""``CVPR24_LiteMedSAM_infer.py`` of MedSAM's branch LiteMedSAM (2024)."""
SAM_MED2D = TeacherProfile(name="sam-med2d", image_size=_ANY, resize="square-nearest", padding="none", answer="best")
"""``predictor_sammed.py`` (Cheng et al. 2023). RGB, as that predictor; its training read BGR, which only colour images notice."""
SAMED = TeacherProfile(
    name="samed",
    image_size=_ANY,
    resize="square-spline",
    normalise="unit",
    padding="none",
    answer="all",
    restore="nearest",
    prompts=(),
)
"""After ``test.py`` and ``utils.py`` of SAMed (Zhang and Liu 2023): one mask token per class, token 0 the background, no prompt.

One thing differs: that script brings slices to 224 px first and from there to 512 px, both with splines; here they go to 512 px at once."""
MEDICAL_SAM_ADAPTER = TeacherProfile(
    name="medical-sam-adapter",
    image_size=_ANY,
    resize="square-linear",
    normalise="unit",
    padding="none",
    restore="direct",
    prompts=("point", "box"),
)
"""``function.py`` and ``dataset/`` of Medical-SAM-Adapter (Wu et al. 2023); it never returns to the picture's size, so that is ours."""

PROFILES: Mapping[str, TeacherProfile] = {
    each.name: each for each in (SAM, MEDSAM, SAM_MED2D, MOBILE_SAM, EDGE_SAM, LITE_MEDSAM, SAMED, MEDICAL_SAM_ADAPTER, CONV)
}

KNOWN_MD5: Mapping[str, str] = {
    "01ec64d29a2fca3f0661936605ae66f8": "sam",  # sam_vit_b_01ec64.pth
    "0b3195507c641ddb6910d2bb5adee89c": "sam",  # sam_vit_l_0b3195.pth
    "4b8939a88964f0f4ff5f5b2642c598a6": "sam",  # sam_vit_h_4b8939.pth
}
"""Meta's three files; the first six digits of each hash also stand in the official file's name."""


def profile_for(name: str, image_size: int, *, logit_shift: float = 0.0) -> TeacherProfile:
    """Return the protocol ``name`` at the size that a checkpoint has.

    Raises:
        CheckpointError: if there is no such profile.
    """
    if name not in PROFILES:
        near = get_close_matches(name.lower().replace("_", "-"), PROFILES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        message = f"no profile {name!r}.{hint} Known: {', '.join(PROFILES)}."
        raise CheckpointError(message)
    return replace(PROFILES[name], image_size=image_size, logit_shift=logit_shift)
