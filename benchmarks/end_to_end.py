"""What the archive costs: slices per second of the whole labelling stage against the bare teacher calls inside it.

    SAMDISTILL_TEST_DATA=... python benchmarks/end_to_end.py [--cases 20] [--repeats 2] [--threads 2] [--json]

Labels real volumes (hippocampus, weak prompts as given) with the bundled teacher, noting every picture and prompt it is asked, then
asks the teacher the same things again with nothing around it. Reading, windowing, upsampling, ensembles, writing and the ledger are
what lies between the two. The share is taken per pair of runs, one after the other, so that a change of the machine's speed hits both.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch

from distill import load_teacher
from distill.engine import LabelPlan, label_archive
from distill.teachers.base import Embeddings, PromptBatch
from storage import Archive, ClassInfo
from storage.ingest import import_prompts, ingest

CLASSES = (ClassInfo(id=1, name="hippocampus"),)


class Recorder:
    """A teacher that notes what it is asked; everything else is the wrapped teacher's."""

    def __init__(self, teacher: Any) -> None:
        """Wrap ``teacher``."""
        self.teacher = teacher
        self.calls: list[tuple[str, Any, Any]] = []
        self._number: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        """Pass on what is not recorded."""
        return getattr(self.teacher, name)

    def encode(self, images: Sequence[np.ndarray]) -> Embeddings:
        """Encode, and note the pictures."""
        answer: Embeddings = self.teacher.encode(images)
        self._number[id(answer.features)] = len(self.calls)
        self.calls.append(("encode", list(images), None))
        return answer

    def decode(self, embeddings: Embeddings, prompts: PromptBatch, **options: Any) -> Any:
        """Decode, and note the prompts and which encoding they were about."""
        self.calls.append(("decode", (self._number[id(embeddings.features)], prompts), options))
        return self.teacher.decode(embeddings, prompts, **options)

    def replay(self) -> float:
        """Ask the same things again and return the seconds that took. Only the embeddings of the last two encodings are kept."""
        kept: dict[int, Embeddings] = {}
        began = time.perf_counter()
        for number, (kind, what, options) in enumerate(self.calls):
            if kind == "encode":
                kept[number] = self.teacher.encode(what)
                for old in sorted(kept)[:-2]:
                    del kept[old]
            else:
                self.teacher.decode(kept[what[0]], what[1], **options)
        return time.perf_counter() - began


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One labelling run and the same teacher calls alone."""

    cases: int
    slices_encoded: int
    masks_decoded: int
    whole_s: float
    bare_s: float
    share_of_bare_rate: float
    """Bare seconds / whole seconds: 1 would mean that everything but the teacher is free."""
    peak_mib: float


def run_pair(archive: Archive, cases: Sequence[str], repeat: int) -> Pair:
    """Label into a fresh label set, then replay."""
    recorder = Recorder(load_teacher("bundled"))
    plan = LabelPlan(classes=CLASSES, label_set=f"teacher/benchmark-{repeat}")
    with mock.patch("distill.engine.load_teacher", return_value=recorder):
        began = time.perf_counter()
        summary = label_archive(archive, plan, cases=cases)
        whole = time.perf_counter() - began
    if summary.done != len(cases):
        message = f"only {summary.done} of {len(cases)} cases were labelled; quarantined: {summary.quarantined}."
        raise SystemExit(message)
    bare = recorder.replay()
    return Pair(
        cases=len(cases),
        slices_encoded=sum(len(what) for kind, what, _ in recorder.calls if kind == "encode"),
        masks_decoded=sum(len(what[1]) for kind, what, _ in recorder.calls if kind == "decode"),
        whole_s=whole,
        bare_s=bare,
        share_of_bare_rate=bare / whole,
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def main() -> None:
    """Ingest, label, replay, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = Path(os.environ["SAMDISTILL_TEST_DATA"]) / "hippocampus"
    with tempfile.TemporaryDirectory() as folder:
        archive = Archive.create(str(Path(folder) / "archive.zarr"))
        ingest(archive, data / "images", modality="MR")
        import_prompts(archive, data / "weak_prompts.json")
        prompted = sorted(archive.catalog.prompts_by_case([record.id for record in archive.cases()]))
        pairs = [run_pair(archive, prompted[: options.cases], repeat) for repeat in range(options.repeats)]
    if options.json:
        print(json.dumps([asdict(pair) for pair in pairs], indent=2))
        return
    print(
        f"{torch.get_num_threads()} threads, {pairs[0].cases} volumes, {pairs[0].slices_encoded} pictures encoded, {pairs[0].masks_decoded} masks decoded"
    )
    print("pictures/s whole | pictures/s bare teacher | share | peak MiB")
    for pair in pairs:
        rates = pair.slices_encoded / pair.whole_s, pair.slices_encoded / pair.bare_s
        print(f"{rates[0]:16.2f} | {rates[1]:23.2f} | {pair.share_of_bare_rate:5.3f} | {pair.peak_mib:8.0f}")
    print(f"median share of the bare teacher's rate: {median(pair.share_of_bare_rate for pair in pairs):.3f}")


if __name__ == "__main__":
    main()
