"""What a labelling run is to do."""

from dataclasses import dataclass, field

from distill.embedding_cache import EmbeddingCachePlan
from distill.intensity import IntensitySpec
from distill.questions import AskSettings
from distill.teachers.sam import Precision
from storage import ClassInfo

ENGINE = "4"
"""Raised whenever the engine's answers change, so that old labels are recomputed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelPlan:
    """What to label, with which teacher, how."""

    classes: tuple[ClassInfo, ...]
    label_set: str = "teacher/r1"
    sources: tuple[str, ...] = ("weak",)
    """Whose prompts to ask with, the first that has any first (``distill.prompts.choice``)."""
    teacher: str = "bundled"
    profile: str | None = None
    base: str | None = None
    """Of a LoRA delta: the checkpoint it was trained on."""
    precision: Precision = "auto"
    ask: AskSettings = field(default_factory=AskSettings)
    unasked_mm: float = 200.0
    """Beyond the last slice that was asked, where nothing says that the object has ended, slices are unknown for so far and background from there on
    (``distill.unasked``); an adult's liver is some 200 mm high."""
    intensity: IntensitySpec = field(default_factory=IntensitySpec)
    embedding_cache: EmbeddingCachePlan | None = None
    window: int = 8
    """Cases asked together on one device. More fill batches better; memory grows with it."""
    device: str | tuple[str, ...] = "auto"
    """``auto``, ``cpu``, ``cuda:0``, or several (``distill.devices``); each gets a teacher of its own."""
    compiled: bool = False
    """Compile a ViT encoder on CUDA."""
