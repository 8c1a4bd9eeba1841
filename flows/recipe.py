"""The recipe: one YAML file that describes a whole run, as values that have been checked.

Every key has a default that works, except ``archive`` and ``classes``. Relative paths count from the recipe's own folder, and
``${NAME}`` in a path or address is taken from the environment.
"""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from distill.intensity import IntensitySpec
from flows.places import resolve_catalog
from flows.recipe_channels import ChannelsKey
from flows.recipe_evaluate import UNTRAINED, EvaluateBlock
from flows.recipe_parts import Address, Block, ClassId, Name, RecipePath, SourcePath
from flows.recipe_prompts import PromptsBlock, check_looked_for, check_prompting_labels
from flows.recipe_refine import RefineBlock
from flows.recipe_rounds import RoundsBlock
from flows.recipe_student import StudentBlock
from flows.recipe_teacher import TeacherBlock, UncertaintyBlock
from flows.results import FIRST, Round
from storage.wording import ABOVE_ZERO, check_modality, check_pattern, plain_name
from students.spec import Shape


def _catalog_from_context(value: object, info: ValidationInfo) -> object:
    """Check the URL of a catalog, and resolve the file in it."""
    return resolve_catalog(value, folder=(info.context or {}).get("folder")) if isinstance(value, str) else value


LONGEST_NAME = 64
"""Letters of the name of a student."""


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
                "refine": whole.refine.model_copy(update={"semantic": (*tests, "student") if now.asks_teacher else tests}),
                "prompts": whole.prompts if now.relabel == "mean" else whole.prompts.model_copy(update={"source": (now.prompt_source,)}),
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
