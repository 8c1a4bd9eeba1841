"""The keys of a recipe that say how a student learns: loss, targets, confidence, gold, and cases without labels."""

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from flows.durations import seconds_from
from flows.recipe_parts import Block
from students.learning import GoldSpec, Learning, LossSpec
from students.spec import Size


def _named(value: object) -> object:
    """Let the name of a loss stand for the block."""
    return {"name": value} if isinstance(value, str) else value


class TrainingGoldBlock(Block):
    """Experts' labels of archive cases that the student may learn from."""

    cases: tuple[str, ...] = ()
    """Cases by name; never of the calibration or test part."""
    patients: int | None = Field(default=None, ge=1)
    """Instead of names: all gold of so many patients of the archive part, drawn by ``student.seed``."""
    share: float = Field(default=GoldSpec().share, gt=0, le=1)
    """Of the patches of a batch."""
    weight: float = Field(default=GoldSpec().weight, gt=0)
    """How much a gold voxel counts against a pseudo-labelled one."""
    alone_from: float = Field(default=GoldSpec().alone_from, ge=0, le=1)
    """Share of the training after which gold alone is learnt from."""
    agreement: float | None = Field(default=None, ge=0, le=1)
    """Least Dice of a pseudo-label with a student that learnt from the gold alone; where the two differ, voxels are ``ignore``."""
    correct: bool = False
    """Have two students of the gold, one of which sees the teacher's masks too, correct the pseudo-labels before anybody learns from them."""
    witness_budget: Annotated[float, BeforeValidator(seconds_from)] = 120.0
    """Seconds of training for each student that judges or corrects pseudo-labels."""

    @property
    def how(self) -> GoldSpec:
        """How the chosen cases count."""
        return GoldSpec(
            share=self.share,
            weight=self.weight,
            alone_from=self.alone_from,
            agreement=self.agreement,
            correct=self.correct,
            witness_seconds=self.witness_budget,
        )

    @model_validator(mode="after")
    def _one_way_of_choosing(self) -> "TrainingGoldBlock":
        if bool(self.cases) == (self.patients is not None):
            message = "needs either cases, by name, or patients, a number: which gold may be learnt from?"
            raise ValueError(message)
        if self.correct and self.agreement is not None:
            message = "has both correct and agreement: pseudo-labels are either corrected by students of the gold, or cut to what one agrees with. Leave one out."
            raise ValueError(message)
        return self


def _a_net(value: str) -> str:
    """Refuse a net that is none, and say which there are."""
    size, _, dimensions = value.partition("-")
    if size not in get_args(Size) or dimensions not in {"", "2d", "2.5d", "3d"}:
        message = (
            f"must be a size ({', '.join(get_args(Size))}), with -2d, -2.5d or -3d after it if wanted, such as small-3d, but is {value!r}."
        )
        raise ValueError(message)
    return value


class LearningKeys(Block):
    """What ``student`` says about the network and about learning."""

    net: Annotated[str, AfterValidator(_a_net)] = "standard"
    """Size of the network, and whether it looks at slices, at slices with their neighbours, or at volumes; planned from the cases otherwise."""

    batch: int | None = Field(default=None, ge=1)
    """Patches of a step, which several devices share; 2 volumes or 4 slices where nothing is said."""
    loss: Annotated[LossSpec, BeforeValidator(_named)] = LossSpec()
    """``ce``, ``gce``, ``sce`` or ``kl``, or the block."""
    targets: Literal["hard", "soft"] = "hard"
    """``soft`` learns the pseudo-labels' probabilities."""
    confidence: float = Field(default=0.0, ge=0, le=8)
    """Exponent of the weight ``|2p - 1|`` of a voxel; 0 counts all alike."""
    hints: Literal["none", "teacher"] = "none"
    """``teacher`` shows the student what the teacher believes, a channel for each class beside the image: it then answers only where the teacher has drawn."""
    gold: TrainingGoldBlock | None = None
    """Experts' labels to learn from beside pseudo-labels."""
    consistency: float = Field(default=0.0, ge=0)
    """Weight of agreement with the averaged network where no label says anything; cases without believed labels take part then."""
    unlabeled_share: float = Field(default=0.25, ge=0, lt=1)
    """Of the patches of a batch, those of such cases."""

    @property
    def network(self) -> dict[str, str]:
        """Size and dimensions, as the trainer is told."""
        size, _, dimensions = self.net.partition("-")
        return {"size": size, "dimensions": dimensions or "auto"}

    @property
    def learning(self) -> Learning:
        """What the trainer is told."""
        how = GoldSpec() if self.gold is None else self.gold.how
        return Learning(
            loss=self.loss,
            targets=self.targets,
            confidence=self.confidence,
            gold=how,
            consistency=self.consistency,
            unlabeled_share=self.unlabeled_share,
        )
