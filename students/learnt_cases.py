"""Which cases a student learns from, and what of them decides what it becomes. Free of torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from storage import Archive, CaseRecord, Channel
from students.errors import TrainingError
from students.gold import check_gold, split_off_gold
from students.spec import StudentSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCases:
    """The cases to learn from, each kind sorted by id."""

    labeled: list[CaseRecord]
    gold: list[CaseRecord]
    unlabeled: list[CaseRecord]

    @property
    def every(self) -> list[CaseRecord]:
        """All of them."""
        return [*self.labeled, *self.gold, *self.unlabeled]


def find_cases(
    archive: Archive,
    label_set: str,
    cases: Sequence[str] | None,
    weights: Mapping[str, float],
    gold: Sequence[str],
    unlabeled: Sequence[str],
) -> FoundCases:
    """Return the cases of each kind: gold instead of pseudo-labels, and cases without labels that are neither."""
    check_gold(archive, gold)
    expert = sorted((archive[case].record for case in dict.fromkeys(gold)), key=lambda record: record.id)
    labeled = split_off_gold(chosen_records(archive, label_set, cases, weights, expert), gold)
    taught = {record.id for record in (*labeled, *expert)}
    rest = [record for case in sorted(set(unlabeled) - taught) if (record := archive[case].record).part == "archive"]
    found = FoundCases(labeled=labeled, gold=expert, unlabeled=rest)
    check_channels(found.every)
    return found


def check_channels(records: Sequence[CaseRecord]) -> None:
    """Refuse cases that no one network can look at.

    Raises:
        TrainingError: if their numbers of channels differ, or what these are called.
    """
    channels = {record.shape_czyx[0] for record in records}
    if len(channels) > 1:
        message = f"cases have different numbers of channels {sorted(channels)}: train one student for each."
        raise TrainingError(message)
    called: dict[tuple[str, ...], str] = {}
    for record in records:
        called.setdefault(tuple(channel.name for channel in record.channels), record.id)
    called.pop((), None)
    if len(called) > 1:
        (one, first), (other, second), *_ = called.items()
        message = (
            f"case {first} has the channels {', '.join(one)}, but case {second} {', '.join(other)}: a network takes each for the same in all cases. "
            "Ingest them with the same ingest.channels."
        )
        raise TrainingError(message)


def named_channels(records: Sequence[CaseRecord]) -> tuple[Channel, ...]:
    """Return what the channels of the cases are; empty where nobody named them."""
    return next((record.channels for record in records if record.channels), ())


def chosen_records(
    archive: Archive, label_set: str, cases: Sequence[str] | None, weights: Mapping[str, float], gold: Sequence[CaseRecord] = ()
) -> list[CaseRecord]:
    """Return the records whose labels are learnt from, sorted by id; none are needed where there is gold."""
    if cases is None:
        records = list(archive.cases(part="archive", with_labels=label_set))
    else:
        records = sorted((archive[case].record for case in dict.fromkeys(cases)), key=lambda record: record.id)
    records = [record for record in records if weights.get(record.id, 1.0) > 0]
    tests = [record.id for record in records if record.part == "test"]
    if tests:
        message = (
            f"case {tests[0]}: it belongs to the test part ({len(tests)} such cases were given). Test cases only score; leave them out."
        )
        raise TrainingError(message)
    if not records and not gold:
        message = f"no case to learn from: no archive case carries the label set {label_set!r}. Run the step that writes it first."
        raise TrainingError(message)
    return records


def beside_marks(archive: Archive, found: FoundCases) -> dict[str, list[tuple[str, str, str]]]:
    """Return what is learnt from beside the label set, as the fingerprint has it; empty where there is nothing."""
    known = archive.catalog.fingerprints("gold")
    gold = [(record.id, record.fingerprint, known.get(record.id, "")) for record in found.gold]
    rest = [(record.id, record.fingerprint, "") for record in found.unlabeled]
    return {name: kind for name, kind in (("gold", gold), ("unlabeled", rest)) if kind}


def hint_marks(archive: Archive, found: FoundCases, spec: StudentSpec) -> dict[str, list[tuple[str, str]]]:
    """Return the label sets that the student sees beside its images, as the fingerprint has them; empty where it sees none.

    Raises:
        TrainingError: naming a case without one.
    """
    if spec.hints is None:
        return {}
    known = archive.catalog.fingerprints(spec.hints)
    bare = [record.id for record in found.every if record.id not in known]
    if bare:
        message = f"case {bare[0]}: no label set {spec.hints!r}, which the student is to see beside the image ({len(bare)} such cases). Let the teacher draw them first, or leave hints out."
        raise TrainingError(message)
    return {"hints": [(record.id, known[record.id]) for record in found.every]}
