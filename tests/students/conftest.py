"""A small generated archive: bright ellipsoids in noisy, unequal-sided volumes, with gold, pseudo and teacher label sets."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from storage import IGNORE, Archive, CaseRecord, ClassInfo, Geometry, LabelHistory, Prompt

CLASSES = (ClassInfo(id=3, name="kernel"),)
"""An id that is not 1: ids and channels must not be mixed up."""

MakeArchive = Callable[..., Archive]


def geometry(spacing: tuple[float, float, float]) -> Geometry:
    z, y, x = spacing
    return Geometry(spacing_zyx_mm=spacing, affine=((x, 0.0, 0.0, 0.0), (0.0, y, 0.0, 0.0), (0.0, 0.0, z, 0.0), (0.0, 0.0, 0.0, 1.0)))


def ellipsoid(shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape], indexing="ij"))
    centre = rng.uniform(-0.25, 0.25, 3).reshape(3, 1, 1, 1)
    radius = rng.uniform(0.45, 0.65, 3).reshape(3, 1, 1, 1)
    return np.asarray((((grid - centre) / radius) ** 2).sum(0) < 1)


def scan(mask: np.ndarray, rng: np.random.Generator, scale: float) -> np.ndarray:
    return np.asarray((mask * 2.0 + rng.normal(2, 0.4, mask.shape)) * scale, np.float32)[None]


def add_case(
    archive: Archive, name: str, part: str, rng: np.random.Generator, *, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    mask = ellipsoid(shape, rng)
    image = scan(mask, rng, float(10 ** rng.uniform(0, 5)))
    record = CaseRecord(
        id=name,
        patient=f"p-{name}",
        shape_czyx=(1, *shape),
        dtype="float32",
        geometry=geometry(spacing),
        modality="MR",
        part=part,
        fingerprint=name,
    )
    case = archive.add_case(record, image)
    gold = np.uint8(3) * mask.astype(np.uint8)
    pseudo = np.roll(gold, 1, axis=2)
    teacher = pseudo.copy()
    pseudo[(pseudo > 0) != (gold > 0)] = IGNORE
    for label_set, ids in (("gold", gold), ("pseudo/r1", pseudo), ("teacher/r1", teacher)):
        case.write_labels(LabelHistory(label_set=label_set, classes=CLASSES, made_by="test", fingerprint=name), ids)
    boxes = []
    for z in range(0, shape[0], 4):
        rows, columns = np.nonzero(mask[z])
        if len(rows):
            box = (float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))
            boxes.append(Prompt(case=name, class_id=3, kind="box", slice=z, box_xyxy_px=box))
    archive.catalog.add_prompts(boxes)


@pytest.fixture(scope="session")
def make_archive() -> MakeArchive:
    def make(
        folder: Path,
        *,
        train: int = 6,
        test: int = 3,
        shape: tuple[int, int, int] = (12, 22, 18),
        spacing: tuple[float, float, float] = (1.5, 0.8, 1.0),
    ) -> Archive:
        archive = Archive.create(str(folder / "archive.zarr"))
        rng = np.random.default_rng(7)
        for n in range(train):
            add_case(archive, f"train{n}", "archive", rng, shape=(shape[0], shape[1] + n % 3, shape[2]), spacing=spacing)
        for n in range(test):
            add_case(archive, f"test{n}", "test", rng, shape=shape, spacing=spacing)
        add_case(archive, "calib0", "calibration", rng, shape=shape, spacing=spacing)
        return archive

    return make


@pytest.fixture(scope="session")
def archive(make_archive: MakeArchive, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Shared by tests; they may add label sets, and change nothing else."""
    return make_archive(tmp_path_factory.mktemp("students"))


MakeStudent = Callable[..., Path]


@pytest.fixture(scope="session")
def make_student(tmp_path_factory: pytest.TempPathFactory) -> MakeStudent:
    """Students that nobody trained: their answers mean nothing, but are the same in every format."""

    def make(dimensions: str = "3d", *, name: str = "untaught", channels: int = 1, classes: tuple[ClassInfo, ...] = CLASSES) -> Path:
        import torch

        from students.checkpoint import save_student
        from students.nets import build_network, plan_network
        from students.spec import StudentCard, StudentSpec

        torch.manual_seed(3)
        spec = StudentSpec(name=name, width=8, dimensions=dimensions)  # type: ignore[arg-type]
        shape = (16, 32, 24) if dimensions == "3d" else (1, 40, 32)
        spacing = (1.5, 0.8, 1.0)
        plan = plan_network(spec, shapes_zyx=[shape], spacings_zyx_mm=[spacing], channels=channels, classes=len(classes))
        network = build_network(plan)
        folder: Path = tmp_path_factory.mktemp("untaught") / name
        card = StudentCard(
            name=name,
            spec=spec,
            plan=plan,
            classes=classes,
            label_set="pseudo/r1",
            training_cases=("train0", "train1"),
            validation_cases=("train2",),
            training_patients=("p-train0", "p-train1", "p-train2"),
            fingerprint="f",
            parameters=sum(each.numel() for each in network.parameters()),
            steps=3,
            seconds=1.5,
            agreement=0.75,
            stopped="steps",
            history=(),
        )
        save_student(folder, card, dict(network.named_parameters()))
        return folder

    return make
