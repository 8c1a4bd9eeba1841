"""The records of a student: what was asked for, what was planned, what came out. Free of torch, so that the command line may import it."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from storage.case import Channel, ClassInfo
from students.frozen import Frozen, Growing
from students.learning import Learning
from students.origins import Exported, NnunetRecord, PromptableRecord
from students.relabel import Relabel

NO_LABEL = "no label"
"""In the place of a label set, for students that learn from images alone."""

FORMAT_VERSION = 1
"""Of ``student.json``; a reader refuses what is newer than itself."""

Dimensions = Literal["2d", "3d"]
Size = Literal["standard", "small", "medium", "large"]


NnunetPreset = Literal["reduced", "2d", "3d_fullres", "resenc_m", "resenc_l"]
"""``reduced`` is a small net that two CPU cores train in minutes; the others are nnU-Net's own, for a GPU."""

Shape = Literal["organ", "tube", "lesions"]
"""What a class looks like, which decides what is measured of it beyond overlap and surface."""


class NnunetSpec(Frozen):
    """What a person asks of nnU-Net; what is not said is as the preset has it."""

    preset: NnunetPreset = "reduced"
    epochs: int | None = Field(default=None, ge=1)
    """100 of the reduced preset, 1,000 of the others."""
    iterations: int | None = Field(default=None, ge=1)
    """Steps of an epoch: 25 of the reduced preset, 250 of the others."""
    fold: Literal["all"] | Annotated[int, Field(ge=0, le=4)] = 0
    """Which fifth of the patients is held out to watch agreement; ``all`` trains on everybody and watches nobody."""
    mirror: bool = True
    """Whether pictures are mirrored, in training and prediction; wrong where left and right are different classes."""
    workers: int = Field(default=1, ge=1, le=64)
    """Threads of preprocessing, and processes of augmentation where it is more than 1."""


PromptableSize = Literal["small", "medium"]


class PromptableSpec(Frozen):
    """What a person asks of a student that takes prompts."""

    size: PromptableSize = "small"
    """Of the encoder: about 1.3 or 2.7 million parameters."""
    decoder: Literal["frozen", "tuned"] = "frozen"
    """Whether the teacher's mask decoder stays as it is, or learns too, once student and teacher are asked."""
    embedding_share: float = Field(default=0.9, ge=0, le=1)
    """Share of the training in which embeddings alone are learnt; after it, masks for the same prompts too."""
    prompts: int = Field(default=2, ge=1, le=32)
    """Of each picture, once student and teacher are asked."""


class StudentSpec(Growing):
    """What a person asks of a student; the rest is planned from the data."""

    LATER: ClassVar[frozenset[str]] = frozenset({"learning", "size", "nnunet", "promptable", "hints", "held_out"})
    name: str = Field(default="student", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    kind: Literal["compact", "nnunet", "promptable"] = "compact"
    nnunet: NnunetSpec | None = None
    """Of the kind ``nnunet``, which of the settings below heeds name, budget, seed, threads and device."""
    promptable: PromptableSpec | None = None
    """Of the kind ``promptable``, which heeds the same, and steps, batch, lr, weight decay, validations, checkpoints and cache."""
    budget_seconds: float | None = Field(default=600.0, gt=0)
    """Training time, validation included; a resumed run goes on with what is left. None: only ``steps`` counts."""
    steps: int | None = Field(default=None, ge=1)
    """At most so many optimiser steps."""
    seed: int = 0
    width: int = Field(default=16, ge=4, le=256)
    """Channels at full resolution; 16 is about 0.9 M parameters in 3D and multiples of 16 are fast on CPUs with bf16."""
    size: Size = "standard"
    """``standard`` goes by ``width``; the others have about 0.3, 2 and 8 million parameters whatever the cases are."""
    dimensions: Literal["auto", "2d", "2.5d", "3d"] = "auto"
    """``auto``: 2D when most cases are a single slice, otherwise 3D. ``2.5d`` answers slice by slice and sees the neighbouring slices too."""
    patch_zyx: tuple[int, int, int] | None = None
    """Voxels at the training spacing; planned from the cases when None."""
    batch: int | None = Field(default=None, ge=1)
    """Patches per step; 2 volumes or 4 slices when None."""
    lr: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    threads: int | None = Field(default=None, ge=1)
    """Torch threads; None leaves torch's own choice."""
    device: str = "auto"
    validation_fraction: float = Field(default=0.15, ge=0, lt=1)
    """Share of the patients held out to watch agreement with their pseudo-labels; 0 trains on all and keeps the last weights."""
    held_out: tuple[str, ...] = ()
    """Patients to hold out by name, as far as there are labels of theirs, instead of a share drawn by ``seed``: students of several rounds are
    watched on the same ones. Of compact students."""
    validations: int = Field(default=12, ge=1)
    """How often during the budget agreement is measured; less often where that would take more than about a tenth of it."""
    patience: int = Field(default=6, ge=1)
    """Stop after so many validations without a better agreement, but not in the first half, nor while agreement is below 0.3."""
    checkpoint_seconds: float = Field(default=20.0, ge=0)
    """At most so much work is lost to a kill."""
    cache_bytes: int = Field(default=1 << 30, ge=0)
    """Volumes kept ready in memory, in all; the others are read patch by patch."""
    augment: bool = True
    mixed_precision: bool | None = None
    """bf16 autocast; None: on CUDA, and on CPUs that have bf16 instructions. Only False promises bit-equal repeats on a CPU."""
    learning: Learning = Learning()
    """Loss, targets, how voxels count, and what is learnt beside the labels."""
    hints: str | None = None
    """Label set that the student sees beside the image, ``teacher/r1`` for example: a channel for each class (``students.hints``)."""


class Normalisation(Frozen):
    """How intensities become comparable: clip between two percentiles of the voxels that are not zero, then z-score, per channel."""

    low_percentile: float = 0.5
    high_percentile: float = 99.5


class NetworkPlan(Growing):
    """Everything needed to rebuild the network without its training data."""

    LATER: ClassVar[frozenset[str]] = frozenset({"neighbours", "hints"})
    dimensions: Dimensions
    in_channels: int
    """Of the network: those of the image, times the slices that are seen at once."""
    outputs: int
    """Background and the classes."""
    filters: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    """Per level, per axis; the first is all ones."""
    kernels: tuple[tuple[int, ...], ...]
    patch_zyx: tuple[int, int, int]
    spacing_zyx_mm: tuple[float, float, float]
    batch: int
    normalisation: Normalisation = Normalisation()
    neighbours: int = Field(default=0, ge=0)
    """Slices on each side that a 2D network sees as further channels; beyond the volume the last slice is repeated."""
    hints: int = Field(default=0, ge=0)
    """Channels behind those of the image that show what a teacher believes, from -1 to 1; they are not normalised."""

    @property
    def image_channels(self) -> int:
        """Channels of the images it takes, without hints."""
        return self.in_channels // (1 + 2 * self.neighbours) - self.hints


class HistoryPoint(Frozen):
    """One validation during training."""

    step: int
    seconds: float
    loss: float | None
    """Mean training loss since the point before; None when no step since then had a finite gradient."""
    lr: float
    agreement: float | None
    """Mean foreground Dice with the held-out pseudo-labels (not with gold); None without held-out cases."""


class RoundsNote(Frozen):
    """Why this student was chosen among those of several rounds."""

    number: int = Field(ge=1)
    """The round it is of."""
    made: int
    """How many rounds were made."""
    relabel: Relabel = "teacher"
    """Whose the labels of its round are: the teacher's, those of students that never saw the case, what both say, or the mean of both."""
    words: tuple[str, ...]
    """What was decided after each round but the first, and why; one sentence each."""


class StudentCard(Growing):
    """``student.json``: where this student came from and how to use it."""

    LATER: ClassVar[frozenset[str]] = frozenset(
        {"gold_cases", "unlabeled_cases", "nnunet", "promptable", "exported", "rounds", "channels", "spacing_known"}
    )
    format_version: Literal[1] = 1
    name: str
    spec: StudentSpec
    plan: NetworkPlan
    classes: tuple[ClassInfo, ...]
    label_set: str
    training_cases: tuple[str, ...]
    validation_cases: tuple[str, ...]
    training_patients: tuple[str, ...]
    """Of both lists: the patients no score may be reported on."""
    fingerprint: str
    """Of spec, plan, classes, cases and the label sets' own fingerprints."""
    parameters: int
    steps: int
    seconds: float
    agreement: float | None
    """Agreement of the weights with held-out pseudo-labels: the best there was or, in 2D, the last that came near it."""
    stopped: Literal["budget", "steps", "early"]
    history: tuple[HistoryPoint, ...]
    nnunet: NnunetRecord | None = None
    """None for other kinds."""
    promptable: PromptableRecord | None = None
    """None for other kinds."""
    gold_cases: tuple[str, ...] = ()
    """Cases whose expert labels were learnt from beside the label set; their patients are among ``training_patients``."""
    unlabeled_cases: tuple[str, ...] = ()
    """Cases that taught consistency without any label; their patients are among ``training_patients`` too."""
    exported: Exported | None = None
    """None for a student as training left it."""
    rounds: RoundsNote | None = None
    """None for a student that was not chosen among those of several rounds."""
    channels: tuple[Channel, ...] = ()
    """What each channel of the images is, and how its files are told apart; empty where nobody named them."""
    spacing_known: bool | Literal["mixed"] = True
    """False where no case that it learnt from has a known voxel size: one pixel was taken for a millimetre, so the spacing of the plan is in pixels."""

    @property
    def channel_words(self) -> str:
        """Number and names of the channels: ``2 channels (t1, t2)``."""
        count = self.plan.image_channels
        names = f" ({', '.join(channel.name for channel in self.channels)})" if self.channels else ""
        return f"{count} channel{'' if count == 1 else 's'}{names}"


class Cost(Frozen):
    """The cost of answering for one case, as measured on one machine."""

    name: str
    parameters: int
    flops_per_case: float
    """Floating point operations (a multiply-add is two), as counted by torch; custom kernels may be missing from it."""
    seconds_per_case: float
    """Wall clock: best of the runs, so that other people's work on the machine counts least."""
    peak_memory_bytes: int | None
    """Memory the call needed beyond what was held before: CUDA's own maximum, or resident memory sampled every 2 ms. None where the
    process had so much in reserve that nothing was seen."""
    device: str
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainProgress:
    """What a progress bar wants to know; sent about once a second."""

    step: int
    fraction: Annotated[float, "0 to 1 of the budget"]
    seconds: float
    loss: float
    lr: float
    agreement: float | None
    resumed: bool
    phase: str = ""
    """What is done before the first step, where that takes long; empty during training."""
