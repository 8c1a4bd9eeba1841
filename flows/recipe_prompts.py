"""The block ``prompts`` of a recipe: which sources say where the teacher is to look, and with which options."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from distill.errors import PlanError
from distill.prompts.everything_options import EverythingOptions
from distill.prompts.exemplar_options import ExemplarOptions
from distill.prompts.presets import ThresholdOptions
from distill.prompts.registry import SOURCES, check_source
from distill.prompts.student_options import StudentPrompts
from distill.prompts.text_options import TextOptions
from flows.recipe_parts import Block, SourcePath, chained
from flows.results import PSEUDO_SET, TEACHER_SET


class TextBlock(TextOptions):
    """Of the source ``text``, with the checkpoint found from the recipe's folder."""

    checkpoint: SourcePath | None = None


class PromptsBlock(Block):
    """Where the teacher's prompts come from."""

    source: Annotated[tuple[str, ...], BeforeValidator(chained)] = Field(default=("weak",), min_length=1)
    """One source, or several in the order in which they are asked: the first that says something about a class of a case has it."""
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Of sources that other packages bring, by name."""
    exemplar: ExemplarOptions = ExemplarOptions()
    """Of the source ``exemplar``: from which gold cases it learns."""
    student: StudentPrompts = StudentPrompts()
    """Of the source ``student``: which label set's masks become prompts."""
    threshold: ThresholdOptions = ThresholdOptions()
    """Of the source ``threshold``: which intensities a class has, and what its pieces look like."""
    everything: EverythingOptions = EverythingOptions()
    """Of the source ``everything``: what the masks of a class look like."""
    text: TextBlock = TextBlock()
    """Of the source ``text``: which words describe a class, and which model reads them."""

    @field_validator("source")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            try:
                check_source(name)
            except PlanError as error:
                message = f"is wrong: {error}"
                raise ValueError(message) from error
        if len(set(value)) < len(value):
            message = f"names a source twice: {', '.join(value)}. Each is asked once; leave one out."
            raise ValueError(message)
        return value

    @field_validator("options")
    @classmethod
    def _of_others(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if own := sorted(SOURCES.keys() & value.keys()):
            message = f"holds options of sources that other packages bring, but {own[0]} has a block of its own: write prompts: {{{own[0]}: ...}}."
            raise ValueError(message)
        return value

    @property
    def unasked(self) -> tuple[str, ...]:
        """Return the sources that have options here and are not in the chain, so that nothing comes of these."""
        ours = [name for name in SOURCES if getattr(self, name) != type(self).model_fields[name].default]
        return tuple(name for name in (*ours, *sorted(self.options)) if name not in self.source)


def check_prompting_labels(block: PromptsBlock, student: str) -> None:
    """Refuse label sets that cannot become prompts, as a run of the student of this name writes them itself.

    Raises:
        ValueError: naming the label set and what to write instead.
    """
    labels, own = block.student.labels, f"student/{student}"
    if "student" not in block.source:
        return
    if labels is None:
        message = (
            "the source of prompts 'student' needs a label set of an earlier student: prompts: {source: student, student: {labels: student/NAME}}. "
            "'samdistill predict results/students/NAME ARCHIVE' writes it for every case."
        )
        raise ValueError(message)
    if labels == own or labels in {TEACHER_SET, PSEUDO_SET} or labels.startswith(f"{TEACHER_SET}-"):
        message = (
            f"prompts.student.labels is {labels!r}, which this run itself writes: it would never come to an end. "
            f"Name another label set, or give the student of this run another name (student.name is {student!r})."
        )
        raise ValueError(message)


def check_looked_for(block: PromptsBlock, classes: Mapping[int, str]) -> None:
    """Refuse options about classes that there are not, and text without a model.

    Raises:
        ValueError: naming the option and the classes.
    """
    known = {word for key, name in classes.items() for word in (str(key), name)}
    for where, named in (
        ("threshold.classes", block.threshold.classes),
        ("everything.classes", block.everything.classes),
        ("text.words", block.text.words),
    ):
        if strangers := sorted(set(named) - known):
            message = f"prompts.{where} is about {strangers[0]!r}, but there is no such class. Known: {', '.join(sorted(known))}."
            raise ValueError(message)
    weights = block.text.checkpoint
    if "text" in block.source and (weights is None or (block.text.model is None and not weights.is_dir())):
        missing = "checkpoint" if weights is None else "model, and its checkpoint is a file, which does not say what it is of"
        message = (
            f"prompts.source names text, which has no {missing}.\n"
            "Add prompts: {text: {model: ViT-B-32, checkpoint: WEIGHTS}}, or name as checkpoint a folder with open_clip_config.json."
        )
        raise ValueError(message)
