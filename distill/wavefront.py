"""Ask a teacher about the slices of several cases, nearest to a prompt first, in batches that cross case borders.

On a CPU an answer is independent, to the last bit, of what it was batched with, so a run that was killed and resumed with other neighbours writes the
same bytes as an undisturbed one. The product's own teachers see to that themselves; for any other, every call is padded with repeats to the
same shape (``CallSizes.padding``). On a GPU groups are as large as the teacher finds memory for, and answers agree within rounding; there one
group is computed while the answers of the one before it are on their way.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import torch

from distill.answers import Answer
from distill.casework import CaseWork, ClassWork
from distill.embedding_memory import EmbeddingMemory, Shown
from distill.members import Members
from distill.propagation import stop_of
from distill.questions import Ask, AskSettings, Question, believed_region, can_be_asked, prompts_for, question_about
from distill.teachers.base import CallSizes, Decoded, Embeddings, Teacher, sizes_of
from distill.teachers.batching import let_go, ran_out
from distill.views import PLAIN, View

MOST_ASKS = 1024
"""Questions that are on their way together; a picture with more of them goes alone."""

__all__ = ["AskSettings", "CaseWork", "ClassWork", "run_wavefront", "sizes_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What all fronts of one run share."""

    teacher: Teacher
    settings: AskSettings
    check: Callable[[], None] | None
    memory: EmbeddingMemory
    lasts: dict[tuple[str, int], int]
    """The last front that may ask about a slice."""


@dataclass(frozen=True, slots=True)
class _Views:
    """A chunk of pictures, each view of them encoded."""

    embeddings: tuple[Embeddings, ...]
    order: dict[tuple[str, int], int]


@dataclass(frozen=True, slots=True)
class _Asked:
    """Questions of one decoder call, answered or on the way to be."""

    questions: Sequence[Question]
    members: Members


def run_wavefront(
    teacher: Teacher,
    works: Sequence[CaseWork],
    settings: AskSettings,
    *,
    check: Callable[[], None] | None = None,
    memory: EmbeddingMemory | None = None,
) -> None:
    """Fill the probabilities and summaries of all ``works`` in place.

    Args:
        teacher: who is asked.
        works: about which cases.
        settings: how.
        check: called before every group of slices; what it raises ends the work.
        memory: embeddings of these works' slices that were kept for this run, and are for a later one; by default no other run shares them.
    """
    asks = [Ask(work, class_id, plan) for work in works for class_id, target in work.classes.items() for plan in target.plans]
    asks.sort(key=lambda a: (a.plan.distance, a.work.record.id, a.plan.z, a.class_id, a.plan.track))
    lasts = {ask.slice_key: ask.plan.distance for ask in asks}
    run = _Run(teacher=teacher, settings=settings, check=check, memory=memory or EmbeddingMemory(), lasts=lasts)
    for _, front in groupby(asks, key=lambda a: a.plan.distance):
        _ask_front(run, [ask for ask in front if not _is_left_out(teacher, ask)])


def _is_left_out(teacher: Teacher, ask: Ask) -> bool:
    """Mark and drop a slice all of whose parents are beyond the end of the organ, or of its piece, or a piece that the teacher cannot be asked about."""
    parents = ask.plan.parents
    if (parents and all(z in ask.track.absent for z in parents)) or not can_be_asked(teacher, ask):
        ask.track.absent.add(ask.plan.z)
        return True
    return False


def _ask_front(run: _Run, asks: list[Ask]) -> None:
    """Ask slices of which none waits for another; the answers of one chunk are read when the next one has been asked.

    A chunk for which memory runs out is asked again, in smaller ones: nothing of it was recorded.
    """
    on_the_way: list[_Asked] = []
    start = 0
    while start < len(asks):
        if run.check is not None:
            run.check()
        sizes = sizes_of(run.teacher)
        chunk = asks[start : _end_of_chunk(asks, start, sizes.pictures)]
        asked = _asked_unless_too_much(run, chunk, sizes)
        if asked is None:
            let_go()
            continue
        start += len(chunk)
        _record_all(on_the_way, run.settings)
        on_the_way = asked
    _record_all(on_the_way, run.settings)


def _end_of_chunk(asks: list[Ask], start: int, slices: int) -> int:
    """Return where the asks from ``start`` on have been about so many different slices, or earlier between two slices where they are many."""
    seen: set[tuple[str, int]] = set()
    for at in range(start, len(asks)):
        is_new = asks[at].slice_key not in seen
        if is_new and (len(seen) == slices or at - start >= MOST_ASKS):
            return at
        seen.add(asks[at].slice_key)
    return len(asks)


def _asked_unless_too_much(run: _Run, chunk: list[Ask], sizes: CallSizes) -> list[_Asked] | None:
    """Ask a chunk; None where memory ran out around the teacher's own calls and it can be asked less at a time."""
    try:
        return list(_ask_chunk(run, chunk, sizes))
    except (RuntimeError, MemoryError) as error:
        run.memory.forget()
        ask_less: Callable[[], bool] | None = getattr(run.teacher, "ask_less", None)
        if not ran_out(error) or ask_less is None or not ask_less():
            raise
    return None


def _ask_chunk(run: _Run, chunk: list[Ask], sizes: CallSizes) -> Iterator[_Asked]:
    teacher, settings = run.teacher, run.settings
    views = _encode(run, chunk, sizes)
    questions = [question_about(teacher, views.embeddings[0], ask, views.order[ask.slice_key], settings) for ask in chunk]
    most = sizes.questions(settings.boxes)
    for _, group in groupby(sorted(questions, key=lambda q: q.points), key=lambda q: q.points):
        members = list(group)
        for start in range(0, len(members), most):
            some = members[start : start + most]
            yield _Asked(some, _ask_ensembles(teacher, views, some, settings, count=sizes.padded(len(some), most)))


def _encode(run: _Run, chunk: list[Ask], sizes: CallSizes) -> _Views:
    """Encode every view of a chunk's slices, as far as they are not kept from another front, or from another run."""
    order: dict[tuple[str, int], int] = {}
    asks = []
    for ask in chunk:
        if ask.slice_key not in order:
            order[ask.slice_key] = len(order)
            asks.append(ask)
    shown = [[_shown(run, ask, view) for ask in asks] for view in run.settings.views]
    return _Views(tuple(run.memory.encode(run.teacher, each, sizes) for each in shown), order)


def _shown(run: _Run, ask: Ask, view: View) -> Shown:
    """Return a view of a slice; a later front may ask about it again, and the way back (``distill.round_trip``) about the slice as it is."""
    again = run.lasts[ask.slice_key] > ask.plan.distance or (run.settings.propagate and view == PLAIN)
    return Shown(key=(*ask.slice_key, ask.work.axis, view), picture=partial(view.picture, ask.work, ask.plan.z), again=again)


def _ask_ensembles(teacher: Teacher, views: _Views, questions: list[Question], settings: AskSettings, *, count: int) -> Members:
    """Ask one call's worth of questions, padded to ``count``, about every view."""
    answers = [
        teacher.decode(embeddings, prompts_for(teacher, embeddings, questions, settings, count=count, view=n))
        for n, embeddings in enumerate(views.embeddings)
    ]
    candidates = _candidates(teacher, views, questions, settings, count=count) if settings.multimask else None
    members = Members(settings.weights)
    for n, question in enumerate(questions):
        rows = slice(n * settings.boxes, (n + 1) * settings.boxes)
        region = believed_region(question, settings.box_margin)
        logits = _in_the_picture(teacher, views, answers, question, rows, settings)
        iou = torch.cat([decoded.iou[rows, 0].float() for decoded in answers])
        others = None if candidates is None else _restored(teacher, views.embeddings[0], question, candidates[n])
        members.add(logits[:, *region], iou, region, question.ask.size_px, None if others is None else others[:, *region])
    members.depart()
    return members


def _candidates(teacher: Teacher, views: _Views, questions: list[Question], settings: AskSettings, *, count: int) -> torch.Tensor | None:
    """Return the candidates ``(P, M, m, m)`` for the unjittered boxes; None from a teacher that has but one answer."""
    single = replace(settings, boxes=1)
    prompts = prompts_for(teacher, views.embeddings[0], questions, single, count=count, view=0)
    logits = teacher.decode(views.embeddings[0], prompts, multimask=True).low_res_logits
    return logits if logits.shape[1] > 1 else None


def _in_the_picture(
    teacher: Teacher, views: _Views, answers: list[Decoded], question: Question, rows: slice, settings: AskSettings
) -> torch.Tensor:
    """Return one question's member logits ``(E, H, W)``, those of each view brought back.

    Of what a view does not show, its members say what those of the picture as it is say.
    """
    found: list[torch.Tensor] = []
    for view, embeddings, decoded in zip(settings.views, views.embeddings, answers, strict=True):
        logits, seen = view.back(_restored(teacher, embeddings, question, decoded.low_res_logits[rows, 0]))
        found.append(logits if seen is None else torch.where(seen, logits, found[0]))
    return torch.cat(found)


def _restored(teacher: Teacher, embeddings: Embeddings, question: Question, logits: torch.Tensor) -> torch.Tensor:
    """Return logits ``(E, m, m)`` about a question's picture at its resolution, ``(E, H, W)``."""
    return teacher.upsample(logits[:, None], question.ask.size_px, embeddings.input_sizes_px[question.picture])[:, 0].float()


def _record_all(asked: Sequence[_Asked], settings: AskSettings) -> None:
    """Keep the answers of a chunk: of each piece, and then of each slice, all of whose pieces are among them."""
    found: dict[tuple[int, int], ClassWork] = {}
    for each in asked:
        for question, answer in zip(each.questions, each.members.wait(), strict=True):
            ask = question.ask
            if _record(ask, answer, settings):
                found[id(ask.target), ask.plan.z] = ask.target
    for (_, z), target in found.items():
        target.keep(z)


def _record(ask: Ask, answer: Answer, settings: AskSettings) -> bool:
    """Keep the answer about a piece, or note that the organ has ended."""
    stop = stop_of(ask, answer, settings)
    if stop is not None:
        ask.track.absent.add(ask.plan.z)
        ask.target.stops.append(stop)
        return False
    ask.track.answers[ask.plan.z] = answer
    return True
