"""How a student was made, beyond what spec and plan say: by nnU-Net, from a teacher, in another format. Free of torch."""

from typing import Literal

from students.frozen import Frozen


class NnunetRecord(Frozen):
    """How nnU-Net made a student, beyond what the plan says."""

    version: str
    """Of nnunetv2."""
    planner: str
    configuration: str
    epochs: int
    """Epochs that were done; the preset or the recipe may have asked for more."""
    epochs_asked: int
    iterations: int
    """Steps of each epoch."""
    fold: Literal["all"] | int
    mirror: bool
    """Whether pictures were mirrored in training."""
    mirrored_axes: tuple[int, ...]
    """Along which axes, in nnU-Net's order, pictures are mirrored in prediction, all answers of a case being averaged."""
    flat: bool
    """Whether every case was a single slice, whose distance from the next nnU-Net takes for 999 mm."""
    dropped_cases: tuple[str, ...]
    """Left out, as nobody says of any voxel of theirs what it is."""
    ignored: bool
    """Whether some voxels were nnU-Net's ``ignore``."""
    normalisation: tuple[str, ...]
    """nnU-Net's scheme of each channel; the plan's ``normalisation`` is of compact students."""


class PromptableRecord(Frozen):
    """How a student that takes prompts was made, beyond what the plan says."""

    file: str
    """The whole model, below the folder: it loads as a teacher."""
    teacher: str
    """The checkpoint whose encoder was distilled: its name, without its place."""
    teacher_fingerprint: str
    profile: str
    """How pictures and prompts go in; the teacher's own."""
    prompts: tuple[str, ...]
    """What it may be asked with."""
    image_size: int
    """Side of the square that it sees, in pixels."""
    encoder_parameters: int
    teacher_encoder_parameters: int
    decoder: Literal["frozen", "tuned"]
    slices: int
    """Different slices of the training cases; each is shown changed in many ways."""
    embedding_steps: int
    """Steps that learnt embeddings alone; the others learnt masks too."""
    embedding_error: float | None
    """Squared difference of embeddings on held-out patients, as a share of the teacher's variance; None without any."""


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
