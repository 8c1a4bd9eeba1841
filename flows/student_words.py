"""What the commands around students print."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from flows.console import OUT, show_fitting, show_next, show_table
from flows.places import program, shortest, typed
from storage import StudentRecord
from students.promptable.files import TEACHER_FILE

_HEADS = ("student", "Dice", "teacher's", "agreement", "learnt from", "round", "parameters", "trained", "training", "program")
_DROPPED_FIRST = ("program", "training", "parameters", "trained", "round", "agreement", "learnt from", "teacher's")
"""Columns for which a narrow terminal has no room; ``students show`` has them all."""
_PROMOTED, _PROMOTED_BEFORE = " *", " (*)"
_LONGEST_SET = 28
"""Letters of the name of a label set in the list."""


def show_students(records: Sequence[StudentRecord], archive: str, *, as_json: bool) -> None:
    """Print one line for each student."""
    if as_json:
        OUT.print_json(json.dumps([_plain(each) for each in records]))
        return
    if not records:
        _say(f"{archive} has no student yet: 'samdistill run RECIPE' trains one.")
        return
    _show_list(f"students of {archive} (Dice with experts on test cases, means over classes)", records)
    for each in records:
        if each.promoted:
            _say(f"{'*' if each.is_promoted else '(*)'} promoted: {each.name}{_retrained(each)}")
    _say(f"More of each: {program()} students show {typed(shortest(archive))} NAME")
    if not any(each.is_promoted for each in records):
        show_next((f"students promote {typed(shortest(archive))} {records[0].name}      to choose the one to use",))


def show_student(records: Sequence[StudentRecord], *, as_json: bool) -> None:
    """Print what is known of a student, the training that stands in full and earlier ones in a line each."""
    if as_json:
        OUT.print_json(json.dumps([_plain(each) for each in records]))
        return
    record = records[-1]
    facts = {
        "name": record.name,
        "promoted": _promoted(record) or "no",
        "training": record.revision,
        "kind": record.kind,
        "folder": record.path,
        "learnt from": record.label_set,
        "round": record.round,
        "parameters": f"{record.parameters:,}",
        "trained": record.trained_at or "not known: recorded by an older program",
        "program": record.code or "not known",
        "weights": record.weights or "not known",
        "fingerprint": record.fingerprint,
        **{name.replace("_", " "): _rounded(value) for name, value in record.metrics.items()},
        "recipe, without defaults": json.dumps(record.recipe, indent=1) if record.recipe else "not known",
    }
    show_table(f"student {record.name}", ("what", "value"), [(name, str(value)) for name, value in facts.items()])
    if records[1:]:
        _show_list(
            "earlier trainings, whose weights are replaced",
            records[:-1],
            dropped_first=("program", "parameters", "trained", "round", "learnt from"),
        )


def show_promoted(record: StudentRecord, before: StudentRecord | None, archive: str) -> None:
    """Say which student is used from now on, in whose place, and whether that one scored better."""
    place = "" if before is None else f", in place of {before.name}, training {before.promoted}"
    _say(f"{record.name}, training {record.revision}, is the student of {archive}{place}.")
    if before is not None and before.name != record.name:
        _warn_if_worse(record, before)
    _warn_of_report(record)
    if record.kind == "promptable":
        _say(f"It is promptable: name it as a teacher, in a recipe with teacher: {{checkpoint: {record.path}/{TEACHER_FILE}}}.")
        return
    where = typed(shortest(archive))
    show_next((f"predict {where} NEW_SCANS/ -o labels/", f"predict {where}      for the cases of the archive itself"))


def _warn_if_worse(record: StudentRecord, before: StudentRecord) -> None:
    for metric, what in (("dice", "Dice with experts"), ("agreement", "agreement with held-out pseudo-labels")):
        new, old = record.metrics.get(metric), before.metrics.get(metric)
        if isinstance(new, float) and isinstance(old, float):
            if new < old:
                _say(f"WARNING: its {what} is {new:.3f}, and that of {before.name} {old:.3f}.")
            return


def _warn_of_report(record: StudentRecord) -> None:
    """Say what a person who chooses a student should have read: that nobody scored it, or what its report warns of."""
    dice, teacher, warnings = (record.metrics.get(name) for name in ("dice", "teacher_dice", "warnings"))
    if not isinstance(dice, float):
        _say("WARNING: it has not been scored on test cases. 'samdistill evaluate RECIPE' does that.")
        return
    if isinstance(teacher, float) and dice < teacher:
        _say(f"WARNING: its Dice with experts is {dice:.3f}, and that of its teacher, which was given prompts, {teacher:.3f}.")
    if warnings:
        many = "warning that" if warnings == 1 else "warnings that"
        _say(f"WARNING: its report has {warnings:.0f} {many} 'samdistill evaluate RECIPE' repeats; they are in its MODEL_CARD.md too.")


def _show_list(title: str, records: Sequence[StudentRecord], dropped_first: Sequence[str] = _DROPPED_FIRST) -> None:
    show_fitting(title, _HEADS, [_line(each) for each in records], dropped_first=dropped_first)


def _line(record: StudentRecord) -> tuple[str, ...]:
    mark = _PROMOTED if record.is_promoted else _PROMOTED_BEFORE if record.promoted else ""
    taught = record.label_set if len(record.label_set) <= _LONGEST_SET else f"{record.label_set[: _LONGEST_SET - 3]}..."
    return (
        f"{record.name}{mark}",
        _score(record, "dice"),
        _score(record, "teacher_dice"),
        _score(record, "agreement"),
        taught,
        str(record.round),
        f"{record.parameters:,}",
        record.trained_at[:10],
        str(record.revision),
        record.code,
    )


def _retrained(record: StudentRecord) -> str:
    return (
        ", which an archive's name stands for"
        if record.is_promoted
        else f", as training {record.promoted}, but it was trained again since: promote it anew"
    )


def _promoted(record: StudentRecord) -> str:
    if record.is_promoted:
        return "promoted"
    return f"promoted as training {record.promoted}, trained again since" if record.promoted else ""


def _score(record: StudentRecord, metric: str) -> str:
    value = record.metrics.get(metric)
    return f"{value:.3f}" if isinstance(value, float) else ""


def _rounded(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(record: StudentRecord) -> dict[str, Any]:
    return asdict(record) | {"is_promoted": record.is_promoted}


def _say(sentence: str) -> None:
    OUT.print(sentence, soft_wrap=True, highlight=False, markup=False)
