"""What the review commands print and draw."""

import json
from collections.abc import Sequence

from distill.review_queue import Estimate
from flows.console import OUT, show_next, show_table
from flows.errors import ReviewError
from flows.places import typed
from flows.results import counted
from flows.review import TakenBack
from flows.review_list import Waiting
from storage import ReviewRecord


def show_waiting(queue: Sequence[Waiting], place: str, *, as_json: bool) -> None:
    """Print the queue, and what to type next."""
    if as_json:
        OUT.print_json(json.dumps([each.model_dump() for each in queue]))
        return
    if not queue:
        _say("Nothing waits for a person: every mask of the archive part has a verdict, or the teacher has drawn none yet.")
        return
    to_judge = [each for each in queue if each.state != "waits for the teacher"]
    boxed = [each for each in queue if each.state == "waits for the teacher"]
    if to_judge:
        rows = [(each.case, f"{each.class_id} {each.class_name}", each.why, each.filter_says, each.predicted_words) for each in to_judge]
        heads = ("case", "class", "why", "the filter says", "predicted Dice")
        same = _one_prediction(to_judge)
        wide = len(heads) if not same and any(each.predicted_words for each in to_judge) else len(heads) - 1
        show_table(f"{counted(len(to_judge), 'mask', 'masks')} to look at first", heads[:wide], [row[:wide] for row in rows])
        if same:
            _say(f"The predicted Dice of each of these is {same}.")
    if boxed:
        boxes = [(each.case, f"{each.class_id} {each.class_name}", each.why) for each in boxed]
        show_table(
            f"{counted(len(boxed), 'mask has', 'masks have')} a new box that the teacher has not seen yet",
            ("case", "class", "state"),
            boxes,
        )
    where = typed(place)
    if to_judge:
        case = to_judge[0].case
        show_next((f"review show {where} {case} -o {case}.png", f"review accept {where} {case} --class {to_judge[0].class_id}"))
    elif place.endswith((".yaml", ".yml")):
        show_next((f"run {where}",))


def _one_prediction(queue: Sequence[Waiting]) -> str:
    """Return the Dice that is predicted of each of several masks of one class; empty where predictions differ, or there is none."""
    said = {(each.class_id, each.predicted_words) for each in queue}
    return queue[0].predicted_words if len(queue) > 1 and len(said) == 1 else ""


def show_decided(records: Sequence[ReviewRecord]) -> None:
    """Say what was stored."""
    for record in records:
        _say(f"{record.case}, class {record.class_id}: {record.verdict}, by {record.by}. The next 'refine' goes by it.")


def show_reboxed(case: str, class_id: int, z: int) -> None:
    """Say what a new box does."""
    _say(f"{case}, class {class_id}, slice {z}: the next 'label' asks the teacher with this box; until then its mask counts as rejected.")


def show_undone(case: str, taken: TakenBack) -> None:
    """Say what was taken back."""
    if not taken.verdicts and not taken.boxes:
        _say(f"{case}: there was nothing to take back.")
        return
    which = ", ".join(f"{each.verdict} of class {each.class_id} by {each.by or 'somebody'}" for each in taken.verdicts)
    counts = f"{counted(len(taken.verdicts), 'verdict', 'verdicts')} and {counted(taken.boxes, 'box', 'boxes')} taken back"
    _say(f"{case}: {counts}{f': {which}' if which else ''}.")
    if taken.is_away and which:
        _say("The case has no labels at the moment; if the masks that were judged come back, the verdict does not.")


def show_estimate(found: Estimate, *, as_json: bool) -> None:
    """Print the estimate in words, or as JSON."""
    if as_json:
        OUT.print_json(found.model_dump_json())
        return
    if found.share is None or found.low is None or found.high is None:
        _say(f"No verdict yet on a random one of {counted(found.masks, 'mask', 'masks')}: 'samdistill review list' marks them.")
        return
    _say(
        f"People accept {found.accepted} of {found.judged} masks drawn at random ({found.share:.0%}; 95 % interval {found.low:.0%} to {found.high:.0%}, "
        f"Wilson), of {found.masks:,} in the archive. This counts verdicts; it is no Dice."
    )
    if found.filter_share is not None and found.filter_low is not None and found.filter_high is not None:
        _say(
            f"Of those that the filter had accepted, people accept {found.filter_accepted} of {found.filter_judged} "
            f"({found.filter_share:.0%}; {found.filter_low:.0%} to {found.filter_high:.0%})."
        )
    if found.missing:
        _say(f"{counted(found.missing, 'random mask was', 'random masks were')} passed over: judge them too, or the estimate may flatter.")


def numbers(text: str) -> tuple[float, ...]:
    """Read ``16,19,36,38``.

    Raises:
        ReviewError: if these are not four numbers.
    """
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != 4:
        message = f"--box takes four numbers x0,y0,x1,y1, such as 16,19,36,38, but got {text!r}."
        raise ReviewError(message)
    return found


def _say(sentence: str) -> None:
    OUT.print(sentence, soft_wrap=True, highlight=False, markup=False)
