"""What became of the boxes that people drew: whether the teacher has seen them, and whose they are."""

from collections.abc import Collection
from dataclasses import dataclass

from flows.results import TEACHER_SET
from storage import Archive, ReviewRecord

REVIEW = "review"
"""The source of prompts that reviewers draw; the label stage takes it whatever the recipe says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxTrace:
    """A person's new boxes for one class of one case, the last thing that was decided about it."""

    slices: tuple[int, ...]
    by: str
    """Empty where nothing had been drawn of the class, so that there was no mask to decide about."""
    at: str
    is_drawn: bool
    """Whether the teacher has drawn the mask again since."""

    @property
    def words(self) -> str:
        """Say who drew a box, when, on which slices, and what came of it."""
        where = f" on slice {', '.join(map(str, self.slices))}" if self.slices else ""
        who = f"{self.by} drew a box{where}, {self.at}" if self.by else f"somebody drew the first box{where}"
        return f"drawn again: {who}" if self.is_drawn else f"waits for the next 'label': {who}"


def box_traces(archive: Archive, classes: Collection[int]) -> dict[tuple[str, int], BoxTrace]:
    """Return the masks whose new box nobody has judged the answer to yet, by case and class id.

    Args:
        archive: whose.
        classes: only these class ids.
    """
    slices: dict[tuple[str, int], set[int]] = {}
    for prompt in archive.catalog.prompts_from(REVIEW):
        slices.setdefault((prompt.case, prompt.class_id), set()).update(() if prompt.slice is None else (prompt.slice,))
    last: dict[tuple[str, int], ReviewRecord] = {(each.case, each.class_id): each for each in archive.catalog.review_history(TEACHER_SET)}
    reboxed = {key for key, each in last.items() if each.action == "rebox"}
    unjudged = {key for key in slices if key not in last}
    wanted = sorted(key for key in reboxed | unjudged if key[1] in classes)
    cases = sorted({case for case, _ in wanted})
    prints, scores = (archive.catalog.fingerprints(TEACHER_SET) if cases else {}), archive.catalog.scores(TEACHER_SET, cases)
    found = {}
    for case, class_id in wanted:
        trace, there = last.get((case, class_id)), f"pairwise_dice/{class_id}" in scores.get(case, {})
        found[case, class_id] = BoxTrace(
            slices=tuple(sorted(slices.get((case, class_id), ()))),
            by="" if trace is None else trace.by,
            at="" if trace is None else trace.at,
            is_drawn=there and (trace is None or trace.fingerprint != prints.get(case)),
        )
    return found
