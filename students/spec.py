"""The records of a student: what was asked for, what was planned, what came out. Free of torch, so that the command line may import it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from storage.case import ClassInfo

FORMAT_VERSION = 1
"""Of ``student.json``; a reader refuses what is newer than itself."""

Dimensions = Literal["2d", "3d"]


class Frozen(BaseModel):
    """A record that crosses a border: unknown fields are errors, and nothing changes after construction."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StudentSpec(Frozen):
    """What a person asks of a student; the rest is planned from the data."""

    name: str = Field(default="student", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    kind: Literal["compact"] = "compact"
    budget_seconds: float | None = Field(default=600.0, gt=0)
    """Training time, validation included; a resumed run goes on with what is left. None: only ``steps`` counts."""
    steps: int | None = Field(default=None, ge=1)
    """At most so many optimiser steps."""
    seed: int = 0
    width: int = Field(default=16, ge=4, le=256)
    """Channels at full resolution; 16 is about 0.9 M parameters in 3D and multiples of 16 are fast on CPUs with bf16."""
    dimensions: Literal["auto", "2d", "3d"] = "auto"
    """``auto``: 2D when most cases are a single slice, otherwise 3D."""
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


class Normalisation(Frozen):
    """How intensities become comparable: clip between two percentiles of the voxels that are not zero, then z-score, per channel."""

    low_percentile: float = 0.5
    high_percentile: float = 99.5


class NetworkPlan(Frozen):
    """Everything needed to rebuild the network without its training data."""

    dimensions: Dimensions
    in_channels: int
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


class HistoryPoint(Frozen):
    """One validation during training."""

    step: int
    seconds: float
    loss: float | None
    """Mean training loss since the point before; None when no step since then had a finite gradient."""
    lr: float
    agreement: float | None
    """Mean foreground Dice with the held-out pseudo-labels (not with gold); None without held-out cases."""


ExportFormat = Literal["onnx", "int8", "torchscript", "bundle"]
"""``int8`` is ONNX with 8-bit products; ``bundle`` a folder that MONAI's command line runs, with TorchScript in it."""


class Int8Cost(Frozen):
    """What 8-bit products cost, measured when they were made."""

    method: str
    calibration_cases: tuple[str, ...]
    """Whose patches set the ranges."""
    cases: tuple[str, ...]
    """Of the measurement."""
    against: str
    """Label set: experts' on test cases where there are some, else the labels it learnt from, on cases held out in training."""
    measure: Literal["Dice", "agreement"]
    """Agreement is Dice with pseudo-labels."""
    before: float
    """Mean over cases and classes, of the network in 32 bits."""
    after: float


class Exported(Frozen):
    """How a student came into another format, and how far its answers there are its own."""

    format: ExportFormat
    file: str
    """The network, below the folder."""
    opset: int | None = None
    """Of ONNX."""
    worst_difference: float
    """The largest difference of a class probability from torch in float32, on random patches."""
    checked_shapes: tuple[tuple[int, ...], ...]
    """Of these patches: batch, channels, then space."""
    multiple_of: tuple[int, ...]
    """Batch and space may have any size; that of space must be a multiple of this, axis by axis."""
    source_weights: str
    """Hash of the weights that were exported."""
    made_with: dict[str, str]
    """Versions of the libraries that had a part in it."""
    int8: Int8Cost | None = None


class StudentCard(Frozen):
    """``student.json``: where this student came from and how to use it."""

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
    exported: Exported | None = None
    """None for a student as training left it."""


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
