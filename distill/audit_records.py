"""What the filter's own report says, as records: the JSON beside the page is ``FilterReport``. NaN never occurs: what is not known is null."""

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

Kind = Literal["Dice with gold", "agreement"]
"""What a figure measures: accuracy against an expert, or how far our own opinions agree, which an error that all share leaves untouched."""
Group = Literal["test", "archive", "calibration"]
GROUPS: tuple[Group, ...] = get_args(Group)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Average(_Record):
    """A mean over patients with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    masks: int
    patients: int


class Share(_Record):
    """A part of a count, with its 95 % interval: Wilson's, or by bootstrap over patients where these have several masks."""

    count: int
    of: int
    share: float | None
    low: float | None
    high: float | None
    patients: int | None = None
    """Who were drawn for a bootstrap interval; None for Wilson's, which is as wide as few masks make it."""


class CurvePoint(_Record):
    """The mean risk of the most confident ``coverage`` of all masks."""

    coverage: float
    risk: float


class RiskCoverage(_Record):
    """What trusting only the most confident masks would bring."""

    group: Group | None
    """The cases with gold it is about; None for agreement."""
    about: str
    """The same in words, with what must be known of these cases."""
    kind: Kind
    risk: str
    """What the risk is: ``1 - Dice with gold``, or one minus a named agreement."""
    masks: int
    patients: int
    aurc: float
    normalised_aurc: float | None
    """0: no better than chance; 1: the best possible order. None where the order cannot matter, or is that of the risk itself."""
    whole: float
    """Mean risk of all masks."""
    at_80: float
    """Mean risk of the most confident 80 %."""
    gain_at_80: Average | None
    """How much higher Dice (or agreement) is there than in a random 80 %; None with fewer than two patients."""
    points: tuple[CurvePoint, ...]


class ReliabilityBin(_Record):
    """Voxels with about one probability."""

    said: float
    """Mean probability."""
    was: float
    """Share of them that are the object."""
    share: float
    """Of all voxels counted."""


class Reliability(_Record):
    """Probabilities against frequencies, inside the widened boxes around what the teacher drew."""

    about: str
    masks: int
    ece: float
    brier: float
    bins: tuple[ReliabilityBin, ...]


class CalibrationPlot(_Record):
    """Reliability as it is, and after the temperature of calibration where there is one."""

    before: Reliability
    after: Reliability | None
    temperature: float | None


class GroupRow(_Record):
    """One value of one attribute: what the filter removes of it, and how good what it keeps is."""

    attribute: str
    value: str
    patients: int
    removed: Share
    """Masks that are not accepted, of those drawn in the archive part."""
    p: float | None
    """That it is removed as often as the rest; None where that cannot be tested."""
    p_adjusted: float | None
    """After Holm (1979), over all tests of the report."""
    test: str
    flagged: bool
    kept_quality: Average | None
    whole_quality: Average | None
    note: str


class ScoreRank(_Record):
    """How well one score orders masks by their Dice."""

    score: str
    masks: int
    spearman: float | None
    normalised_aurc: float | None


class Dot(_Record):
    """One mask with gold: what was predicted of it, and its Dice."""

    case: str
    predicted: float
    dice: float
    verdict: str
    low: float | None = None
    """Of the error bars, where a Dice is predicted."""
    high: float | None = None


class RingRow(_Record):
    """How far from its edge a mask is to be believed (``distill.rings``)."""

    level: float
    """Share of new patients for whom one of the two sides may fail."""
    patients: int
    """Gold patients there are ..."""
    needed: int
    """... and how many it takes."""
    outer: float | None
    """Grown by so much, a mask covers ``coverage`` of the object; None where nothing can be said."""
    inner: float | None
    """Of what is left of a mask that is shrunk by so much, ``coverage`` is the object."""
    unit: Literal["mm", "px"]
    coverage: float
    statement: str
    """All of it in words, with the cut that it is about; or why nothing can be said."""


class Thresholds(_Record):
    """The rule that masks were judged by, and where it comes from."""

    probability: float
    ignore_band: float
    smooth_mm: float
    largest_component: bool
    volume_mm3: tuple[float, float] | None
    accept_from: float
    review_from: float
    identity_from: dict[str, float]
    """Scores below which a mask is taken for another object, where they were measured."""
    patients: int
    """Gold patients that set it; 0 means documented defaults."""
    note: str
    warning: str = ""
    """What the recipe wanted of the threshold and did not get; empty where all is well."""
    remedy: str = ""
    """What may be done about it, where that is known."""
    guaranteed: bool = False
    """Whether the first guarantee is about the masks that are accepted; else each is about masks as the recipe itself would cut them."""
    unguaranteed: str = ""
    """Why nothing is guaranteed of the accepted masks."""
    guarantees: tuple[str, ...]
    ring: RingRow | None = None
    """Of masks as the recipe itself would cut them; None without calibration, or where prompts were learnt from its gold."""
    assumptions: tuple[str, ...]


Gold = Literal[
    "known",
    "case not drawn by an expert",
    "class not looked for by the expert",
    "left open by the expert",
    "the teacher was not asked there, or is not believed",
]
"""Whether there is anything to hold a mask against."""


class PartRow(_Record):
    """What the filter did to the masks of one part, and how good they are; figures of different parts are never pooled here."""

    part: Group
    about: str
    removed: Share
    kept_quality: Average | None
    whole_quality: Average | None
    judged: float | None
    """Of what experts drew in masks that are kept: the share on slices that the teacher was asked about and is believed on. ``kept_quality`` is of these
    alone. None where no such mask has gold."""
    ignored: float | None
    """Mean share of the voxels of cases with a kept mask that nobody learns from; None where nothing is kept."""


class Shown(_Record):
    """One mask of the gallery."""

    heading: Literal["kept", "ignored", "review", "rejected"]
    pick: str
    """``best``, ``median``, ``worst``, ``random``: by Dice where it is known, else by the score that judges."""
    case: str
    part: Group
    class_id: int
    class_name: str
    verdict: str
    reason: str
    confidence: float
    dice: float | None
    """None without gold, and where neither the expert nor the teacher drew anything."""
    gold: Gold
    ignored_share: float


class ClassAudit(_Record):
    """Everything about one class."""

    class_id: int
    class_name: str
    confidence: str
    """The score that masks are ordered by: ``quality``, where all have it, else ``pairwise_dice``."""
    predicted: str
    """The score of the dots: ``predicted_dice``, where calibration found one."""
    kind: Kind
    verdicts: dict[str, int]
    """Masks of the archive part by verdict; masks, not cases."""
    reasons: dict[str, int]
    parts: tuple[PartRow, ...]
    """Test, archive and calibration cases, as far as there are masks of them."""
    measured: dict[str, int]
    """Part -> masks that the quality of groups, the scores and the dots are of."""
    curves: tuple[RiskCoverage, ...]
    groups: tuple[GroupRow, ...]
    scores: tuple[ScoreRank, ...]
    """On gold that set no threshold; empty without."""
    calibration: CalibrationPlot | None
    dots: tuple[Dot, ...]
    thresholds: Thresholds


class FilterReport(_Record):
    """What the filter did to an archive, and how far that can be believed."""

    format_version: Literal[1] = 1
    label_set: str
    source: str
    cases: int
    """With the label set, in all parts."""
    patients: int
    parts: dict[str, int]
    population: str
    """In words: whose masks the kept fractions are about."""
    gold_cases: dict[str, int]
    """By part."""
    gold_notes: tuple[str, ...] = ()
    """What experts left open in these cases, and in others."""
    reviewed: int
    """Masks with a person's verdict that counts."""
    classes: tuple[ClassAudit, ...]
    flags: tuple[str, ...]
    """Subgroups that the filter removes significantly more or less often than the rest."""
    warnings: tuple[str, ...]
    """What must be known before any figure is believed."""
    notes: tuple[str, ...]
    """How figures came about."""
    gallery: tuple[Shown, ...]
