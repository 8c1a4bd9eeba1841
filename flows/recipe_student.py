"""The keys of a recipe that say which student is trained; `flows.recipe_learning` has those that say what it learns."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, model_validator

from distill.devices import AUTO
from flows.durations import seconds_from
from flows.recipe_learning import LearningKeys
from flows.recipe_parts import Devices, Name
from students.spec import NnunetSpec, PromptableSpec


class StudentBlock(LearningKeys):
    """The small model that ships."""

    kind: Literal["compact", "nnunet", "promptable"] = "compact"
    name: Name = "compact"
    """By default the kind."""
    budget: Annotated[float, BeforeValidator(seconds_from)] = 1200.0
    """Seconds of training; written as 90s, 20min or 1.5h. nnU-Net's own presets heed it only where it is given."""
    seed: int = 0
    device: Devices = AUTO
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
