"""The recipe: one YAML file that describes a whole run, as values that have been checked.

Every key has a default that works, except ``archive`` and ``classes``. Relative paths count from the recipe's own folder, and
``${NAME}`` in a path or address is taken from the environment.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, PrivateAttr, ValidationInfo, field_validator, model_validator

from distill.devices import AUTO, parse_devices
from distill.intensity import IntensitySpec
from distill.teachers.fetch import OFFICIAL
from distill.teachers.foreign import is_foreign
from distill.teachers.meant import perhaps_meant
from flows.durations import seconds_from
from flows.places import resolve_catalog, resolve_path
from flows.recipe_channels import ChannelsKey
from flows.recipe_learning import LearningKeys
from flows.recipe_parts import Address, Block, ClassId, Name, RecipePath, SourcePath, chained, existing
from flows.recipe_prompts import PromptsBlock, check_looked_for, check_prompting_labels
from flows.recipe_rounds import RoundsBlock
from flows.results import FIRST, MOST_TEACHERS, Round
from flows.sizes import bytes_from
from storage.wording import ABOVE_ZERO, check_modality, check_pattern, plain_name
from students.spec import NnunetSpec, PromptableSpec, Shape


def _catalog_from_context(value: object, info: ValidationInfo) -> object:
    """Check the URL of a catalog, and resolve the file in it."""
    return resolve_catalog(value, folder=(info.context or {}).get("folder")) if isinstance(value, str) else value


LONGEST_NAME = 64
"""Letters of the name of a student."""
ArmName = Literal["ellipse", "ellipse-student", "few-gold", "all-gold", "gold-alone", "teacher-gold-boxes"]
UNTRAINED: frozenset[ArmName] = frozenset({"ellipse", "teacher-gold-boxes"})
"""Arms that train nobody."""


class ClassBlock(Block):
    """One class to segment."""

    name: Name
    volume_mm3: tuple[float, float] | None = None
    """Smallest and largest volume that anatomy allows; an object outside is not believed. Not judged where the spacing is unknown."""
    shape: Shape = "organ"
    """``tube`` or ``lesions``: the evaluation then also compares centre lines, or counts lesions."""

    @field_validator("volume_mm3")
    @classmethod
    def _rising(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 <= value[0] < value[1]:
            message = "must be two rising volumes in cubic millimetres, such as [1500, 6500]."
            raise ValueError(message)
        return value


class GoldBlock(Block):
    """Expert labels, used for thresholds on calibration cases and for scores on test cases."""

    path: SourcePath
    """A folder of label files named like their images."""
    map: dict[int | str, int] = Field(default_factory=dict)
    """Value in the file -> class id, such as ``{1: 1, 2: 1}`` to merge two parts, or ``{above 0: 1}`` for objects that are numbered one by one;
    empty takes values as they are."""
    suffix: str = ""
    """What follows the case id in the names of the label files, such as ``_1stHO``."""

    @field_validator("map", mode="before")
    @classmethod
    def _of_values(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        words = {key: " ".join(key.split()) if isinstance(key, str) else key for key in value}
        spelt = {int(word) if isinstance(word, str) and word.isdecimal() else word: value[key] for key, word in words.items()}
        strange = [key for key in spelt if isinstance(key, str) and key != ABOVE_ZERO]
        if strange:
            message = f"names {strange[0]!r}, which is no value in a file: give whole numbers, or {{{ABOVE_ZERO}: CLASS}} for all other values above 0."
            raise ValueError(message)
        return spelt


class IngestBlock(Block):
    """Where scans and weak prompts come from."""

    images: SourcePath
    modality: Annotated[str | None, AfterValidator(check_modality)] = None
    """DICOM's code, such as ``MR``, or ``other``; without it what DICOM files say."""
    exclude: tuple[str, ...] = ()
    """Shell patterns of names to leave out, such as ``gold/*``."""
    patient_from: Annotated[str | None, AfterValidator(check_pattern)] = None
    """A regular expression whose first group is the patient in a file's name; without it every file is its own patient."""
    channels: ChannelsKey = None
    """What the files of one case are, where each channel is a file: ``{t1: _0000, t2: _0001}``, or names alone for nnU-Net's numbers; without it
    what nnU-Net's ``dataset.json`` says. Empty takes each file for a case."""
    prompts: SourcePath | None = None
    gold: GoldBlock | None = None
    split: SourcePath | None = None
    """CSV with columns ``case`` and ``part`` (archive, calibration or test)."""


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


def _devices(value: object) -> object:
    """Check the names and write them in one way; whether they are here is asked where the teacher is needed."""
    words = value.split(",") if isinstance(value, str) else value
    return ",".join(parse_devices(words, where="")) if isinstance(words, list) and all(isinstance(word, str) for word in words) else value


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
    device: Annotated[str, BeforeValidator(_devices)] = AUTO
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


SemanticTest = Literal["prior", "student", "reverse"]


_MOST_WEIGHT = 4.0


def _edge_rule(value: object) -> bool | float | Literal["auto"]:
    """Keep YAML's ``1`` a number: it is the weight 1, and no truth."""
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and 0 < value <= _MOST_WEIGHT:
        return float(value)
    if value == "auto":
        return "auto"
    message = f"must be auto, true, false, or a weight above 0 and up to {_MOST_WEIGHT:g}, but is {value!r}."
    raise ValueError(message)


EdgeRule = Annotated[bool | float | Literal["auto"], PlainValidator(_edge_rule)]


class CleaningBlock(Block):
    """Which pieces and holes of one class stay, and how its edge is drawn."""

    components: int = Field(default=1, ge=1)
    """How many of the largest pieces stay, where ``largest_component`` is on."""
    piece_share: float = Field(default=0.1, gt=0, le=1)
    """Pieces from this share of the largest one on stay if they lie near it, and are ``ignore`` where they are taken away."""
    piece_gap_mm: float = Field(default=5.0, ge=0)
    """How near; 0 takes all but the largest away. Not judged where the spacing is unknown."""
    least_mm3: float = Field(default=0.0, ge=0)
    """Smaller pieces go; not judged where the spacing is unknown."""
    least_px: int = Field(default=0, ge=0)
    holes: Literal["slices", "3d", "none"] = "slices"
    """Holes that are closed within a slice are filled, or only those closed on all sides, or none."""
    holes_to_mm3: float | None = Field(default=None, ge=0)
    """Larger holes stay; not judged where the spacing is unknown."""
    holes_to_px: int | None = Field(default=None, ge=0)
    rectify_edges: EdgeRule = False
    """Whether intensity decides about the edge, weighed against the teacher's belief if a number is given; ``auto`` has calibration gold say whether, and how much."""
    """Let the intensity decide where the teacher's probability lies between 0.2 and 0.8."""
    disputed_from: float | None = Field(default=None, gt=0, le=0.5)
    """Share of the ensemble in the minority from which a voxel is ``ignore``."""


class RefineBlock(Block):
    """What of the teacher's drawing is believed."""

    consistency: Literal["none", "3d"] = "3d"
    largest_component: bool = True
    risk: float = Field(default=0.10, gt=0, lt=1)
    """Highest accepted expected disagreement (1 - Dice) of what is trained on; set on the calibration cases."""
    guarantee: Literal["none", "mask"] = "none"
    """``mask`` makes ``risk`` hold for new patients, by conformal risk control (docs/calibration.md)."""
    semantic: Annotated[tuple[SemanticTest, ...], BeforeValidator(chained)] = ("prior",)
    """Tests of whether a mask is of the right object (docs/uncertainty.md): ``prior`` compares place, size and brightness with other
    patients' masks, ``student`` trains two students that never saw the case, ``reverse`` asks what a mask teaches about calibration gold."""
    witness_budget: Annotated[float, BeforeValidator(seconds_from)] = 120.0
    """Seconds of training for each student of ``semantic: student``."""
    classes: dict[ClassId, CleaningBlock] = Field(default_factory=dict)
    """Rules for single classes; those that are not named get the defaults."""


class StudentBlock(LearningKeys):
    """The small model that ships."""

    kind: Literal["compact", "nnunet", "promptable"] = "compact"
    name: Name = "compact"
    """By default the kind."""
    budget: Annotated[float, BeforeValidator(seconds_from)] = 1200.0
    """Seconds of training; written as 90s, 20min or 1.5h. nnU-Net's own presets heed it only where it is given."""
    seed: int = 0
    device: Annotated[str, BeforeValidator(_devices)] = AUTO
    """``auto`` is one GPU, or the CPU where there is none; several, as ``cuda:0,cuda:1`` or a list, train a compact student together."""
    nnunet: NnunetSpec = NnunetSpec()
    """Of the kind ``nnunet``."""
    promptable: PromptableSpec = PromptableSpec()
    """Of the kind ``promptable``: the teacher's encoder, distilled from images alone."""

    @model_validator(mode="before")
    @classmethod
    def _called_by_its_kind(cls, value: object) -> object:
        return {"name": value["kind"]} | value if isinstance(value, dict) and isinstance(value.get("kind"), str) else value

    @model_validator(mode="after")
    def _kinds_have_their_own_keys(self) -> "StudentBlock":
        for other in ("nnunet", "promptable"):
            if self.kind != other and other in self.model_fields_set:
                message = f"has settings of {other}, but the kind is {self.kind}. Say kind: {other}, or leave them out."
                raise ValueError(message)
        if self.kind != "compact" and "," in self.device:
            message = f"trains {'an nnU-Net' if self.kind == 'nnunet' else 'a promptable student'} on one device, but device is {self.device}. Name one, or say kind: compact."
            raise ValueError(message)
        heard = {"targets", "confidence"} if self.kind == "nnunet" else set[str]()
        others = sorted(self.model_fields_set & LearningKeys.model_fields.keys() - heard)
        if self.kind != "compact" and others:
            why = "nnU-Net has its own network and losses" if self.kind == "nnunet" else "a promptable student learns from no label"
            message = f"has {', '.join(others)}, which is of kind: compact; {why}. Leave it out, or say kind: compact."
            raise ValueError(message)
        return self


class EvaluateBlock(Block):
    """What the student is compared with, on the test cases."""

    arms: tuple[ArmName, ...] = ("ellipse",)
    """What is compared beside student and teacher. Those but ``ellipse`` and ``teacher-gold-boxes`` train another student each, with the same budget."""
    tolerance_mm: float = Field(default=1.0, gt=0)
    """Of the normalised surface Dice: how far two borders may be apart and still count as equal."""
    gold_curve: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Numbers of archive patients, such as ``[1, 3, 5, 10]``: the same net is trained on the gold of so many, alone and beside pseudo-labels, for each."""
    gold_curve_seeds: tuple[int, ...] = ()
    """Each draws its own patients and trains anew; by default ``student.seed`` alone."""

    @field_validator("gold_curve", "gold_curve_seeds")
    @classmethod
    def _each_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(value)))


class Recipe(Block):
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
    rounds: RoundsBlock = RoundsBlock()
    evaluate: EvaluateBlock = EvaluateBlock()
    schedule: str | None = Field(default=None, pattern=r"^\S+( \S+){4}$")
    """Cron line for unattended runs; ``samdistill run`` runs at once and ignores it."""
    _round: Round = PrivateAttr(default=FIRST)
    _whole: "Recipe | None" = PrivateAttr(default=None)

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

    @model_validator(mode="after")
    def _prompts_fit_the_rest(self) -> "Recipe":
        check_prompting_labels(self.prompts, self.student.name)
        check_looked_for(self.prompts, {key: block.name for key, block in self.classes.items()})
        return self

    @model_validator(mode="after")
    def _gold_alone_has_gold(self) -> "Recipe":
        if "gold-alone" in self.evaluate.arms and self.student.gold is None:
            message = "evaluate.arms has gold-alone, but student.gold gives no gold to learn from. Give it, or take few-gold or all-gold."
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _curve_is_of_compact_students(self) -> "Recipe":
        if self.evaluate.gold_curve and self.student.kind != "compact":
            message = (
                f"evaluate.gold_curve is of kind: compact; {self.student.kind} does not learn from gold beside pseudo-labels. Leave it out."
            )
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _one_teacher_is_distilled(self) -> "Recipe":
        if self.student.kind != "promptable":
            return self
        if self.rounds.most > 1:
            message = f"rounds.most is {self.rounds.most}, but a promptable student learns from no label that a further round could better. Leave rounds out."
            raise ValueError(message)
        trained = [arm for arm in self.evaluate.arms if arm not in UNTRAINED]
        if trained:
            message = f"evaluate.arms has {', '.join(trained)}, which trains a student like the recipe's own on labels, but a promptable one learns from none. Leave it out."
            raise ValueError(message)
        if self.teacher.also:
            message = (
                "student.kind promptable distils one teacher, but teacher.also names more. Leave them out, or train a compact student."
            )
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _rules_are_about_these_classes(self) -> "Recipe":
        if strangers := sorted(set(self.refine.classes) - set(self.classes)):
            message = f"refine.classes names class {strangers[0]}, but the classes are {', '.join(map(str, sorted(self.classes)))}."
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _students_of_rounds_have_room(self) -> "Recipe":
        if self.rounds.most > 1 and len(self.student.name) > LONGEST_NAME - len("-r2"):
            message = (
                f"student.name has {len(self.student.name)} letters, but students of rounds are called after it, with -r2 behind: "
                f"give it {LONGEST_NAME - len('-r2')} at most."
            )
            raise ValueError(message)
        return self

    @property
    def round(self) -> Round:
        """The round that this recipe is run for: the first, unless ``in_round`` made it."""
        return self._round

    @property
    def whole(self) -> "Recipe":
        """The recipe as people wrote it, also of one that ``in_round`` made."""
        return self if self._whole is None else self._whole

    def in_round(self, number: int) -> "Recipe":
        """Return this recipe as a later round runs it: under names of its own, prompted by students, who are also heard about the teacher's masks."""
        if number == 1:
            return self.whole
        whole = self.whole
        now = Round(number=number, relabel=whole.rounds.relabel)
        tests = tuple(test for test in whole.refine.semantic if test != "student")
        asked = whole.model_copy(
            update={
                "student": whole.student.model_copy(update={"name": f"{whole.student.name}-r{number}"}),
                "refine": whole.refine.model_copy(update={"semantic": tests if now.relabel == "student" else (*tests, "student")}),
                "prompts": whole.prompts.model_copy(update={"source": (now.prompt_source,)}),
            }
        )
        asked._round, asked._whole = now, whole  # noqa: SLF001 - of the same class
        return asked

    @property
    def student_folder(self) -> Path:
        """Where the student of this recipe lives."""
        return self.results / "students" / self.student.name

    @property
    def report_folder(self) -> Path:
        """Where its report lives."""
        return self.results / "reports" / self.student.name
