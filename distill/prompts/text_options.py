"""What the source ``text`` is given: a CLIP checkpoint, and words for the classes."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from distill.prompts.everything_options import GridOptions
from distill.prompts.presets import Given


class TextOptions(BaseModel):
    """Which words describe the classes, and which model compares masks with them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None
    """Architecture as open_clip names it, such as ``ViT-B-32``; needed where the checkpoint is a file."""
    checkpoint: Path | None = None
    """Its weights, a file of yours, or a folder with ``open_clip_config.json``, weights and tokenizer, as open_clip saves and hubs offer; nothing is ever
    downloaded. Needed with ``source: text``. Relative paths count from the recipe's folder."""
    words: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """By name or id of the class: one or more phrases. Without them the class's name, dashes read as blanks."""
    templates: tuple[str, ...] = Field(default=("a photo of the {}", "a medical image of the {}", "the {} on a scan"), min_length=1)
    """Sentences around each phrase; their features are averaged."""
    background: tuple[str, ...] = ("background", "other tissue", "nothing in particular")
    """What masks of no class are called; at least one phrase."""
    least: float = Field(default=0.5, gt=0, lt=1)
    """Probability of a class, against the others and the background, from which a mask is taken."""
    most: int = Field(default=1, ge=1, le=1000)
    """Masks of a class on one slice."""
    context: float = Field(default=0.2, ge=0, le=2)
    """How much of the surroundings is shown, as a share of the mask's box; outside the mask they are dimmed."""
    grid: GridOptions = GridOptions()
    margin: float = Field(default=0.05, ge=0, le=0.5)
    give: tuple[Given, ...] = Field(default=("box", "point", "mask"), min_length=1)

    @field_validator("words", mode="before")
    @classmethod
    def _lists_by_name(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {str(key): (words,) if isinstance(words, str) else words for key, words in value.items()}

    @field_validator("templates")
    @classmethod
    def _have_a_place(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            if each.count("{}") != 1:
                message = f"{each!r} must have one {{}} where the words go."
                raise ValueError(message)
        return value

    @field_validator("background")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            message = "names nothing, so every mask would be some class. Keep one phrase, such as [background]."
            raise ValueError(message)
        return value
