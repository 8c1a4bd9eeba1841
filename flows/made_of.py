"""Which masks pseudo-labels were made of, and whether these are still there: asked of the catalog, so that no case is opened for it."""

from collections.abc import Iterable
from contextlib import suppress

from flows.results import FIRST, PSEUDO_SET, Round
from storage import Archive, CaseNotFoundError, CaseRecord, LabelSetNotFoundError


def outdated_cases(archive: Archive, records: Iterable[CaseRecord], of: Round = FIRST) -> list[str]:
    """Return the cases whose pseudo-labels are of masks that the teacher has drawn anew, or that were taken back, since.

    Those whose pseudo-labels are gone by now, since another run writes them anew, are not among them. Costs two queries; only of
    pseudo-labels from before the catalog kept what they are of, and that no refinement has looked at since, are files read.
    """
    made_of, drawn = archive.catalog.made_of(of.pseudo_set), archive.catalog.fingerprints(of.teacher_set)
    listed = [record.id for record in records if record.id in made_of]
    sources = made_of | _read_sources(archive, [case for case in listed if made_of[case] is None])
    return [case for case in listed if case not in drawn or sources[case] not in {"", drawn[case]}]


def _read_sources(archive: Archive, cases: Iterable[str]) -> dict[str, str]:
    """Case id -> fingerprint of the labels that its pseudo-labels were made from, as their file says; empty where it does not, or is gone."""
    from distill.verdicts import MADE_OF

    found = dict.fromkeys(cases, "")
    for case in found:
        with suppress(CaseNotFoundError, LabelSetNotFoundError):
            found[case] = str(archive[case].labels(PSEUDO_SET).history.parameters.get(MADE_OF, ""))
    return found


def remember_sources(archive: Archive, cases: Iterable[str]) -> None:
    """Keep in the catalog what pseudo-labels are of that were written before it was kept there."""
    made_of = archive.catalog.made_of(PSEUDO_SET)
    archive.catalog.record_made_of(PSEUDO_SET, _read_sources(archive, [case for case in cases if made_of.get(case, "") is None]))
