"""How much to believe: thresholds set on a few gold cases that nothing else uses.

With gold on the ``calibration`` part, the probability threshold and the smoothing of each class are those that bring the
teacher's masks nearest to gold (a systematic over- or under-segmentation is what a student would learn, random wobble averages
out), and the agreement from which a mask is accepted is the lowest at which the accepted calibration cases lose at most
``risk`` of Dice on average. That average is of the calibration cases; where a guarantee for new patients is asked for
(``distill.conformal``), the same patients cannot also choose how masks are cut, and conformal risk control sets the agreement.
A temperature, a predicted Dice and the guarantees at the recipe's own cut are written down beside. Without gold the documented
defaults stand, and the result says so: every figure is then agreement, not accuracy.

Where gold shows that no agreement holds the risk, the default agreement stands as well, since an empty training set helps nobody and one
hard class would take all others with it; but the result carries a warning with what accepted masks lose.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np

from distill.cleaning import ClassRule
from distill.conformal import Guarantee, needed_patients
from distill.errors import CalibrationError
from distill.evidence import Evidence, GoldCase, count_cut, evidence_of, gold_cases
from distill.gold_gaps import open_in_words, undrawn_in_words
from distill.intensity import IntensitySpec
from distill.prompt_mix import PromptMix
from distill.reliability import QualityFit, TemperatureFit, fit_quality, fit_temperature
from distill.rings import Ring, ring
from distill.risk_control import mask_guarantee, missed_guarantee, voxel_guarantee
from distill.thresholds import dices, mean_bias, tuned
from storage import Archive, ClassInfo

CALIBRATION = "7"
"""Raised whenever calibration finds other figures or writes down more of them."""
SMOOTHING_MM = (0.0, 0.7, 1.0, 1.4, 2.0)
LEAST_PATIENTS = 3
"""With fewer gold patients a threshold would be fitted to their noise; the defaults stand instead."""
RING_LEVEL = 0.10
"""Share of new patients for whom one of the two sides of the ring may fail; takes 19 patients."""
Wanted = Literal["none", "mask"]
"""Which guarantee sets the rules: none, or the one on the Dice lost in accepted masks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCalibration:
    """What was set for one class, from how much, and what it gained."""

    class_id: int
    rule: ClassRule
    patients: int
    """Gold patients used; 0 means the defaults stand."""
    dice_before: float
    """Mean Dice of the teacher's masks at the default rule, over the calibration cases."""
    dice_after: float
    """The same at the chosen rule; optimistic, as the rule was chosen on these cases."""
    volume_bias_before: float
    """Mean of (mask volume - gold volume) / gold volume at the default rule."""
    volume_bias_after: float
    note: str
    """How the threshold came about: on which share of the calibration cases, guaranteed for whom, or why the defaults stand."""
    warning: str = ""
    """What was wanted and is not so: the risk is out of reach, or a guarantee that was asked for cannot be given. Empty where all is well."""
    remedy: str = ""
    """What a person may do about a guarantee that cannot be given."""
    guaranteed: bool = False
    """Whether ``guarantees[0]`` is about the masks as this rule accepts them; without it, every one is about the recipe's own cut alone."""
    unguaranteed: str = ""
    """Why it is not."""
    temperature: TemperatureFit | None = None
    quality: QualityFit | None = None
    """From scores to a predicted Dice at the rule."""
    guarantees: tuple[Guarantee, ...] = ()
    """On accepted masks, on voxels outside the band, on what is missed; each says which masks it is about, or why there is none."""
    ring: Ring | None = None


def calibrate(  # noqa: PLR0913 - keyword-only, one for each thing a recipe may say about it
    archive: Archive,
    classes: Sequence[ClassInfo],
    *,
    source: str = "teacher/r1",
    rules: dict[int, ClassRule] | None = None,
    risk: float = 0.2,
    gold: str = "gold",
    smoothing_mm: Sequence[float] = SMOOTHING_MM,
    guarantee: Wanted = "none",
    taught: Sequence[str] = (),
    unheard: Collection[str] = (),
    prompted: Mapping[int, PromptMix] | None = None,
    intensity: IntensitySpec | None = None,
    weigh_edges: Collection[int] = (),
) -> dict[int, ClassCalibration]:
    """Set each class's rule on the cases of the ``calibration`` part that carry gold and the source label set.

    Args:
        archive: the archive; only its ``calibration`` part is read.
        classes: which classes.
        source: the teacher's label set, with probabilities.
        rules: what the recipe fixed; thresholds and smoothing in them are starting points.
        risk: largest mean Dice loss (1 - Dice) among accepted masks; with a guarantee, the level of it.
        gold: name of the gold label set.
        smoothing_mm: lengths to choose from; ``(0.0,)`` leaves slices as they are.
        guarantee: ``mask`` leaves threshold and smoothing as they are and sets ``accept_from`` by conformal risk control, where there
            are patients enough and a threshold that holds the level; otherwise as for ``none``, and the warning says that nothing is guaranteed.
        taught: sources of prompts that learnt from gold of these very patients; nothing is guaranteed of others then, whoever asks.
        unheard: scores that must not predict the Dice, such as those of tests that are no longer asked: new masks have none.
        prompted: how calibration and archive cases were prompted, by class; nothing is guaranteed where no source prompted both.
        intensity: grey values by which a rule mends edges.
        weigh_edges: classes for which gold is to say whether intensity is heard about edges.

    Raises:
        CalibrationError: if ``risk`` is not between 0 and 1.
    """
    if not 0 < risk < 1:
        message = f"risk must lie between 0 and 1 (the mean Dice loss tolerated in accepted masks), but is {risk}."
        raise CalibrationError(message)
    found = {}
    for info in classes:
        rule = (rules or {}).get(info.id, ClassRule())
        searched = info.id in weigh_edges
        looks = (intensity or IntensitySpec()) if rule.rectify_edges or searched else None
        cases = gold_cases(archive, info.id, source=source, gold=gold, intensity=looks)
        mix = (prompted or {}).get(info.id, PromptMix())
        asked = _Asked(
            risk=risk,
            guarantee=guarantee,
            smoothing_mm=tuple(smoothing_mm),
            taught=tuple(taught),
            unheard=frozenset(unheard),
            mix=mix,
            weigh_edges=searched,
        )
        found[info.id] = _calibrate_class(cases, info.id, rule, asked)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What the recipe asks of calibration, the same for every class."""

    risk: float
    guarantee: Wanted
    smoothing_mm: tuple[float, ...]
    taught: tuple[str, ...]
    unheard: frozenset[str]
    mix: PromptMix
    weigh_edges: bool

    @property
    def void(self) -> str:
        """Why nothing can be guaranteed of new patients, however many there are; empty where something may be."""
        if self.taught:
            return f"the prompts of {' and '.join(self.taught)} were learnt from gold of calibration patients"
        return f"no source of prompts is that of both: {self.mix.in_words()}" if self.mix.shares_no_source else ""


def _calibrate_class(there: list[GoldCase], class_id: int, start: ClassRule, asked: _Asked) -> ClassCalibration:
    judged = [case for case in there if case.judged.any()]
    cases = [case for case in judged if case.gold.any()]
    patients, undrawn = len({case.patient for case in cases}), undrawn_in_words(judged)
    if patients < LEAST_PATIENTS:
        return _with_gaps(_uncalibrated(class_id, start, patients, asked), open_in_words(there), undrawn)
    evidence = [each for each in (evidence_of(case, start) for case in judged) if each.told]
    guarantees = () if asked.void else guarantees_of(evidence, start, asked.risk)
    promised = next((each for each in guarantees if each.kind == "mask" and each.feasible and asked.guarantee == "mask"), None)
    rule, note, warning = (
        _fixed(start, promised, evidence)
        if promised is not None
        else tuned(cases, start, judged=judged, risk=asked.risk, smoothing_mm=asked.smoothing_mm, weigh_edges=asked.weigh_edges)
    )
    why = "" if promised is not None else _why_none(guarantees, asked)
    refused = f"no guarantee: {why}" if why and asked.guarantee == "mask" else ""
    strange = "" if asked.mix.shares_no_source and refused else asked.mix.in_words()
    found = ClassCalibration(
        class_id=class_id,
        rule=rule,
        patients=patients,
        dice_before=float(np.mean(dices(cases, start))),
        dice_after=float(np.mean(dices(cases, rule))),
        volume_bias_before=mean_bias(cases, start),
        volume_bias_after=mean_bias(cases, rule),
        note=note,
        warning="; ".join(each for each in (refused, warning, strange) if each),
        remedy=_remedy(guarantees, asked) if refused else "",
        guaranteed=promised is not None,
        unguaranteed=why,
        temperature=_temperature(judged, rule),
        quality=_quality(cases, rule, asked.unheard),
        guarantees=guarantees,
        ring=None if asked.void else _ring(evidence, start, "mm" if all(case.spacing_known for case in judged) else "px"),
    )
    return _with_gaps(found, open_in_words(there, len(judged) - len(evidence)), undrawn)


def _with_gaps(found: ClassCalibration, left_open: str, undrawn: str) -> ClassCalibration:
    """Add what experts left open to the note, and what they seem to have left undrawn to the warning."""
    remedy = "mark as 255 where nobody drew in these cases" if undrawn else ""
    return replace(
        found,
        note="; ".join(each for each in (found.note, left_open) if each),
        warning="; ".join(each for each in (found.warning, undrawn) if each),
        remedy="; ".join(each for each in (found.remedy, remedy) if each),
    )


def _temperature(judged: Sequence[GoldCase], rule: ClassRule) -> TemperatureFit | None:
    """Fit to the cases of which something was judged near what the teacher drew; nothing where that is so of one patient alone."""
    counted = [(count_cut(case, rule), case.patient) for case in judged]
    known = [(counts, patient) for counts, patient in counted if counts.voxels]
    patients = [patient for _, patient in known]
    return fit_temperature([counts for counts, _ in known], patients) if len(set(patients)) > 1 else None


def _uncalibrated(class_id: int, start: ClassRule, patients: int, asked: _Asked) -> ClassCalibration:
    held = f"{patients} gold patients in the calibration part, {LEAST_PATIENTS} needed"
    return ClassCalibration(
        class_id=class_id,
        rule=start,
        patients=0,
        dice_before=np.nan,
        dice_after=np.nan,
        volume_bias_before=np.nan,
        volume_bias_after=np.nan,
        note=f"{held}: the default thresholds stand and are not calibrated; figures are agreement, not accuracy",
        warning=f"no guarantee: {held}" if asked.guarantee == "mask" else "",
        remedy=_more_patients(patients, asked.risk) if asked.guarantee == "mask" else "",
        unguaranteed=held,
    )


def guarantees_of(evidence: Sequence[Evidence], rule: ClassRule, level: float) -> tuple[Guarantee, Guarantee, Guarantee]:
    """Return what can be guaranteed of masks cut by ``rule``: of accepted masks, of voxels outside a band, of what is missed."""
    patients, cut = [each.patient for each in evidence], cut_in_words(rule)
    scores, counts = [each.scores["pairwise_dice"] for each in evidence], [each.counts for each in evidence]
    return (
        mask_guarantee(scores, [each.dice for each in evidence], patients, level=level, subject=f"masks ({cut})"),
        voxel_guarantee(counts, patients, level=level, threshold=rule.threshold, subject=f"drawings ({cut})"),
        missed_guarantee(counts, patients, level=level, subject=f"drawings ({_smoothing(rule)})"),
    )


def _ring(evidence: Sequence[Evidence], rule: ClassRule, unit: Literal["mm", "px"]) -> Ring:
    outer, inner = [each.outer_mm for each in evidence], [each.inner_mm for each in evidence]
    subject = f"mask ({cut_in_words(rule)})"
    return ring(outer, inner, [each.patient for each in evidence], level=RING_LEVEL, unit=unit, subject=subject)


def cut_in_words(rule: ClassRule) -> str:
    """Say how a mask is cut, since a guarantee is about one cut and no other."""
    cleaned = (", largest component" if rule.largest_component else "") + (", edges by intensity" if rule.rectify_edges else "")
    return f"cut at {rule.threshold:.2f}, {_smoothing(rule)}{cleaned}"


def _smoothing(rule: ClassRule) -> str:
    return f"smoothed by {rule.smooth_mm:g} mm" if rule.smooth_mm > 0 else "not smoothed"


def _fixed(start: ClassRule, promised: Guarantee, evidence: Sequence[Evidence]) -> tuple[ClassRule, str, str]:
    """Return the rule with the guaranteed threshold, the note that says what is guaranteed, and a warning where accepted masks alone lose more."""
    accept = start.accept_from if promised.threshold is None else promised.threshold
    accepted = [each.dice for each in evidence if each.scores["pairwise_dice"] >= accept]
    lost = float(np.nan_to_num(1 - np.array(accepted)).mean()) if accepted else 0.0
    note = (
        f"guaranteed for new patients like the {promised.patients} of calibration: masks accepted from an agreement of {accept:.3f} on lose at most "
        f"{promised.level:.2f} of Dice per patient on average, counting those not accepted as losing nothing "
        f"({promised.kept or 0:.0%} of the calibration masks are accepted; not guaranteed: those lose {lost:.2f} on average)"
    )
    above = f"accepted calibration masks alone lose {lost:.2f}, above the risk of {promised.level:.2f}; the guarantee is about all masks of a patient"
    return replace(start, accept_from=accept, review_from=min(start.review_from, accept)), note, above if lost > promised.level else ""


def _why_none(guarantees: Sequence[Guarantee], asked: _Asked) -> str:
    """Say why nothing is guaranteed of the masks that are accepted."""
    if asked.void:
        return asked.void
    if asked.guarantee == "none":
        return "the same patients chose the thresholds (refine: {guarantee: mask} asks for a guarantee)"
    return guarantees[0].statement.removeprefix("No guarantee: ").rstrip(".")


def _remedy(guarantees: Sequence[Guarantee], asked: _Asked) -> str:
    """Say what may be done about a guarantee that cannot be given."""
    if asked.taught:
        return "take prompts from other sources (prompts.source), or leave refine.guarantee out"
    if asked.void:
        return "prompt calibration cases as those of the archive, or leave refine.guarantee out"
    refused = guarantees[0]
    within = math.ceil(100 * (refused.would_hold_at or 1.0)) / 100
    ways = [f"say refine.risk: {within:g}"] if within < 1 else []
    if refused.would_do is None:
        mend = "try better prompts, another teacher or more members (with masks like these no number of patients keeps half of them)"
        return " or ".join([*ways, mend])
    more = max(refused.would_do, refused.needed) - refused.patients
    like = " (about, if they are like these and half of the masks are to be kept)" if refused.would_do > refused.needed else ""
    who = f"{_patients(more)}{like}"
    return ", or ".join([f"bring in gold of {who}", *ways])


def _more_patients(there: int, risk: float) -> str:
    """Say how many more gold patients it takes, or for which risk those that are there would do."""
    needed, within = needed_patients(risk), math.ceil(100 / (there + 1)) / 100
    lower = f", or say refine.risk: {within:g}" if within < 1 else ""
    return f"bring in gold of {_patients(needed - there)}{lower}"


def _patients(more: int) -> str:
    return f"{more} more calibration {'patient' if more == 1 else 'patients'}"


def _quality(cases: Sequence[GoldCase], rule: ClassRule, unheard: Collection[str]) -> QualityFit:
    heard = [{name: value for name, value in case.scores.items() if name not in unheard} for case in cases]
    return fit_quality(heard, dices(cases, rule).tolist(), [case.patient for case in cases])


def as_json(calibrations: dict[int, ClassCalibration]) -> dict[str, dict[str, object]]:
    """Return calibrations as JSON values, by class id."""
    return {str(class_id): asdict(each) for class_id, each in calibrations.items()}
