"""What the archive costs: slices per second of the whole labelling stage against the bare teacher calls inside it.

    SAMDISTILL_TEST_DATA=... python benchmarks/end_to_end.py [--cases 20] [--repeats 3] [--threads 2] [--device cpu] [--json]

Labels real volumes (hippocampus, weak prompts as given) with the bundled teacher, noting every picture and prompt it is asked, then
asks the teacher the same things again with nothing around it. Reading, windowing, upsampling, ensembles, writing and the ledger are
what lies between the two. The share is taken per pair of runs, one after the other, so that a change of the machine's speed hits both.

Beside them stand two ways to ask the same weights without this package, on the first ``--baseline`` pictures and their prompts:
``original`` is segment-anything's own ``SamPredictor``, picture by picture and prompt by prompt; ``fast-style`` is written for this benchmark
after segment-anything-fast (pytorch-labs 2023): batches of pictures, all prompts of a batch in one call, bfloat16. Neither reads, windows or writes
anything. Both run in this process, which keeps freed memory.
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
from paired import device_name
from segment_anything import SamPredictor

from distill import load_teacher
from distill.engine import LabelPlan, label_archive
from distill.teachers.base import Embeddings, PromptBatch
from distill.teachers.decode import decode_tokens
from distill.teachers.pictures import place_boxes, prompt_scale, to_square
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

    def first(self, pictures: int) -> "Recorder":
        """Return the calls about the first encodings that hold at least so many pictures."""
        some = Recorder(self.teacher)
        for number, call in enumerate(self.calls):
            if call[0] == "encode" and some.pictures < pictures:
                some.calls += [("encode", call[1], None)]
                place = len(some.calls) - 1
                about = [each for each in self.calls if each[0] == "decode" and each[1][0] == number]
                some.calls += [("decode", (place, prompts), options) for _, (_, prompts), options in about]
        return some

    @property
    def pictures(self) -> int:
        """How many pictures were encoded."""
        return sum(len(what) for kind, what, _ in self.calls if kind == "encode")

    @property
    def prompts(self) -> int:
        """How many prompts were decoded."""
        return sum(len(what[1]) for kind, what, _ in self.calls if kind == "decode")


def original_loop(recorder: Recorder) -> float:
    """Ask segment-anything's predictor the same things; return the seconds."""
    predictor = SamPredictor(recorder.teacher.sam)
    began = time.perf_counter()
    for number, (kind, pictures, _) in enumerate(recorder.calls):
        if kind != "encode":
            continue
        batches = [what[1] for other, what, _ in recorder.calls if other == "decode" and what[0] == number]
        for n, picture in enumerate(pictures):
            predictor.set_image(picture)
            for batch in batches:
                for row in np.flatnonzero(batch.image_index == n):
                    predictor.predict(**_as_predictor_takes_it(batch, int(row)), multimask_output=False)
    return time.perf_counter() - began


def _as_predictor_takes_it(prompts: PromptBatch, row: int) -> dict[str, np.ndarray]:
    masks, _ = prompts.masks_of(slice(row, row + 1))
    taken = {
        "box": prompts.boxes_xyxy_px,
        "point_coords": prompts.points_xy_px,
        "point_labels": prompts.point_labels,
    }
    found = {name: np.asarray(value[row]) for name, value in taken.items() if value is not None}
    if masks is not None and (prompts.has_mask is None or prompts.has_mask[row]):
        found["mask_input"] = masks
    return found


def fast_style(recorder: Recorder) -> float:
    """Ask in batches, in bfloat16, with segment-anything's modules; return the seconds."""
    sam, profile, device = recorder.teacher.sam, recorder.teacher.profile, recorder.teacher.device
    kept: dict[int, tuple[torch.Tensor, list[tuple[tuple[int, int], tuple[int, int]]]]] = {}
    began = time.perf_counter()
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        for number, (kind, what, _) in enumerate(recorder.calls):
            if kind == "encode":
                squares = [to_square(each, profile, index=n, device=device) for n, each in enumerate(what)]
                sizes = [(each.shape[:2], inner) for each, (_, inner) in zip(what, squares, strict=True)]
                kept = {number: (sam.image_encoder(torch.stack([square for square, _ in squares])), sizes)}
                continue
            features, sizes = kept[what[0]]
            prompts, index = what[1], torch.from_numpy(what[1].image_index).to(device)
            scale = np.array([prompt_scale(profile, *sizes[n]) for n in prompts.image_index])
            boxes = (
                None
                if prompts.boxes_xyxy_px is None
                else torch.as_tensor(place_boxes(profile, prompts.boxes_xyxy_px, scale), device=device)
            )
            given, which = prompts.masks_of(slice(None))
            masks = None if given is None else torch.as_tensor(given if which is None else given[which], device=device)[:, None]
            pairs = None
            if prompts.points_xy_px is not None:
                points = torch.as_tensor(prompts.points_xy_px * scale[:, None], device=device)
                pairs = points.float(), torch.as_tensor(prompts.point_labels, device=device)
            sparse, dense = sam.prompt_encoder(points=pairs, boxes=boxes, masks=masks)
            decode_tokens(sam.mask_decoder, features[index] + dense, sam.prompt_encoder.get_dense_pe(), sparse)
    return time.perf_counter() - began


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One labelling run and the same teacher calls alone; rates are pictures, with all that is asked about them, per second."""

    cases: int
    slices_encoded: int
    masks_decoded: int
    whole_s: float
    bare_s: float
    share_of_bare_rate: float
    """Bare seconds / whole seconds: 1 would mean that everything but the teacher is free."""
    whole_per_s: float
    bare_per_s: float
    original_per_s: float
    fast_style_per_s: float
    peak_mib: float


def run_pair(archive: Archive, cases: Sequence[str], repeat: int, device: str, baseline: int) -> Pair:
    """Label into a fresh label set, replay, and ask the baselines."""
    recorder = Recorder(load_teacher("bundled", device=device))
    plan = LabelPlan(classes=CLASSES, label_set=f"teacher/benchmark-{repeat}", device=device)
    with mock.patch("distill.appoint.load_teacher", return_value=recorder):
        began = time.perf_counter()
        summary = label_archive(archive, plan, cases=cases)
        whole = time.perf_counter() - began
    if summary.done != len(cases):
        message = f"only {summary.done} of {len(cases)} cases were labelled; quarantined: {summary.quarantined}."
        raise SystemExit(message)
    bare, some = recorder.replay(), recorder.first(baseline)
    return Pair(
        cases=len(cases),
        slices_encoded=recorder.pictures,
        masks_decoded=recorder.prompts,
        whole_s=whole,
        bare_s=bare,
        share_of_bare_rate=bare / whole,
        whole_per_s=recorder.pictures / whole,
        bare_per_s=recorder.pictures / bare,
        original_per_s=some.pictures / original_loop(some),
        fast_style_per_s=some.pictures / fast_style(some),
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def show(pairs: Sequence[Pair], options: argparse.Namespace) -> None:
    """Print the table."""
    where = f"{device_name(options.device)}, {torch.get_num_threads()} threads"
    print(f"{where}; {pairs[0].cases} volumes, {pairs[0].slices_encoded} pictures encoded, {pairs[0].masks_decoded} masks decoded")
    print("| original /s | fast-style /s | bare teacher /s | whole stage /s | x original | x fast-style | share of bare | peak MiB |")
    print("| --- " * 8 + "|")
    for pair in pairs:
        print(
            f"| {pair.original_per_s:.2f} | {pair.fast_style_per_s:.2f} | {pair.bare_per_s:.2f} | {pair.whole_per_s:.2f} "
            f"| {pair.whole_per_s / pair.original_per_s:.2f} | {pair.whole_per_s / pair.fast_style_per_s:.2f} "
            f"| {pair.share_of_bare_rate:.3f} | {pair.peak_mib:.0f} |"
        )
    print(f"median share of the bare teacher's rate: {median(pair.share_of_bare_rate for pair in pairs):.3f}")


def main() -> None:
    """Ingest, label, replay, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--baseline", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder_of_data = os.environ.get("SAMDISTILL_TEST_DATA")
    if not folder_of_data:
        parser.error("set SAMDISTILL_TEST_DATA to the folder of test data; this benchmark labels real volumes from it")
    data = Path(folder_of_data) / "hippocampus"
    with tempfile.TemporaryDirectory() as folder:
        archive = Archive.create(str(Path(folder) / "archive.zarr"))
        ingest(archive, data / "images", modality="MR")
        import_prompts(archive, data / "weak_prompts.json")
        prompted = sorted(archive.catalog.prompts_by_case([record.id for record in archive.cases()]))[: options.cases]
        pairs = [run_pair(archive, prompted, repeat, options.device, options.baseline) for repeat in range(options.repeats)]
    if options.json:
        print(json.dumps([asdict(pair) for pair in pairs], indent=2))
    else:
        show(pairs, options)


if __name__ == "__main__":
    main()
