"""How a student learns from its labels: the records of loss, targets, confidence, gold and consistency. Free of torch."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from students.frozen import Frozen, Growing

LossName = Literal["ce", "gce", "sce", "kl"]


class LossSpec(Frozen):
    """The loss: one voxel by voxel, and Dice over the batch."""

    name: LossName = "ce"
    """``ce``: cross-entropy. ``gce``: generalised cross-entropy (Zhang and Sabuncu 2018), which labels that contradict the network pull less.
    ``sce``: symmetric cross-entropy (Wang et al. 2019). ``kl``: divergence from the teacher's softened probabilities (Hinton et al. 2015)."""
    dice: float = Field(default=1.0, ge=0)
    """Weight of the Dice loss beside it; 0 leaves it out."""
    power: float = Field(default=0.7, gt=0, le=1)
    """Of ``gce``: near 0 it is cross-entropy, at 1 the mean absolute error. 0.7 is the paper's own."""
    alpha: float = Field(default=0.5, ge=0)
    """Of ``sce``: weight of the cross-entropy; the paper has 0.1 to 1 or more."""
    beta: float = Field(default=1.0, ge=0)
    """Of ``sce``: weight of the reverse cross-entropy."""
    temperature: float = Field(default=2.0, gt=0, le=20)
    """Of ``kl``: both sides are softened by it."""


class GoldSpec(Growing):
    """How experts' labels count beside pseudo-labels."""

    LATER: ClassVar[frozenset[str]] = frozenset({"correct"})
    share: float = Field(default=0.5, gt=0, le=1)
    """Of the patches of a batch, those of gold cases; exact over a few batches where a batch is too small for it."""
    weight: float = Field(default=1.0, gt=0)
    """How much a gold voxel counts against a pseudo-labelled one."""
    alone_from: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the training after which gold alone is learnt from; 1 mixes to the end."""
    agreement: float | None = Field(default=None, ge=0, le=1)
    """Least Dice of a pseudo-label with a student that learnt from the gold alone (``students.agreement``); heard before training begins."""
    correct: bool = False
    """Whether pseudo-labels are first corrected by students of the gold (``students.correction``); heard before training begins."""
    witness_seconds: float = Field(default=120.0, gt=0)
    """Training of each student that judges or corrects pseudo-labels."""


class Learning(Frozen):
    """What is learnt, and how each voxel counts."""

    loss: LossSpec = LossSpec()
    targets: Literal["hard", "soft"] = "hard"
    """``soft``: the label set's own probabilities, moved so that its threshold is one half, where they say the same as the label."""
    confidence: float = Field(default=0.0, ge=0, le=8)
    """Exponent of the weight ``|2p - 1|`` of a pseudo-labelled voxel; 0 counts all alike."""
    gold: GoldSpec = GoldSpec()
    """Heard only where there are gold cases to learn from."""
    consistency: float = Field(default=0.0, ge=0)
    """Highest weight of the squared difference to the averaged network where no label says anything (mean teacher, Tarvainen 2017)."""
    unlabeled_share: float = Field(default=0.25, ge=0, lt=1)
    """With consistency: of the patches of a batch, those of cases without any label, where there are such cases."""

    @property
    def needs_probability(self) -> bool:
        """Whether the label set's probabilities are read beside its class ids."""
        return self.targets == "soft" or self.confidence > 0
