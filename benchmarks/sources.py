"""How good are the pseudo-labels that a source of prompts leads to, how many objects does it find, and what does it cost?

    SAMDISTILL_TEST_DATA=... python benchmarks/sources.py --source threshold --data ct_organs [--limit 20] [--pictures FOLDER]

Prints a row of the table in docs/methods.md: mean Dice of the teacher's masks over the (case, class) pairs that were prompted, of all that
the class is in; beside it, on the same pairs, the ellipse in each proposed box and the proposed rough mask itself. Coverage is the
share of pairs that were prompted; false prompts are those about cases without the class. Experts' labels of calibration cases may be used by a source, so
these cases are not scored. Labels of ``ct_organs`` were drawn by a network, all others by experts.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np

from distill.engine import label_archive
from distill.label_plan import LabelPlan
from distill.prompts.choice import PROPAGATE, chosen_prompts
from distill.prompts.everything_options import EverythingOptions, GridOptions
from distill.prompts.nameless import masks_by_slice
from distill.prompts.presets import ThresholdOptions
from distill.prompts.sources import SourceContext
from distill.prompts.text_options import TextOptions
from distill.propose import PromptPlan, propose_prompts
from distill.quality import dice
from distill.wavefront import AskSettings
from storage import Archive, CaseRecord, ClassInfo, Geometry, LabelHistory, Part, Prompt
from storage.ingest import import_prompts
from storage.rle import decode
from students.baselines import ellipse_in_box, ellipse_labels

IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
SEEN = "seen.json"
"""In a folder of CLIP weights: by collection, the patients that were learnt from (benchmarks/small_clip.py)."""
LUNGS, BONES = (10, 11, 12, 13, 14), (*range(25, 51), *range(69, 79), *range(92, 117))
"""Numbers in the CT's label file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """A case with its gold, before it is in an archive."""

    id: str
    patient: str
    image_czyx: np.ndarray
    gold_zyx: np.ndarray
    modality: str
    spacing_zyx_mm: tuple[float, float, float] | None = None
    affine: tuple[tuple[float, ...], ...] = IDENTITY


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """What is measured on, and with which options the sources are asked there."""

    classes: tuple[ClassInfo, ...]
    scans: Callable[[Path, int], Iterator[Scan]]
    calibration: int = 0
    """Every so many-th patient's gold may be used; 0: nobody's."""
    options: Mapping[str, object]
    weak: str = ""
    """File of weak prompts, below the data folder."""
    most: int = 1
    """Objects on one slice at most."""


def named(*names: str) -> tuple[ClassInfo, ...]:
    """Return classes numbered from 1."""
    return tuple(ClassInfo(id=n, name=name) for n, name in enumerate(names, start=1))


def cardiac(data: Path, limit: int) -> Iterator[Scan]:
    """Short-axis MR pictures of the first ``limit`` patients."""
    paths = sorted((data / "cardiac" / "images").glob("*.png"))
    patients = sorted({path.name.split("-IM")[0] for path in paths})[: limit or None]
    for path in paths:
        patient = path.name.split("-IM")[0]
        if patient in patients:
            picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            gold = cv2.imread(str(data / "cardiac" / "gold" / path.name), cv2.IMREAD_GRAYSCALE)
            yield Scan(
                id=path.stem, patient=patient, image_czyx=picture[None, None], gold_zyx=(gold > 0)[None].astype(np.uint8), modality="MR"
            )


def hippocampus(data: Path, limit: int) -> Iterator[Scan]:
    """T1 MR crops of the first ``limit`` patients."""
    for path in sorted((data / "hippocampus" / "images").glob("*.nii.gz"))[: limit or None]:
        image, volume = _read(path)
        _, gold = _read(data / "hippocampus" / "gold" / path.name)
        case = path.name.removesuffix(".nii.gz")
        yield _scan(case, image, volume, (gold > 0).astype(np.uint8), "MR")


def nuclei(data: Path, limit: int) -> Iterator[Scan]:
    """Fluorescence pictures: those that are dark for the most part."""
    found = 0
    for path in sorted((data / "nuclei" / "images").glob("*.png")):
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if np.median(picture) > 127 or (limit and found >= limit):
            continue
        found += 1
        gold = cv2.imread(str(data / "nuclei" / "gold" / path.name), cv2.IMREAD_UNCHANGED)
        channels = np.ascontiguousarray(picture[..., ::-1].transpose(2, 0, 1))[:, None]
        yield Scan(id=path.stem, patient=path.stem, image_czyx=channels, gold_zyx=(gold > 0)[None].astype(np.uint8), modality="other")


def ct_organs(data: Path, limit: int) -> Iterator[Scan]:  # noqa: ARG001 - there is one
    """One CT of the upper abdomen at 3 mm; 1 lungs, 2 bones, as a network drew them."""
    image, volume = _read(data / "ct_organs" / "example_ct_sm.nii.gz")
    _, labels = _read(data / "ct_organs" / "example_seg.nii.gz")
    gold = np.where(np.isin(labels, LUNGS), 1, np.where(np.isin(labels, BONES), 2, 0)).astype(np.uint8)
    yield _scan("ct", image, volume.astype(np.int16), gold, "CT")


def _read(path: Path) -> tuple[nib.nifti1.Nifti1Image, np.ndarray]:
    image = nib.nifti1.Nifti1Image.from_filename(path)
    return image, np.ascontiguousarray(np.asarray(image.dataobj).T)


def _scan(case: str, image: nib.nifti1.Nifti1Image, volume: np.ndarray, gold: np.ndarray, modality: str) -> Scan:
    x, y, z = (float(side) for side in image.header.get_zooms())
    affine = tuple(tuple(float(value) for value in row) for row in image.affine)
    return Scan(id=case, patient=case, image_czyx=volume[None], gold_zyx=gold, modality=modality, spacing_zyx_mm=(z, y, x), affine=affine)


COLLECTIONS: dict[str, Collection] = {
    "cardiac": Collection(
        classes=named("left-ventricle"),
        scans=cardiac,
        calibration=5,
        weak="cardiac/weak_prompts.json",
        options={"everything": EverythingOptions(exemplars=10)},
    ),
    "hippocampus": Collection(
        classes=named("hippocampus"), scans=hippocampus, calibration=10, weak="hippocampus/weak_prompts.json", options={}
    ),
    "nuclei": Collection(
        classes=named("nucleus"),
        scans=nuclei,
        most=200,
        options={"threshold": ThresholdOptions.model_validate({"classes": {"nucleus": {"preset": "bright-objects"}}})},
    ),
    "ct_organs": Collection(classes=named("lungs", "bones"), scans=ct_organs, options={"threshold": ThresholdOptions()}),
}


def restricted(collection: Collection, wanted: Callable[[str], bool]) -> Collection:
    """Return a collection with some of its patients, none of whose gold may be used."""

    def scans(data: Path, limit: int) -> Iterator[Scan]:
        patients: set[str] = set()
        for scan in collection.scans(data, 0):
            if wanted(scan.patient):
                patients.add(scan.patient)
                if limit and len(patients) > limit:
                    return
                yield scan

    return replace(collection, scans=scans, calibration=0)


def with_clip(collection: Collection, name: str, weights: Path, words: Sequence[str]) -> Collection:
    """Return a collection whose source ``text`` asks these weights, without the patients that they have learnt from."""
    seen = json.loads((weights / SEEN).read_text()).get(name, []) if (weights / SEEN).is_file() else []
    options = TextOptions(
        checkpoint=weights,
        words=dict.fromkeys((info.name for info in collection.classes), tuple(words)) if words else {},
        most=collection.most,
    )
    return replace(restricted(collection, lambda patient: patient not in seen), options=collection.options | {"text": options})


def build(folder: Path, data: Path, collection: Collection, limit: int, every: int = 1) -> Archive:
    """Make an archive of a collection with its gold."""
    archive = Archive.create(str(folder / "archive.zarr"))
    patients: dict[str, int] = {}
    seen = 0
    for scan in collection.scans(data, limit):
        number = patients.setdefault(scan.patient, len(patients))
        use = collection.calibration
        part: Part = "calibration" if use and number % use == use - 2 else "archive"
        seen += part != "calibration"
        if part != "calibration" and seen % every:
            continue
        geometry = Geometry(
            spacing_zyx_mm=scan.spacing_zyx_mm or (1.0, 1.0, 1.0), affine=scan.affine, spacing_known=scan.spacing_zyx_mm is not None
        )
        shape = scan.image_czyx.shape
        record = CaseRecord(
            id=scan.id,
            patient=scan.patient,
            shape_czyx=(shape[0], shape[1], shape[2], shape[3]),
            dtype=str(scan.image_czyx.dtype),
            geometry=geometry,
            modality=scan.modality,
            part=part,
        )
        case = archive.add_case(record, scan.image_czyx)
        case.write_labels(LabelHistory(label_set="gold", classes=collection.classes, made_by="benchmarks/sources"), scan.gold_zyx)
    leave_prompts(archive, data / collection.weak)
    return archive


def leave_prompts(archive: Archive, file: Path) -> None:
    """Import the prompts that a hurried annotator left, where there are any; rows about cases that are not here say nothing."""
    if file.is_file():
        import_prompts(archive, file)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came of one case and class that is there."""

    teacher: float
    ellipse: float
    rough: float
    """NaN where no mask was proposed."""


def measure(archive: Archive, classes: Sequence[ClassInfo], label_set: str, sources: Sequence[str]) -> tuple[list[Row], int, int]:
    """Return a row for each pair that was prompted, how many pairs there are, and how many prompted ones the class is not in."""
    rows, pairs, false = [], 0, 0
    for record in archive.cases():
        if record.part == "calibration":
            continue
        case = archive[record.id]
        gold = case.labels("gold").read()
        drawn = case.labels(label_set).read() if label_set in case.label_sets() else np.zeros_like(gold)
        for info in classes:
            known = chosen_prompts(archive.catalog.prompts(record.id, info.id), sources)
            prompts = [prompt for prompt in known if prompt.kind != "absent"]
            there = gold == info.id
            pairs += bool(there.any())
            false += bool(prompts) and not there.any()
            if prompts and there.any():
                rough = proposed(prompts, there.shape)
                rows.append(
                    Row(
                        teacher=dice(drawn == info.id, there),
                        ellipse=dice(ellipses(prompts, there.shape), there),
                        rough=dice(rough, there) if rough.any() else float("nan"),
                    )
                )
    return rows, pairs, false


def blind_and_best(archive: Archive, classes: tuple[ClassInfo, ...], teacher: str) -> tuple[float, float, float]:
    """Return of the teacher's class-free masks on slices with an object: how many, their mean Dice (a blind choice) and the highest (an oracle's)."""
    context = SourceContext(archive=archive, plan=LabelPlan(classes=classes, teacher=teacher, device="cpu"))
    rows = []
    for record in archive.cases():
        subject, gold = context.subject(record, classes), archive[record.id].labels("gold").read() > 0
        for z, candidates in masks_by_slice(context.teacher, subject, GridOptions()):
            if gold[z].any():
                scores = [dice(each.mask, gold[z]) for each in candidates] or [0.0]
                rows.append((len(candidates), float(np.mean(scores)), max(scores)))
    count, blind, best = np.mean(rows, axis=0)
    return float(count), float(blind), float(best)


def ellipses(prompts: Sequence[Prompt], shape: tuple[int, ...]) -> np.ndarray:
    """Fill each box on a slice with an ellipse, and interpolated boxes between those, where no slice has several."""
    boxed = [prompt.slice for prompt in prompts if prompt.box_xyxy_px is not None]
    if len(set(boxed)) == len(boxed):
        return ellipse_labels(prompts, (shape[0], shape[1], shape[2]), (ClassInfo(id=prompts[0].class_id, name="any"),)) > 0
    out = np.zeros(shape, bool)
    for prompt in prompts:
        if prompt.box_xyxy_px is not None and prompt.slice is not None:
            out[prompt.slice] |= ellipse_in_box(prompt.box_xyxy_px, (shape[1], shape[2]))
    return out


def proposed(prompts: Sequence[Prompt], shape: tuple[int, ...]) -> np.ndarray:
    """Join the proposed rough masks."""
    out = np.zeros(shape, bool)
    for prompt in prompts:
        if prompt.mask_size_yx is not None and prompt.slice is not None:
            out[prompt.slice] |= decode(prompt.mask_rle, prompt.mask_size_yx)
    return out


def draw(archive: Archive, label_set: str, sources: Sequence[str], folder: Path, count: int = 24) -> None:
    """Save pictures of cases: gold green, teacher red, proposed boxes blue."""
    folder.mkdir(parents=True, exist_ok=True)
    for record in archive.cases(with_labels=label_set)[:count]:
        case = archive[record.id]
        gold, drawn = case.labels("gold").read(), case.labels(label_set).read()
        z = int((gold > 0).sum(axis=(1, 2)).argmax())
        grey = case.read()[:, z].astype(np.float32).mean(axis=0)
        low, high = (-160, 240) if record.modality == "CT" else np.percentile(grey, (0.5, 99.5))
        picture = cv2.cvtColor((255 * np.clip((grey - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8), cv2.COLOR_GRAY2BGR)
        scale = max(1, 512 // max(grey.shape))
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
        for prompt in chosen_prompts(archive.catalog.prompts(record.id), sources):
            if prompt.slice == z and prompt.box_xyxy_px is not None:
                x0, y0, x1, y1 = (round(scale * side) for side in prompt.box_xyxy_px)
                cv2.rectangle(picture, (x0, y0), (x1, y1), (255, 120, 60), 1)
        for mask, colour in ((gold[z], (60, 200, 60)), (drawn[z], (60, 60, 240))):
            for key in np.unique(mask[(mask > 0) & (mask < 255)]):
                large = cv2.resize((mask == key).astype(np.uint8), None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
                cv2.drawContours(picture, cv2.findContours(large, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0], -1, colour, 1)
        cv2.imwrite(str(folder / f"{record.id}.png"), picture)


def run(archive: Archive, collection: Collection, sources: tuple[str, ...], teacher: str, ask: AskSettings) -> tuple[str, float, float]:
    """Propose and label; return the label set and the seconds of both steps."""
    plan = LabelPlan(
        classes=collection.classes, sources=sources, teacher=teacher, device="cpu", ask=replace(ask, propagate=PROPAGATE in sources)
    )
    prompted = propose_prompts(archive, PromptPlan(sources=sources, options=collection.options, label=plan))
    began = time.monotonic()
    summary = label_archive(archive, plan)
    for stage in (*(f"prompts:{name}" for name in sources), f"label:{plan.label_set}"):
        for unit in archive.ledger.quarantined(stage):
            print(f"set aside in {stage}: {unit.unit}: {unit.error}")
    del summary
    return plan.label_set, prompted.seconds, time.monotonic() - began


def main() -> None:
    """Measure one source on one collection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="a name, or several with commas: a chain")
    parser.add_argument("--data", required=True, choices=sorted(COLLECTIONS))
    parser.add_argument("--limit", type=int, default=0, help="patients (default all)")
    parser.add_argument("--every", type=int, default=1, help="only every so many-th case that is scored")
    parser.add_argument("--teacher", default="bundled")
    parser.add_argument("--clip", type=Path, help="folder of CLIP weights for the source text, such as small_clip.py writes")
    parser.add_argument("--words", nargs="+", default=[], help="what text calls the class instead of its name")
    parser.add_argument(
        "--masks", action="store_true", help="also say what a blind choice among class-free masks would give, and the best one"
    )
    parser.add_argument("--boxes", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="ask once per slice: no mirrors, no other planes, one box")
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    collection, sources = COLLECTIONS[arguments.data], tuple(arguments.source.split(","))
    if arguments.clip:
        collection = with_clip(collection, arguments.data, arguments.clip, arguments.words)
    ask = AskSettings(boxes=1, flips=False, planes="axial") if arguments.quick else AskSettings(boxes=arguments.boxes)
    with tempfile.TemporaryDirectory() as folder:
        archive = build(Path(folder), Path(os.environ["SAMDISTILL_TEST_DATA"]), collection, arguments.limit, arguments.every)
        label_set, proposing, labelling = run(archive, collection, sources, arguments.teacher, ask)
        slices = sum(record.shape_czyx[1] for record in archive.cases())
        for classes in [(info,) for info in collection.classes] if len(collection.classes) > 1 else [collection.classes]:
            rows, pairs, false = measure(archive, classes, label_set, sources)
            means = {name: np.nanmean([getattr(row, name) for row in rows] or [np.nan]) for name in ("teacher", "ellipse", "rough")}
            print(
                f"| {arguments.source} | {arguments.data}: {', '.join(info.name for info in classes)} | {means['teacher']:.3f} | {means['ellipse']:.3f} "
                f"| {means['rough']:.3f} | {len(rows)}/{pairs} | {false} | {proposing / slices:.2f} + {labelling / slices:.2f} s |"
            )
        if arguments.masks:
            count, blind, best = blind_and_best(archive, collection.classes, arguments.teacher)
            print(f"{count:.0f} class-free masks per slice with an object: Dice {blind:.3f} on average, {best:.3f} of the best")
        if arguments.pictures:
            draw(archive, label_set, sources, arguments.pictures)


if __name__ == "__main__":
    main()
