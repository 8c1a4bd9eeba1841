"""The network of a student that takes prompts: a small convolutional encoder under its teacher's own prompt encoder and mask decoder."""

import copy
from collections.abc import Mapping

from segment_anything.modeling import Sam

from distill.teachers.base import Teacher
from distill.teachers.conv_encoder import PIXEL_MEAN, PIXEL_STD, ConvEncoder, ConvSamConfig
from distill.teachers.sam import SamTeacher
from students.errors import TrainingError
from students.spec import PromptableSize

WIDTHS: Mapping[PromptableSize, tuple[int, ...]] = {"small": (16, 32, 64, 96, 128), "medium": (32, 48, 80, 128, 160)}
"""Channels at strides 2 to 32; multiples of 8 for group normalisation, of 16 where CPUs are fast."""
DEPTHS: Mapping[PromptableSize, tuple[int, ...]] = {"small": (0, 0, 1, 2, 2), "medium": (0, 1, 2, 3, 2)}
NECK: Mapping[PromptableSize, int] = {"small": 48, "medium": 96}
"""The bundled teacher's own neck, of 128 channels at stride 8, is a fifth of its arithmetic. Beside it, at 256 px on one core of a shared Zen 4
(2026-11-22): 34.9 cpu-ms per picture of the teacher, 8.6 of ``small``."""


def known_teacher(teacher: Teacher, name: str) -> SamTeacher:
    """Return a teacher whose encoder and decoder can be told apart.

    Raises:
        TrainingError: if it is another package's, or segments without prompts.
    """
    if not isinstance(teacher, SamTeacher):
        message = f"teacher {name} is loaded by another package, so its encoder cannot be told from its decoder. Distil a teacher with a checkpoint of its own."
        raise TrainingError(message)
    if not teacher.profile.prompts:
        message = f"teacher {name} ({teacher.profile.name}) segments without prompts, so no student of it can be prompted. Use a promptable teacher."
        raise TrainingError(message)
    return teacher


def student_config(teacher: SamTeacher, size: PromptableSize) -> ConvSamConfig:
    """Return the sizes of an encoder whose embeddings have the shape of the teacher's."""
    rows = int(teacher.sam.prompt_encoder.image_embedding_size[0])
    return ConvSamConfig(
        image_size=teacher.profile.image_size,
        stride=teacher.profile.image_size // rows,
        widths=WIDTHS[size],
        depths=DEPTHS[size],
        embed_dim=int(teacher.sam.prompt_encoder.embed_dim),
        neck=NECK[size],
    )


def build_student(teacher: SamTeacher, config: ConvSamConfig) -> Sam:
    """Return a new encoder in the middle of copies of the teacher's other parts; torch's generator decides its weights."""
    return Sam(
        image_encoder=ConvEncoder(config),
        prompt_encoder=copy.deepcopy(teacher.sam.prompt_encoder),
        mask_decoder=copy.deepcopy(teacher.sam.mask_decoder),
        pixel_mean=list(PIXEL_MEAN),
        pixel_std=list(PIXEL_STD),
    )
