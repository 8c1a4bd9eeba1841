"""The keys of a recipe that say which teachers draw, and how they are asked."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from distill.devices import AUTO
from distill.teachers.fetch import OFFICIAL
from distill.teachers.foreign import is_foreign
from distill.teachers.meant import perhaps_meant
from flows.places import resolve_path
from flows.recipe_parts import Block, Devices, RecipePath, existing
from flows.results import MOST_TEACHERS
from flows.sizes import bytes_from


class EmbeddingCacheBlock(Block):
    """How much of the encoder's work is kept for later runs over the same pictures."""

    size: Annotated[int, BeforeValidator(bytes_from)]
    """Written as 500MB, 20GB or 1.5TiB; what was not used for longest goes first."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """``fp32`` loses nothing; the others take half the room and change the last digits of the answers."""
    folder: RecipePath | None = None
    """Beside the archive, or in the user's cache where the archive is not on this machine."""


def _sized(value: object) -> object:
    """Let a size alone stand for the block."""
    return {"size": value} if isinstance(value, (str, int, float)) and not isinstance(value, bool) else value


def _known_or_there(value: str, info: ValidationInfo) -> str:
    """Return a known name as it is, and the whole path of a file that is there."""
    if value == "bundled" or value in OFFICIAL or is_foreign(value):
        return value
    path = resolve_path(value, folder=(info.context or {}).get("folder"))
    if not path.exists() and (guess := perhaps_meant(value)):
        message = f"there is nothing at {path}.{guess}"
        raise ValueError(message)
    return str(existing(path))


Checkpoint = Annotated[str, AfterValidator(_known_or_there)]


class CheckpointBlock(Block):
    """A promptable model, and how it is to be used."""

    checkpoint: Checkpoint
    profile: str | None = None
    """How the checkpoint wants its images (``sam``, ``medsam``), where the file itself cannot tell; see docs/checkpoints.md."""
    base: Checkpoint | None = None
    """Of a LoRA delta: the checkpoint it was trained on."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """``bf16`` is faster and changes the last digits; ``auto`` takes it on GPUs, except for the bundled teacher. ``int8`` is faster still and
    less exact, for ViT encoders on a CPU; what it costs in Dice is in docs/performance.md."""


class TeacherBlock(CheckpointBlock):
    """Which promptable model draws."""

    checkpoint: Checkpoint = "bundled"
    also: tuple[CheckpointBlock, ...] = Field(default=(), max_length=MOST_TEACHERS - 1)
    """More teachers: each draws every case, and their masks are fused; see docs/checkpoints.md."""
    fuse: Literal["staple", "mean"] = "staple"
    """Of several teachers: by their votes, weighed by how good each seems, or by the mean of their probabilities."""
    device: Devices = AUTO
    """``auto`` is every GPU that the process sees, or else the CPU; ``cpu``, ``cuda:0``, or several as ``cuda:0,cuda:1`` or a list."""
    compile: bool = False
    """Compile a ViT encoder for GPUs: costs a minute at the start of each run; a CPU and other encoders stay as they are."""
    embedding_cache: Annotated[EmbeddingCacheBlock | None, BeforeValidator(_sized)] = None
    """Off unless a size is given, such as ``20GB``: worth it where the same pictures are asked again with other prompts."""

    @model_validator(mode="after")
    def _teachers_differ(self) -> "TeacherBlock":
        names = [(each.checkpoint, each.profile, each.base) for each in (self, *self.also)]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)[0]
            message = f"names the teacher {twice} twice: it would agree with itself. Leave one out."
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _int8_where_it_can_be(self) -> "TeacherBlock":
        if self.precision == "int8" and self.checkpoint == "bundled":
            message = (
                "precision int8 is for SAM's ViT encoders, and the bundled teacher's is none. Name a checkpoint, or leave precision out."
            )
            raise ValueError(message)
        if self.precision == "int8" and "cuda" in self.device:
            message = f"precision int8 computes on the CPU only, but device is {self.device}. Say device: cpu, or precision: bf16."
            raise ValueError(message)
        return self


class UncertaintyBlock(Block):
    """How the teacher is asked several times."""

    boxes: int = Field(default=5, ge=1, le=64)
    """How many jittered copies of each box."""
    jitter: float = Field(default=0.05, ge=0, le=0.5)
    """Standard deviation of each side, as a part of the box's size."""
    flips: bool = True
    rotations: tuple[Annotated[float, Field(ge=-45, le=45)], ...] = Field(default=(), max_length=8)
    """Degrees by which the picture is turned, one more view for each; 5 to 10 keep anatomy believable. Views cost an encoding and ``boxes`` answers each."""
    scales: tuple[Annotated[float, Field(ge=0.5, le=2)], ...] = Field(default=(), max_length=8)
    """Factors by which the picture is enlarged inside its frame; 0.9 to 1.1."""
    gammas: tuple[Annotated[float, Field(ge=0.25, le=4)], ...] = Field(default=(), max_length=8)
    """Powers of the grey levels; 0.8 to 1.25."""
    window_shifts: tuple[Annotated[float, Field(ge=-0.5, le=0.5)], ...] = Field(default=(), max_length=8)
    """By which share of its width the window is moved; -0.1 to 0.1."""
    points: int = Field(default=0, ge=0, le=8)
    """Positive points of each member, drawn anew from the given ones or from inside the rough mask; 0 takes those given as they are."""
    multimask: bool = False
    """Also ask for the teacher's candidates for each box, whose disagreement is a score."""
    weights: Literal["equal", "predicted_iou", "agreement"] = "equal"
    """What each member counts in the mean probability: all alike, by its predicted IoU, or by its mean Dice with the other members."""
    planes: Literal["axial", "three"] = "three"
    """``three`` also asks coronal and sagittal slices of volumes whose voxels are near isotropic."""
    unasked_mm: float = Field(default=200.0, ge=0)
    """How far beyond the last slice that was asked slices are unknown, where nothing says that the object has ended; further away they are background."""
