"""The recipe: one YAML file that describes a whole run, as values that have been checked.

Every key has a default that works, except ``archive`` and ``classes``. Relative paths count from the recipe's own folder, and
``${NAME}`` in a path or address is taken from the environment.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from distill.devices import AUTO, parse_devices
from distill.intensity import IntensitySpec
from distill.teachers.fetch import OFFICIAL
from flows.durations import seconds_from
from flows.places import resolve_address, resolve_catalog, resolve_path
from flows.sizes import bytes_from
from storage.wording import check_modality, check_pattern, plain_name


def _path_from_context(value: object, info: ValidationInfo) -> object:
    """Resolve a path against the recipe's folder, which the loader passes as context."""
    return resolve_path(str(value), folder=(info.context or {}).get("folder")) if isinstance(value, (str, Path)) else value


def _address_from_context(value: object, info: ValidationInfo) -> object:
    """Resolve a path or leave a URL as it is."""
    return resolve_address(value, folder=(info.context or {}).get("folder")) if isinstance(value, str) else value


def _catalog_from_context(value: object, info: ValidationInfo) -> object:
    """Check the URL of a catalog, and resolve the file in it."""
    return resolve_catalog(value, folder=(info.context or {}).get("folder")) if isinstance(value, str) else value


def _existing(path: Path) -> Path:
    """Fail at reading time, not an hour into the run."""
    if not path.exists():
        message = f"there is nothing at {path}. Relative paths count from the folder of the recipe."
        raise ValueError(message)
    return path


RecipePath = Annotated[Path, BeforeValidator(_path_from_context)]
SourcePath = Annotated[RecipePath, AfterValidator(_existing)]
Address = Annotated[str, BeforeValidator(_address_from_context)]
ClassId = Annotated[int, Field(ge=1, le=254)]
"""0 is background and 255 is ``ignore``."""
ArmName = Literal["ellipse", "ellipse-student", "few-gold", "all-gold"]


def _plain(name: str) -> str:
    """Names become folders and columns; say what to write instead of one that cannot."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        return name
    instead = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("._-")[:64]
    cure = f" Write {instead}." if instead else ""
    message = f"must be 1 to 64 letters, digits, '.', '_' or '-', without blanks, beginning with a letter or digit, but is {name!r}.{cure}"
    raise ValueError(message)


Name = Annotated[str, AfterValidator(_plain)]


class _Block(BaseModel):
    """What all blocks share: nothing unknown gets in, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassBlock(_Block):
    """One class to segment."""

    name: Name
    volume_mm3: tuple[float, float] | None = None
    """Smallest and largest volume that anatomy allows; an object outside is not believed. Not judged where the spacing is unknown."""

    @field_validator("volume_mm3")
    @classmethod
    def _rising(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 <= value[0] < value[1]:
            message = "must be two rising volumes in cubic millimetres, such as [1500, 6500]."
            raise ValueError(message)
        return value


class GoldBlock(_Block):
    """Expert labels, used for thresholds on calibration cases and for scores on test cases."""

    path: SourcePath
    """A folder of label files named like their images."""
    map: dict[int, int] = Field(default_factory=dict)
    """Value in the file -> class id, such as ``{1: 1, 2: 1}`` to merge two parts; empty takes values as they are."""
    suffix: str = ""
    """What follows the case id in the names of the label files, such as ``_1stHO``."""


class IngestBlock(_Block):
    """Where scans and weak prompts come from."""

    images: SourcePath
    modality: Annotated[str | None, AfterValidator(check_modality)] = None
    """DICOM's code, such as ``MR``, or ``other``; without it what DICOM files say."""
    exclude: tuple[str, ...] = ()
    """Shell patterns of names to leave out, such as ``gold/*``."""
    patient_from: Annotated[str | None, AfterValidator(check_pattern)] = None
    """A regular expression whose first group is the patient in a file's name; without it every file is its own patient."""
    prompts: SourcePath | None = None
    gold: GoldBlock | None = None
    split: SourcePath | None = None
    """CSV with columns ``case`` and ``part`` (archive, calibration or test)."""


class PromptsBlock(_Block):
    """Where the teacher's prompts come from."""

    source: Literal["weak"] = "weak"


class EmbeddingCacheBlock(_Block):
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


def _devices(value: object) -> object:
    """Check the names and write them in one way; whether they are here is asked where the teacher is needed."""
    words = value.split(",") if isinstance(value, str) else value
    return ",".join(parse_devices(words, where="")) if isinstance(words, list) and all(isinstance(word, str) for word in words) else value


class TeacherBlock(_Block):
    """Which promptable model draws."""

    checkpoint: str = "bundled"
    profile: str | None = None
    """How the checkpoint wants its images (``sam``, ``medsam``), where the file itself cannot tell; see docs/checkpoints.md."""
    base: str | None = None
    """Of a LoRA delta: the checkpoint it was trained on."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """``bf16`` is faster and changes the last digits; ``auto`` takes it on GPUs, except for the bundled teacher. ``int8`` is faster still and
    less exact, for ViT encoders on a CPU; what it costs in Dice is in docs/performance.md."""
    device: Annotated[str, BeforeValidator(_devices)] = AUTO
    """``auto`` is every GPU that the process sees, or else the CPU; ``cpu``, ``cuda:0``, or several as ``cuda:0,cuda:1`` or a list."""
    compile: bool = False
    """Compile a ViT encoder for GPUs: costs a minute at the start of each run; a CPU and other encoders stay as they are."""
    embedding_cache: Annotated[EmbeddingCacheBlock | None, BeforeValidator(_sized)] = None
    """Off unless a size is given, such as ``20GB``: worth it where the same pictures are asked again with other prompts."""

    @field_validator("checkpoint", "base")
    @classmethod
    def _known_or_there(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None or value == "bundled" or value in OFFICIAL:
            return value
        return str(_existing(resolve_path(value, folder=(info.context or {}).get("folder"))))

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


class UncertaintyBlock(_Block):
    """How the teacher is asked several times."""

    boxes: int = Field(default=5, ge=1, le=64)
    """How many jittered copies of each box."""
    jitter: float = Field(default=0.05, ge=0, le=0.5)
    """Standard deviation of each side, as a part of the box's size."""
    flips: bool = True
    planes: Literal["axial", "three"] = "three"
    """``three`` also asks coronal and sagittal slices of volumes whose voxels are near isotropic."""


class RefineBlock(_Block):
    """What of the teacher's drawing is believed."""

    consistency: Literal["none", "3d"] = "3d"
    largest_component: bool = True
    risk: float = Field(default=0.10, gt=0, lt=1)
    """Highest accepted expected disagreement (1 - Dice) of what is trained on; set on the calibration cases."""


class StudentBlock(_Block):
    """The small model that ships."""

    kind: Literal["compact"] = "compact"
    name: Name = "compact"
    budget: Annotated[float, BeforeValidator(seconds_from)] = 1200.0
    """Seconds of training; written as 90s, 20min or 1.5h."""
    seed: int = 0


class EvaluateBlock(_Block):
    """What the student is compared with, on the test cases."""

    arms: tuple[ArmName, ...] = ("ellipse",)
    """Baselines beside student and teacher. Those but ``ellipse`` train another student each, with the same budget."""
    tolerance_mm: float = Field(default=1.0, gt=0)
    """Of the normalised surface Dice: how far two borders may be apart and still count as equal."""


class Recipe(_Block):
    """A whole run."""

    archive: Address
    catalog: Annotated[str | None, BeforeValidator(_catalog_from_context)] = None
    """Any SQLAlchemy URL; without it, SQLite beside the archive."""
    results: RecipePath = Field(default=Path("results"), validate_default=True)
    """Folder for students and reports."""
    ingest: IngestBlock | None = None
    """Leave out when the archive is filled already."""
    classes: dict[ClassId, ClassBlock] = Field(min_length=1)
    prompts: PromptsBlock = PromptsBlock()
    teacher: TeacherBlock = TeacherBlock()
    intensity: IntensitySpec = IntensitySpec()
    """How native intensities become the teacher's pictures, see docs/intensity.md; the defaults go by modality."""
    uncertainty: UncertaintyBlock = UncertaintyBlock()
    refine: RefineBlock = RefineBlock()
    student: StudentBlock = StudentBlock()
    evaluate: EvaluateBlock = EvaluateBlock()
    schedule: str | None = Field(default=None, pattern=r"^\S+( \S+){4}$")
    """Cron line for unattended runs; ``samdistill run`` runs at once and ignores it."""

    @model_validator(mode="after")
    def _names_differ(self) -> "Recipe":
        names = [block.name for block in self.classes.values()]
        if len({plain_name(name) for name in names}) < len(names):
            message = f"two classes carry the same name in {names}, whatever its case and dashes. Give each its own."
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _gold_is_of_these_classes(self) -> "Recipe":
        mapping = self.ingest.gold.map if self.ingest is not None and self.ingest.gold is not None else {}
        strangers = {value: target for value, target in mapping.items() if target not in {0, 255, *self.classes}}
        if strangers:
            message = (
                f"ingest.gold.map leads to no class: {strangers}. Classes: {', '.join(map(str, sorted(self.classes)))}; 0 is background."
            )
            raise ValueError(message)
        return self

    @property
    def student_folder(self) -> Path:
        """Where the student of this recipe lives."""
        return self.results / "students" / self.student.name

    @property
    def report_folder(self) -> Path:
        """Where its report lives."""
        return self.results / "reports" / self.student.name
