"""A page about a student for people who think of using it: what it is, what it learnt from, how good it is, and what nobody knows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from students.errors import StudentFileError
from students.export.card_findings import findings
from students.origins import PromptableRecord
from students.outcome import stop_words, training_doubts
from students.promptable.words import facts
from students.results import Comparison, Evaluation, Measured
from students.spec import RoundsNote, StudentCard
from students.units import units_of

FILE = "MODEL_CARD.md"

_METRICS = {"dice": "Dice", "nsd": "NSD", "hd95_mm": "HD95 ({})", "volume_bias": "volume bias"}
_OF_SHAPES = {"cl_dice": "clDice", "lesion_f1": "lesion F1", "lesion_sensitivity": "lesions found", "false_lesions": "false lesions"}


_UNKNOWN_SIZES: dict[bool | str, str] = {
    True: "",
    False: " Pixel sizes were not known, so lengths are in pixels (px).",
    "mixed": " Voxel sizes were not known of all scans: lengths are in pixels there.",
}


def read_report(path: str | Path) -> Evaluation:
    """Read the JSON report of an evaluation.

    Args:
        path: The file, or the folder that it lies in.

    Raises:
        StudentFileError: if there is none, or it is damaged.
    """
    place = Path(path)
    file = place / "report.json" if place.is_dir() else place
    try:
        return Evaluation.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        message = f"{file}: this is no report of an evaluation ({type(error).__name__}). Give report.json, or the folder that it lies in."
        raise StudentFileError(message) from error


def model_card(card: StudentCard, report: Evaluation | None = None, *, use: str = "") -> str:
    """Return the page in Markdown.

    Args:
        card: The student's, or an export's.
        report: Of this student; without it, the page says that nobody has scored it.
        use: How this copy of it is used, in Markdown.

    Raises:
        StudentFileError: if the report is about a student of another name.
    """
    if report is not None and report.student not in (card.name, card.name.removesuffix("-int8")):
        message = f"the report is about the student {report.student!r}, not about {card.name!r}. Give the report of this one."
        raise StudentFileError(message)
    if card.promptable is not None:
        parts = [
            _promptable_head(card, card.promptable),
            _training(card),
            _scores(report),
            _promptable_limits(card, report),
            _promptable_technical(card, card.promptable),
        ]
    else:
        parts = [
            _head(card),
            f"## Use\n\n{use}" if use else "",
            _training(card),
            _scores(report),
            _limits(card, report),
            _technical(card, report),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _head(card: StudentCard) -> str:
    classes = ", ".join(f"{info.name} (class id {info.id})" for info in card.classes)
    kind = "slices, one by one" if card.plan.dimensions == "2d" else "volumes"
    made = "labels that a program made and filtered"
    drawn = f"experts' drawings of {len(card.gold_cases):,} {'case' if len(card.gold_cases) == 1 else 'cases'}"
    taught = "experts' drawings" if card.label_set.startswith("gold") else f"{made}, not from experts' drawings"
    if card.gold_cases:
        taught = f"{drawn}, and from {made}" if card.training_cases else drawn
    return (
        f"# {card.name}\n\nA segmentation network of {card.parameters / 1e6:.2f} million parameters for {kind}. It draws {classes}. It learnt from {taught}.\n\n"
        "**Not a medical device.** For research; to be validated on the scans of its place before anybody relies on it."
    )


def _promptable_head(card: StudentCard, record: PromptableRecord) -> str:
    asked = ", ".join(record.prompts)
    return (
        f"# {card.name}\n\nA promptable segmentation network of {card.parameters / 1e6:.2f} million parameters for slices, one by one. It draws what it is asked about, by {asked}. "
        f"Its image encoder was distilled from that of the teacher {record.teacher}, from images alone: no label was read.\n\n"
        "**Not a medical device.** For research; to be validated on the scans of its place before anybody relies on it.\n\n"
        f'## Use\n\n`{record.file}` is the whole model. In a recipe of samdistill: `teacher: {{checkpoint: {record.file}}}`; in Python: `distill.load_teacher("{record.file}")`.'
    )


def _promptable_limits(card: StudentCard, report: Evaluation | None) -> str:
    warnings = report.warnings if report is not None else training_doubts(card)
    known = [
        "It was taught by images like those of its archive; of other organs, modalities or qualities it may have forgotten what its teacher knows.",
        "Errors that its teacher makes it has learnt.",
        *(f"WARNING: {warning}" for warning in warnings),
    ]
    return "## Limits\n\n" + "\n".join(f"- {each}" for each in known)


def _promptable_technical(card: StudentCard, record: PromptableRecord) -> str:
    rows = [*facts(record).items(), ("fingerprint", f"`{card.fingerprint}`")]
    return f"## Technical\n\n{_table(('what', 'value'), rows)}"


def _training(card: StudentCard) -> str:
    rows = [
        ("labels", "none" if card.promptable else f"`{card.label_set}`"),
        ("cases learnt from", f"{len(card.training_cases):,}"),
        *([("cases of which experts' drawings were learnt", f"{len(card.gold_cases):,}")] if card.gold_cases else []),
        *(
            [
                (
                    "seen beside the image",
                    f"`{card.spec.hints}`, the teacher's masks: it answers for cases of an archive that carry them alone",
                )
            ]
            if card.spec.hints
            else []
        ),
        ("cases held out", f"{len(card.validation_cases):,}"),
        ("patients of all these", f"{len(card.training_patients):,}"),
        ("steps", f"{card.steps:,} of {card.plan.batch} {'pictures' if card.promptable else 'patches'}, {card.seconds:,.0f} s"),
        ("end", stop_words(card)),
        *([("round", _round(card.rounds))] if card.rounds else []),
    ]
    return f"## Training\n\n{_table(('what', 'value'), rows)}\n\nThe names of cases and patients are in `student.json`: on these no score may be taken."


def _round(note: RoundsNote) -> str:
    return "; ".join((f"{note.number} of {note.made}", *note.words))


def _scores(report: Evaluation | None) -> str:
    if report is None:
        return "## How good it is\n\nNobody has scored it against experts: agreement with labels made by a program is no measure of that."
    there = {name for each in report.comparisons for found in each.classes for name in found.metrics}
    length = units_of(report.spacing_known).length
    metrics = {name: words.format(length) for name, words in _METRICS.items()} | {
        name: words for name, words in _OF_SHAPES.items() if name in there
    }
    rows = [row for each in report.comparisons if each.role in {"student", "teacher", "agreement", "arm"} for row in _rows(each, metrics)]
    tolerance = f" NSD is within {report.tolerance_mm:g} {length}."
    unit = tolerance + _UNKNOWN_SIZES[report.spacing_known]
    table = _table(("comparison", "class", "cases", *metrics.values()), rows)
    more = f"\n\n{found}" if (found := findings(report)) else ""
    return f"## How good it is\n\nOn {len(report.cases)} test cases that no step had seen. {report.conventions}{unit}\n\n{table}{more}{_cost(report)}"


def _rows(comparison: Comparison, metrics: Mapping[str, str]) -> list[tuple[str, ...]]:
    return [
        (comparison.name, found.class_name, str(comparison.cases), *(_interval(found.metrics.get(name)) for name in metrics))
        for found in comparison.classes
    ]


def _interval(measured: Measured | None) -> str:
    if measured is None or measured.mean is None:
        return "not known"
    span = "" if measured.low is None or measured.high is None else f" ({measured.low:.3f} to {measured.high:.3f})"
    return f"{measured.mean:.3f}{span}"


def _cost(report: Evaluation) -> str:
    rows = [
        (each.name, f"{each.seconds_per_case:.2f} s", f"{each.device}, {each.threads} {'thread' if each.threads == 1 else 'threads'}")
        for each in report.costs
    ]
    return f"\n\n{_table(('who', 'per case', 'on'), rows)}" if rows else ""


def _limits(card: StudentCard, report: Evaluation | None) -> str:
    warnings = report.warnings if report is not None else training_doubts(card)
    known = [
        "It answers for every scan, also of another organ, modality or quality than it has seen, and does not say so.",
        f"It looks at scans at {_spacing(card, report)}; what is smaller than a few such voxels it may miss.",
        "Errors that its teacher makes everywhere it may have learnt.",
        *(f"WARNING: {warning}" for warning in warnings),
    ]
    return "## Limits\n\n" + "\n".join(f"- {each}" for each in known)


def _spacing(card: StudentCard, report: Evaluation | None) -> str:
    """Return the size of a voxel as the network sees it; cards of before do not say that it is in pixels, but their scores do."""
    known = report.spacing_known if report is not None and card.spacing_known is True else card.spacing_known
    return f"{' x '.join(f'{each:.3g}' for each in card.plan.spacing_zyx_mm)} {units_of(known).length}"


def _technical(card: StudentCard, report: Evaluation | None) -> str:
    plan, rule = card.plan, card.plan.normalisation
    rows: Mapping[str, str] = {
        "input": f"{card.channel_words}, axes z y x, {_spacing(card, report)} (z y x)",
        "intensities": f"per channel: clipped to percentiles {rule.low_percentile:g} and {rule.high_percentile:g} of the voxels that are not zero, then mean 0, deviation 1",
        "output": "logits of background and of each class, in the order above",
        "window": f"{' x '.join(map(str, plan.patch_zyx))} voxels, half overlapping, Gaussian weights",
        "fingerprint": f"`{card.fingerprint}`",
        **_export_rows(card),
    }
    return f"## Technical\n\n{_table(('what', 'value'), list(rows.items()))}"


def _export_rows(card: StudentCard) -> dict[str, str]:
    found = card.exported
    if found is None:
        return {}
    opset = f", opset {found.opset}" if found.opset else ""
    rows = {
        "format": f"{found.format}{opset}, `{found.file}`",
        "difference from torch": f"at most {found.worst_difference:.1e} in a class probability, on random patches",
        "made with": ", ".join(f"{name} {number}" for name, number in found.made_with.items()),
    }
    cost = found.int8
    if cost is not None:
        rows["8-bit products"] = (
            f"{cost.measure} {cost.after:.3f} instead of {cost.before:.3f}, on {len(cost.cases)} cases, against `{cost.against}`"
        )
    return rows
