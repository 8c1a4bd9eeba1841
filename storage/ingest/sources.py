"""Which files of a folder are cases by themselves, and which are channels of one."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.archive import Archive
from storage.case import Channel
from storage.channels import check_channels, expected
from storage.ingest.channels import GroupedFiles, group_files, stem_of, whole_scan
from storage.ingest.described import FILE, LABELS, described_channels, is_data_set
from storage.ingest.discover import FoundFile, find_files
from storage.ingest.nifti import count_volumes
from storage.ingest.source import case_id_from_name
from storage.ingest.tasks import FileSource, channel_source, single_source

_NUMBERED = re.compile(r"_([0-9]{4})$")
"""How nnU-Net ends the name of a channel's file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenSources:
    """What an ingest reads."""

    named: tuple[FileSource, ...]
    """NIfTI and pictures, by case."""
    slices: tuple[FoundFile, ...]
    """DICOM files."""
    remarks: tuple[str, ...] = ()
    """What a person should know of how files were taken together."""


def choose_sources(archive: Archive, source: Path, *, exclude: Sequence[str], channels: Sequence[Channel] | None) -> ChosenSources:
    """Find the files, and take those of one case together where channels are named, by the caller or by ``dataset.json``.

    An archive that holds the files of such a folder as cases of their own, from before, goes on doing so unless the caller names channels: each
    patient would be in it twice.

    Raises:
        IngestError: ``source-not-found``, or ``bad-channels``.
    """
    told = channels is None
    wanted = described_channels(source) if channels is None else check_channels(channels)
    left_out = (*exclude, *LABELS) if wanted and is_data_set(source) else tuple(exclude)
    files = find_files(source, exclude=left_out)
    pictures = [file for file in files if file.kind != "dicom"]
    slices = tuple(file for file in files if file.kind == "dicom")
    grouped = None if not wanted else _as_described(pictures, wanted) if told else group_files(pictures, wanted)
    apart = [] if grouped is None else _known_apart(archive, grouped)
    if grouped is None or (told and apart):
        remarks = (
            (f"{FILE} names the channels {expected(wanted)}, but {_apart_words(apart)}; a new archive takes them together",)
            if apart
            else ()
        )
        return ChosenSources(named=tuple(map(single_source, pictures)), slices=slices, remarks=remarks)
    return ChosenSources(
        named=_taken_together(grouped, wanted, told=told), slices=slices, remarks=_remarks(grouped, wanted, apart, told=told)
    )


def _as_described(files: Sequence[FoundFile], channels: Sequence[Channel]) -> GroupedFiles | None:
    """Group what ``dataset.json`` is about, so that no file is lost that nobody has spoken of; None where the names are not nnU-Net's.

    A folder may count its cases in four digits as well, so each name is looked at by itself: a stray file is a scan of its own, whatever the
    others are.
    """
    places = {file.name: _stem_and_number(file.name) for file in files}
    by_stem: dict[str, dict[int, FoundFile]] = {}
    for file in files:
        stem, number = places[file.name]
        by_stem.setdefault(stem, {})[number] = file
    cases = _one_channel_cases(by_stem) if len(channels) == 1 else _several_channel_cases(by_stem, len(channels))
    if len(channels) == 1 and not cases:
        return None
    channel_files = [file for file in files if places[file.name][0] in cases and places[file.name][1] < len(channels)]
    taken = {file.name for file in channel_files}
    grouped = group_files(channel_files, channels)
    return GroupedFiles(scans=(*grouped.scans, *(whole_scan(file) for file in files if file.name not in taken)), beside=())


def _stem_and_number(name: str) -> tuple[str, int]:
    """Return what comes before nnU-Net's number, and the number; of other names the whole name, and -1."""
    stem = stem_of(name)
    found = _NUMBERED.search(stem)
    return (stem[: found.start()], int(found.group(1))) if found else (name, -1)


def _one_channel_cases(by_stem: Mapping[str, Mapping[int, FoundFile]]) -> set[str]:
    """Return what is called ``_0000`` alone, if most names of the folder are; where they are not, somebody counts cases."""
    cases = {stem for stem, found in by_stem.items() if set(found) == {0}}
    return cases if 2 * len(cases) > len(by_stem) else set()


def _several_channel_cases(by_stem: Mapping[str, Mapping[int, FoundFile]], count: int) -> set[str]:
    """Return the names of which each file is a channel, unless it has a number that no channel has; none where all numbers count cases.

    They do where the files hold all channels themselves, as the Decathlon's do, and where there are numbers beyond the channels' and no name
    has all of theirs.
    """
    cases = {stem for stem, found in by_stem.items() if -1 not in found and _volumes(found) != count}
    complete = any(set(by_stem[stem]) >= set(range(count)) for stem in cases)
    return cases if complete or all(max(by_stem[stem]) < count for stem in cases) else set()


def _volumes(found: Mapping[int, FoundFile]) -> int | None:
    """Return how many volumes the first file has whose header can be read."""
    counts = (count_volumes(found[number].path) for number in sorted(found) if found[number].kind == "nifti")
    return next((count for count in counts if count is not None), None)


def _taken_together(grouped: GroupedFiles, channels: Sequence[Channel], *, told: bool) -> tuple[FileSource, ...]:
    """Return the cases; of one channel that ``dataset.json`` alone names, each file as it is, called without its number."""
    if not told or len(channels) > 1:
        return tuple(channel_source(scan, channels) for scan in grouped.scans)
    return tuple(
        single_source(file, called=scan.name if scan.whole is None else None, alone=len(scan.files) == 1)
        for scan in grouped.scans
        for file in scan.files
    )


def _known_apart(archive: Archive, grouped: GroupedFiles) -> list[str]:
    """Return the cases of the archive that are called after the file of one channel."""
    together = {case_id_from_name(scan.name.rpartition("/")[2]) for scan in grouped.scans}
    others = {record.id for record in archive.cases()} - together
    names = (case_id_from_name(file.name) for scan in grouped.scans if scan.whole is None for file in scan.files)
    return [name for name in names if name in others]


def _apart_words(apart: Sequence[str]) -> str:
    count = f"{len(apart):,} files of channels are cases of their own" if len(apart) > 1 else "the file of one channel is a case of its own"
    return f"{count} in this archive from before, such as {apart[0]}"


def _remarks(grouped: GroupedFiles, channels: Sequence[Channel], apart: Sequence[str], *, told: bool) -> tuple[str, ...]:
    remarks = []
    several = any(scan.whole is None for scan in grouped.scans) or len(channels) > 1
    if told and several and grouped.scans:
        remarks.append(f"channels by {FILE}: {expected(channels)} (ingest.channels: [] takes each file for a case)")
    if apart:
        remarks.append(f"WARNING: {_apart_words(apart)}. Begin a new archive, lest their patients count twice")
    if grouped.beside:
        count = len(grouped.beside)
        remarks.append(
            f"{count:,} {'file' if count == 1 else 'files'} beside the channels passed over, such as {grouped.beside[0].path.name}"
        )
    return tuple(remarks)
