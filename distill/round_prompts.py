"""The prompts of a later round: what people and sources said stays, and where nobody said anything students do.

Students that never saw a case say where the object is on each of its slices; a box that a person drew on every fourth slice is four times as many
then. Nothing that was given is overruled, so that the teacher cannot be led away from it ("freeze the exemplar prompts", docs/rounds.md).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b

from distill.label_plan import LabelPlan
from distill.prompts.choice import PROPOSED, chosen_prompts
from distill.prompts.from_labels import LabelSource, make
from distill.prompts.sources import SourceContext
from distill.prompts.student_options import StudentPrompts
from storage import Archive, Prompt, fingerprint
from storage.working import Worked, work_through

_VERSION = "1"
"""Raised whenever the same masks and prompts become others."""
_OVER_A_VOLUME = "box3d"


def prompt_again(
    archive: Archive,
    plan: LabelPlan,
    options: StudentPrompts,
    *,
    given: Sequence[str],
    source: str,
    cases: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
) -> Worked[int]:
    """Keep the prompts of a round in the catalog, under a source of their own; earlier ones of that source are replaced.

    Args:
        archive: where cases, masks and prompts live.
        plan: whose classes and teacher they are for.
        options: which label set becomes prompts, and how.
        given: the recipe's own sources, whose prompts stay.
        source: name of the new one.
        cases: those to prompt, as far as they carry the label set.
        progress: called with (cases done, cases to do).
    """
    context = SourceContext(archive=archive, plan=plan)
    masks = make(context, options)
    marks = archive.catalog.fingerprints(options.labels or "")
    before = {case: chosen_prompts(stored, given) for case, stored in archive.catalog.prompts_by_case(list(cases)).items() if case in marks}
    how = fingerprint(options=options.model_dump(mode="json"), teacher=[plan.teacher, plan.profile, plan.base])
    prints = {case: fingerprint(version=_VERSION, how=how, masks=marks[case], given=before[case]) for case in before}

    def prompt(case: str) -> int:
        found = merged_prompts(before[case], _proposed(masks, context, archive, case))
        kept = [replace(each, source=f"{PROPOSED}{source}") for each in found]
        archive.catalog.replace_prompts(kept, file=_key(case, source), source=f"{PROPOSED}{source}")
        return len(kept)

    return work_through(archive.ledger, f"prompts:{source}", prints, prompt, progress=progress)


def _proposed(masks: LabelSource, context: SourceContext, archive: Archive, case: str) -> list[Prompt]:
    return masks.propose(context.subject(archive[case].record, context.classes))


def merged_prompts(given: Iterable[Prompt], proposed: Iterable[Prompt]) -> list[Prompt]:
    """Return the prompts that were given, and those that are proposed on slices where nothing was given about their class.

    A box over a whole volume gives way to boxes on its slices. About a class that is prompted across another axis, or said to be absent,
    nothing is added: it is asked along one axis, and people know better.
    """
    said, new = list(given), list(proposed)
    proposed_of = {each.class_id for each in new if each.kind != "absent"}
    new = [each for each in new if each.kind != "absent" or each.class_id not in {given.class_id for given in said}]
    said = [each for each in said if not (each.kind == _OVER_A_VOLUME and each.class_id in proposed_of)]
    closed = {each.class_id for each in said if each.kind == "absent" or each.axis != "z"}
    taken = {(each.class_id, each.slice) for each in said}
    return [*said, *(each for each in new if each.class_id not in closed and (each.class_id, each.slice) not in taken)]


def _key(case: str, source: str) -> str:
    """Return under which key the catalog remembers that these prompts are one statement."""
    return blake2b(f"{PROPOSED}{source}/{case}".encode(), digest_size=16).hexdigest()
