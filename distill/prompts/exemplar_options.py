"""What a recipe may say to the source ``exemplar``; light, as recipes are read by programs that need no model."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ExemplarOptions(BaseModel):
    """From which gold the classes are learnt, and how finely."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cases: tuple[str, ...] = Field(default=(), max_length=10)
    """Ids of 1 to 10 calibration cases with gold; empty takes ``count`` of them, spread evenly over the patients."""
    count: int = Field(default=5, ge=1, le=10)
    """How many cases to take where none is named."""
    slices: int = Field(default=12, ge=2, le=64)
    """Of a volume, at most so many slices with a class, and as many without, are learnt from."""
    prototypes: int = Field(default=4, ge=1, le=32)
    """Typical features per class."""
    background: int = Field(default=16, ge=1, le=128)
    """Typical features of everything else."""
    variations: int = Field(default=8, ge=0, le=32)
    """How often each exemplar slice is also seen turned, shifted, scaled and brighter or darker; fewer where there are many slices."""
    presence: bool = True
    """Whether "nothing here" is an answer; needs exemplar slices without the class."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.cases)) < len(self.cases):
            message = f"exemplar.cases names a case twice: {', '.join(self.cases)}. Name each once."
            raise ValueError(message)
        return self
