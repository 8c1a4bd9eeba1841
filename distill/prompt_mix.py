"""Were the masks that thresholds were set on asked for as those that they are used on? By which sources and kinds of prompts each part was.

A guarantee is about new patients that went through the same pipeline, prompts among it. Cases that a reviewer gave a better box are left out of this:
somebody has seen their masks.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from distill.prompts.choice import ABSENT, PROPOSED, REVIEW, WEAK, drawing_sources
from storage import Archive, Part

FEW = 0.05
"""Of the cases may have been prompted in another way without a word: as no loss is above 1, what is lost on average rises by no more than that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptMix:
    """How the cases of two parts were prompted about one class: words such as ``weak box`` -> cases."""

    calibration: Mapping[str, int] = field(default_factory=dict)
    archive: Mapping[str, int] = field(default_factory=dict)

    @property
    def shares_no_source(self) -> bool:
        """Whether no source prompted both parts, so that nothing set on one can be guaranteed of the other."""
        both = _sources(self.calibration), _sources(self.archive)
        return all(both) and not both[0] & both[1]

    def in_words(self) -> str:
        """Say how many cases of either part were prompted as none of the other was; empty where these are few, or nothing is known."""
        if not self.calibration or not self.archive:
            return ""
        said = [
            _strange(self.archive, self.calibration, "archive", "calibration"),
            _strange(self.calibration, self.archive, "calibration", "archive"),
        ]
        if not any(said):
            return ""
        return f"{'; '.join(each for each in said if each)}: thresholds and guarantees are about masks that were prompted alike"


def prompt_mixes(archive: Archive, classes: Sequence[int], sources: Sequence[str], label_set: str) -> dict[int, PromptMix]:
    """Return how the labelled cases of the archive and of the calibration part were prompted, by class.

    Args:
        archive: Whose catalog is read; no label is.
        classes: Ids.
        sources: As the recipe names them; a class of a case is asked with the first that has something to say.
        label_set: Only cases that have it.
    """
    chain, counted = drawing_sources(sources), {class_id: (Counter[str](), Counter[str]()) for class_id in classes}
    stored = archive.catalog.prompt_kinds()
    parts: tuple[Part, ...] = ("calibration", "archive")
    for n, part in enumerate(parts):
        for record in archive.cases(part=part, with_labels=label_set):
            for class_id in classes:
                if words := _asked(stored.get((record.id, class_id), frozenset()), chain):
                    counted[class_id][n][words] += 1
    return {class_id: PromptMix(calibration=a, archive=b) for class_id, (a, b) in counted.items()}


def _asked(stored: frozenset[tuple[str, str, bool]], chain: Sequence[str]) -> str:
    """Say by which source and with which kinds of prompts a class of a case was asked; empty where nobody asked, or a reviewer did.

    As ``distill.prompts.choice.chosen_prompts`` has it, the first source that says yes speaks, also where all it says is that there is nothing.
    """
    named = [(_named(source), kind, positive) for source, kind, positive in stored]
    if any(source == REVIEW and kind != ABSENT for source, kind, _ in named):
        return ""
    saying = {source for source, _, positive in named if positive}
    speaker = next((source for source in chain if source in saying), None)
    said = [(kind, positive) for source, kind, positive in named if source == speaker and kind != ABSENT]
    return f"{speaker} {'+'.join(sorted({kind for kind, _ in said}))}" if any(positive for _, positive in said) else ""


def _named(stored: str) -> str:
    """Return the name by which a recipe calls a stored source (``distill.prompts.choice.source_of``)."""
    return stored.removeprefix(PROPOSED) if stored.startswith(PROPOSED) else REVIEW if stored == REVIEW else WEAK


def _sources(mix: Mapping[str, int]) -> set[str]:
    return {words.partition(" ")[0] for words in mix}


def _strange(here: Mapping[str, int], there: Mapping[str, int], part: str, other: str) -> str:
    strange, total = {words: count for words, count in here.items() if words not in there}, sum(here.values())
    count = sum(strange.values())
    if count <= FEW * total:
        return ""
    return f"{count} of {total} {part} cases were prompted by {', '.join(sorted(strange))}, as no {other} case was"
