"""What a person is told about a student that takes prompts: how much faster than its teacher it looks, and how much of its Dice it keeps."""

import math

from students.origins import PromptableRecord
from students.results import Comparison, Evaluation
from students.shortfall import paired_on_shared
from students.spec import StudentCard

ENCODER = "image encoder of the {}, one picture"
"""Name of a cost."""
_MOST_LOST = 0.05
"""Of the teacher's Dice: what a student that is meant to take its place may lose."""
_LEAST_AGREEMENT = 0.8
"""Dice of its masks with its teacher's on patients it did not look at. (Heart MR: 0.88 came with 0.97 of the teacher's Dice with experts.)"""


def encoder_ratio(evaluation: Evaluation) -> float | None:
    """Return how many times faster the student's encoder is than its teacher's; None where that was not measured."""
    seconds = {cost.name: cost.seconds_per_case for cost in evaluation.costs}
    own, theirs = (seconds.get(ENCODER.format(name)) for name in ("student", "teacher"))
    return theirs / own if own and theirs else None


def share_of_dice(student: Comparison, teacher: Comparison) -> float | None:
    """Return the student's mean Dice with gold as a share of its teacher's, over classes of cases for which both are known."""
    known = {(score.case, score.class_id): score.dice for score in teacher.scores}
    pairs = [(score.dice, known.get((score.case, score.class_id))) for score in student.scores]
    both = [(own, theirs) for own, theirs in pairs if own is not None and theirs is not None]
    theirs = math.fsum(each for _, each in both)
    return math.fsum(own for own, _ in both) / theirs if theirs else None


def promptable_note(evaluation: Evaluation) -> str:
    """Return what was found of a promptable student as a remark that follows its scores; empty for other students."""
    speed, share = encoder_ratio(evaluation), _share(evaluation)
    words = [
        "" if share is None else f"{share:.1%} of its teacher's Dice",
        "" if speed is None else f"an image encoder {speed:.1f} times as fast",
    ]
    return f"; {' with '.join(word for word in words if word)}" if speed is not None else ""


def _share(evaluation: Evaluation) -> float | None:
    found = {each.role: each for each in evaluation.comparisons if each.role in {"student", "teacher"}}
    return share_of_dice(found["student"], found["teacher"]) if len(found) == 2 else None


def lost_doubt(comparisons: tuple[Comparison, ...], remedy: str) -> tuple[str, ...]:
    """Return what speaks against putting a student in its teacher's place; nothing where it keeps nearly all of its Dice."""
    found = {each.role: each for each in comparisons if each.role in {"student", "teacher"}}
    share = share_of_dice(found["student"], found["teacher"]) if len(found) == 2 else None
    if share is None or share >= 1 - _MOST_LOST:
        return ()
    pairs = [(info, paired_on_shared(found["student"], found["teacher"], info.class_id)) for info in found["student"].classes]
    apart = ", ".join(f"{info.class_name} {pair.words}" for info, pair in pairs if pair is not None)
    return (f"the student keeps {share:.1%} of its teacher's Dice: {apart}. {remedy}",)


def agreement_doubt(card: StudentCard, remedy: str) -> tuple[str, ...]:
    """Return what the last look at held-out patients says against a training."""
    if card.agreement is None or card.agreement >= _LEAST_AGREEMENT:
        return ()
    return (f"its masks agree with its teacher's on held-out patients only with Dice {card.agreement:.2f}. {remedy}",)


def facts(record: PromptableRecord) -> dict[str, str]:
    """Return what a person wants to know of how it was made."""
    ratio = record.teacher_encoder_parameters / max(record.encoder_parameters, 1)
    error = (
        {}
        if record.embedding_error is None
        else {"error of embeddings on held-out patients": f"{record.embedding_error:.3f} of the teacher's variance"}
    )
    return {
        "distilled from": f"{record.teacher} ({record.teacher_fingerprint}), profile {record.profile}",
        "image encoder": f"{record.encoder_parameters / 1e6:.1f} M parameters, {ratio:.1f} times fewer than the teacher's; sees {record.image_size} x {record.image_size} pixels",
        "mask decoder": "the teacher's own" if record.decoder == "frozen" else "the teacher's, tuned",
        "prompts": ", ".join(record.prompts),
        "slices looked at": f"{record.slices:,}",
        **error,
        "loads as a teacher": record.file,
    }
